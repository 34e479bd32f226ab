"""What is wrong with a cluster whose nodes are not alike, and that the right node is named."""

from pathlib import Path

import pytest

from cluster.survey import NodeFacts, look
from deployments.nodes import judge
from pooling.errors import ConfigError, StartupError
from pooling.loading.source import is_local
from tests.checkpoints import MINILM

VERSIONS, FILES = look([MINILM])


def nodes(odd: NodeFacts) -> list[NodeFacts]:
    return [NodeFacts("first", VERSIONS, FILES), odd, NodeFacts("third", VERSIONS, FILES)]


def test_equal_nodes_pass() -> None:
    assert {"python", "raypool", "torch", "transformers"} <= {*VERSIONS}
    judge(nodes(NodeFacts("second", VERSIONS, FILES)))
    judge([])


@pytest.mark.parametrize("package", ["raypool", "torch", "transformers"])
def test_a_node_with_another_version_is_named(package: str) -> None:
    odd = NodeFacts("second", {**VERSIONS, package: "9.9"}, FILES)
    with pytest.raises(StartupError, match=f"node second has {package} 9.9, but others have {VERSIONS[package]}"):
        judge(nodes(odd))


def test_a_node_without_raypool_is_named() -> None:
    with pytest.raises(StartupError, match="raypool cannot be loaded on node second"):
        judge(nodes(NodeFacts("second", None, {})))


def test_a_node_without_the_weights_is_named() -> None:
    _, missing = look(["/no/such/dir"])
    odd = [NodeFacts("first", VERSIONS, {"/no/such/dir": ("digest", "")}), NodeFacts("second", VERSIONS, missing)]
    with pytest.raises(ConfigError, match="on node second: model source '/no/such/dir' does not exist"):
        judge(odd)


def test_a_node_with_other_weights_is_named() -> None:
    odd = NodeFacts("second", VERSIONS, {MINILM: ("another digest", "")})
    with pytest.raises(ConfigError, match=f"the files of model source '{MINILM}' on node second have other names or"):
        judge(nodes(odd))


def test_files_that_are_not_the_models_make_no_difference(tmp_path: Path) -> None:
    for node in ("first", "second"):
        for name in ("model.safetensors", f".cache/huggingface/{node}.metadata", f"__pycache__/{node}.pyc", ".hidden"):
            file = tmp_path / node / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("same" if name == "model.safetensors" else node)
    first, second = (look([str(tmp_path / node)])[1].popitem()[1] for node in ("first", "second"))
    assert first == second
    (tmp_path / "second" / "model.safetensors").write_text("other")
    assert look([str(tmp_path / "second")])[1].popitem()[1] != first


def test_files_that_cannot_be_read_are_not_taken_for_a_missing_raypool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rglob", refuse)  # root, as whom tests may run, reads everything
    versions, files = look([str(tmp_path)])
    with pytest.raises(
        ConfigError, match=r"on node second: the files of .* cannot be read: PermissionError: Permission"
    ):
        judge([NodeFacts("second", versions, files)])


@pytest.mark.parametrize(
    ("source", "local"),
    [("/no/such/dir", True), ("./gone", True), (MINILM, True), ("tests", True), ("org/name", False), ("name", False)],
)
def test_only_what_is_read_from_a_disk_must_be_on_every_node(source: str, local: bool) -> None:
    assert is_local(source) == local
