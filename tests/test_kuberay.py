"""The Kubernetes manifest and the image file, as far as they can be judged without a Kubernetes and without a build."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeDeploySchema

from deployments.app import build
from deployments.commands import _serve_flags
from deployments.config import ServiceConfig

ROOT = Path(__file__).parents[1]
MANIFEST = yaml.safe_load((ROOT / "configs" / "kuberay.yaml").read_text())
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if re.match(r"[\w.-]+==", line)
)
CLUSTER = MANIFEST["spec"]["rayClusterConfig"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return dict(only)


def served() -> ServeDeploySchema:
    return ServeDeploySchema.model_validate(yaml.safe_load(MANIFEST["spec"]["serveConfigV2"]))


def test_the_manifest_is_a_rayservice_of_the_ray_that_is_tested() -> None:
    """The fields that KubeRay's definition of a RayService (ray.io/v1) requires."""
    assert (MANIFEST["apiVersion"], MANIFEST["kind"]) == ("ray.io/v1", "RayService")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", MANIFEST["metadata"]["name"])
    assert {*MANIFEST["spec"]} == {"serveConfigV2", "rayClusterConfig"}
    assert CLUSTER["rayVersion"] == PINNED["ray"]
    for group in CLUSTER["workerGroupSpecs"]:
        assert group["groupName"]
        assert 0 < group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in GROUPS:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert {"name", "image", "resources", "env", "ports"} <= {*container(group)}
        assert container(group)["resources"]["limits"] == container(group)["resources"]["requests"]
        mounted = {mount["name"] for mount in container(group)["volumeMounts"]}
        assert mounted == {volume["name"] for volume in group["template"]["spec"]["volumes"]}


def test_the_head_takes_no_replicas() -> None:
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.get("groupName", "head"))
def test_every_node_has_the_flags_that_ray_reads_when_it_is_imported(group: dict[str, Any]) -> None:
    flags = {entry["name"]: entry["value"] for entry in container(group)["env"]}
    assert all(isinstance(value, str) for value in flags.values())
    machine = {"RAY_SERVE_HAPROXY_NBTHREAD", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"}  # of one node alone
    for name, value in _serve_flags().items():
        if name not in machine:
            assert flags[name] == value
            assert f"{name}={value}" in DOCKERFILE
    assert {port["containerPort"] for port in container(group)["ports"]} >= {served().http_options.port}


def test_its_serve_config_is_one_of_ours_and_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # by other tests, on a machine that has not its GPUs
    (application,) = served().applications
    assert (application.name, application.import_path) == ("raypool", "deployments.app:build")
    assert served().http_options.host == "0.0.0.0"  # pods are reached by their own addresses
    deployments = build_app(build(ServiceConfig.model_validate(application.args)), name="raypool").deployments
    assert [deployment.name for deployment in deployments] == ["engine-bge-base", "router"]


def test_the_worker_groups_have_room_for_what_must_run_and_may_run() -> None:
    (application,) = served().applications
    config = ServiceConfig.model_validate(application.args)
    (model,) = config.models
    (gpus,) = [group for group in CLUSTER["workerGroupSpecs"] if "nvidia.com/gpu" in str(container(group))]
    assert gpus["minReplicas"] >= model.fewest_replicas
    assert gpus["maxReplicas"] >= model.most_replicas
    assert int(container(gpus)["resources"]["limits"]["cpu"]) >= (model.num_cpus or 1)
    assert config.wait_for_nodes_s >= 600  # pods pull their image while the head deploys already


def stages() -> dict[str, str]:
    """Of the image file, what each stage builds on."""
    return {name: base for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)}


def test_the_images_of_the_manifest_are_targets_of_the_image_file() -> None:
    targets = {container(group)["image"].removeprefix("raypool:") for group in GROUPS}
    assert targets == {"cpu", "cuda"}
    assert targets <= {*stages()}


def test_every_stage_builds_on_the_python_that_is_tested_or_on_a_stage_before_it() -> None:
    known = {"python:3.11-slim-bookworm"}
    for name, base in stages().items():
        assert base in known
        known.add(name)


def test_what_the_image_copies_is_there_and_reaches_the_build() -> None:
    sources = {
        source for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE) for source in shlex.split(line)[:-1]
    }
    assert {"pooling", "cluster", "deployments", "pyproject.toml", "constraints.txt"} <= sources
    assert all((ROOT / source).exists() for source in sources)
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert sources == let_in
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {project["project"]["readme"], *project["project"]["license-files"]}  # the build reads them
    assert needed <= sources


@pytest.mark.parametrize("command", re.findall(r"^CMD (.+)$", DOCKERFILE, re.MULTILINE))
def test_what_the_image_starts_is_a_command_of_ours_with_a_config_that_is_there(command: str) -> None:
    from deployments.cli import _parser

    program, *arguments = yaml.safe_load(command)
    assert program in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert (ROOT / _parser().parse_args(arguments).target).is_file()


def test_every_line_of_the_image_file_is_an_instruction_it_may_have() -> None:
    lines = re.sub(r"\\\n", " ", DOCKERFILE).splitlines()
    instructions = {line.split()[0] for line in lines if line and not line.startswith("#")}
    assert instructions <= {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert lines[-1].startswith("CMD")
    assert "USER raypool" in DOCKERFILE
