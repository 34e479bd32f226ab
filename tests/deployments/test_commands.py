"""What the commands make of their flags, before anything is started."""

from pathlib import Path
from typing import Any

import pytest

from cluster import job
from deployments import commands
from deployments.cli import _parser


class Stopped(Exception):
    """What would be started is known."""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings of the model that a command was about to run, in a directory with a model and a template."""
    (tmp_path / "model").mkdir()
    (tmp_path / "pair.jinja").write_text("{{ messages }}")
    monkeypatch.chdir(tmp_path)
    seen: dict[str, Any] = {}

    def job_runs(asked: job.PoolingJob) -> None:
        seen.update(asked.spec.model_dump())
        raise Stopped

    def plan_is_made(service: dict[str, Any], *_: object) -> None:
        seen.update(service["models"][0])
        raise Stopped

    monkeypatch.setattr(job, "run_job", job_runs)
    monkeypatch.setattr("deployments.plan.plan_model", plan_is_made)
    monkeypatch.setattr(commands, "set_flags", lambda flags=None: None)
    return seen


def run(*command: str) -> None:
    """In this process, where the command line has a process of its own."""
    arguments = _parser().parse_args(command)
    arguments.run(arguments)


@pytest.mark.parametrize("command", [["serve"], ["embed", "in.txt", "--output", "out", "--model"]])
def test_files_that_are_here_are_named_whole(command: list[str], asked: dict[str, Any], tmp_path: Path) -> None:
    """Engines may run in another directory."""
    with pytest.raises(Stopped):
        run(*command, "model", "--chat-template", "pair.jinja")
    assert (asked["source"], asked["chat_template"]) == (str(tmp_path / "model"), str(tmp_path / "pair.jinja"))
    jinja = "{{ messages }}" * 100
    with pytest.raises(Stopped):
        run(*command, "org/model", "--chat-template", jinja)
    assert (asked["source"], asked["chat_template"]) == ("org/model", jinja)
