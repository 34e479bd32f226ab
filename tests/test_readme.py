"""Every example of the README's first screen runs as printed, against the service that `make serve` starts."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(kind, text) for kind, text in BLOCK.findall((ROOT / "README.md").read_text()) if kind != "text"]


def block(containing: str) -> str:
    (text,) = [text for _, text in BLOCKS if containing in text]
    return text


def environment() -> dict[str, str]:
    """A newcomer's: none of what the test run sets for itself, but Ray's ports stay on 127.0.0.1."""
    ours = ("RAY_", "PYTEST_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return kept | {"PATH": path, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def run_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"no end after 180 s of\n{code}{process.communicate()[1]}")
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="module")
def service() -> Iterator[None]:
    command = ["raypool", "serve", "configs/demo.yaml"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if '"embedding"' in line:
                    break
            else:
                pytest.fail("the service ended before it was ready")
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def test_the_commands_are_those_of_the_makefile() -> None:
    targets = re.findall(r"^make (\w+)", block("make serve"), re.MULTILINE)
    assert targets == ["serve", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_example_is_run_below() -> None:
    run = ("make serve", "curl ", "get_app_handle", "map_batches", "import LLM")
    assert len(BLOCKS) == len(run)
    assert [name in text for name, (_, text) in zip(run, BLOCKS, strict=True)] == [True] * len(run)


@pytest.mark.usefixtures("service")
def test_the_curl_line_answers_with_a_vector() -> None:
    done = subprocess.run(["bash", "-c", block("curl ")], capture_output=True, text=True, timeout=60, check=True)
    assert '"object":"embedding"' in done.stdout.replace(" ", "")


@pytest.mark.usefixtures("service")
def test_the_handle_call_gets_an_array() -> None:
    assert run_python(block("get_app_handle")).endswith("(2, 384) float32\n")


@pytest.mark.usefixtures("service")
def test_the_dataset_gets_its_column_of_vectors() -> None:
    assert re.search(r"-?0\.\d+", run_python(block("map_batches")))


def test_llm_gives_a_vector_without_ray() -> None:
    assert re.search(r"\[-?0\.\d+, -?0\.\d+, -?0\.\d+\]", run_python(block("import LLM")))
