"""What is wrong with a cluster whose nodes are not alike, and that the right node is named."""

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


@pytest.mark.parametrize(
    ("source", "local"),
    [("/no/such/dir", True), ("./gone", True), (MINILM, True), ("tests", True), ("org/name", False), ("name", False)],
)
def test_only_what_is_read_from_a_disk_must_be_on_every_node(source: str, local: bool) -> None:
    assert is_local(source) == local
