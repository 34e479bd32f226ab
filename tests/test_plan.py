"""What `raypool serve` finds wrong before it starts anything."""

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.plan import plan_file, plan_model
from deployments.ports import refuse_taken_ports
from pooling.errors import CheckpointError, ConfigError, SourceError, StartupError
from pooling.loading.preflight import refuse_bad_source
from tests.checkpoints import MINILM

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"


def write(file: Path, **changes: Any) -> Path:
    """The demo config with some of its top-level keys changed."""
    file.write_text(yaml.safe_dump({**yaml.safe_load(DEMO.read_text()), **changes}))
    return file


def application(**changes: Any) -> list[dict[str, Any]]:
    (demo,) = yaml.safe_load(DEMO.read_text())["applications"]
    return [{**demo, **changes}]


def test_every_shipped_config_is_a_plan() -> None:
    files = [file for file in sorted(DEMO.parent.glob("*.yaml")) if file.stem != "kuberay"]
    assert DEMO in files
    for file in files:
        assert plan_file(file).services


def test_a_plan_listens_on_loopback_unless_told_otherwise(tmp_path: Path) -> None:
    silent = write(tmp_path / "silent.yaml", http_options={})
    assert (plan_file(silent).host, plan_file(silent).port) == ("127.0.0.1", 8000)
    told = write(tmp_path / "told.yaml", http_options={"host": "0.0.0.0", "port": 9000})
    assert (plan_file(told).host, plan_file(told).port) == ("0.0.0.0", 9000)
    assert (plan_file(told, "127.0.0.2", 9001).host, plan_file(told, "127.0.0.2", 9001).port) == ("127.0.0.2", 9001)
    service = {"models": [{"source": MINILM}]}
    assert (plan_model(service).host, plan_model(service, "::1").host) == ("127.0.0.1", "::1")


def test_a_plan_for_one_model_is_the_application_raypool_at_the_root() -> None:
    plan = plan_model({"models": [{"source": MINILM, "name": "minilm"}], "api_keys": ["key"]})
    assert [(found.name, found.route_prefix) for found in plan.schema.applications] == [("raypool", "/")]
    assert plan.services["/"].models[0].served_name == "minilm"
    assert plan.services["/"].api_keys == ["key"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"http_option": {}}, "unknown setting 'http_option'; known settings are: .*http_options"),
        ({"http_options": {"prot": 1}}, "http_options: unknown setting 'prot'; known settings are: host, port"),
        ({"http_options": {"port": "high"}}, r"http_options\.port: .*integer.* \(given 'high'\)"),
        ({"http_options": {"port": 70_000}}, "http_options.port is 70000; allowed are 1 to 65535"),
        ({"applications": application(import_pth="x")}, r"applications\.0: unknown setting 'import_pth'"),
        (
            {"applications": application(import_path="other:app")},
            "no application has import_path deployments.app:build",
        ),
        ({"applications": application(args={"models": [{"source": "x", "dtyp": 1}]})}, "unknown setting 'dtyp'"),
        ({"applications": application(args={"models": [{"source": "x", "dtype": 1}]})}, r"models\.0\.dtype: .*given 1"),
        ({"applications": application(args={"models": []})}, "models is empty"),
        ({"applications": None}, "applications: .*list"),
    ],
)
def test_a_mistake_in_a_config_is_named_with_its_place(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = write(tmp_path / "wrong.yaml", **changes)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(file))}: .*{said}") as caught:
        plan_file(file)
    assert "\n" not in caught.value.detail


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"applications: [\n  - x: }", "is not YAML: .* at line 2, column 3"),
        (b"just words", "holds no mapping"),
        (b"", "holds no mapping"),
        (b"\xff\xfe\x00", "cannot be read: it is not text"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "odd.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        plan_file(tmp_path / "odd.yaml")


def test_a_directory_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        plan_file(tmp_path)


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"port {port} on 127.0.0.1 is in use"):
            refuse_taken_ports("127.0.0.1", port)
    refuse_taken_ports("127.0.0.1", port)


@pytest.mark.parametrize("name", ["RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT"])
def test_a_port_that_haproxy_needs_is_named_too(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as taken:
        port = free.getsockname()[1]
        free.close()
        monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", str(port))
        monkeypatch.setenv("RAY_SERVE_HAPROXY_METRICS_PORT", str(port))
        monkeypatch.setenv(name, str(taken.getsockname()[1]))
        monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
        with pytest.raises(StartupError, match=f"HAProxy needs .* choose another with {name}"):
            refuse_taken_ports("127.0.0.1", port)
        monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
        refuse_taken_ports("127.0.0.1", port)


def test_a_host_of_another_machine_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on host '192\.0\.2\.77'"):
        refuse_taken_ports("192.0.2.77", 8000)


def test_a_whole_model_passes() -> None:
    refuse_bad_source(MINILM)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncated weights", "is cut short"),
        ("truncated header", "is cut short"),
        ("empty weights", "is cut short|damaged"),
    ],
)
def test_cut_short_weights_are_seen_without_reading_them(
    broken_checkpoint: Callable[[str], Path], damage: str, said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        refuse_bad_source(str(broken_checkpoint(damage)))


def test_weights_that_are_something_else_are_seen(tmp_path: Path) -> None:
    for content in (b"\x02\x00\x00\x00\x00\x00\x00\x00[]", b"\x04\x00\x00\x00\x00\x00\x00\x00oops"):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged"):
            refuse_bad_source(str(tmp_path))


def test_a_source_that_is_not_there_is_named() -> None:
    with pytest.raises(SourceError, match="/no/such/dir"):
        refuse_bad_source("/no/such/dir")
