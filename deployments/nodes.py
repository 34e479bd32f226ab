"""refuse_unequal_nodes(): a cluster whose nodes would answer differently, or not at all, is said before it serves."""

from collections import Counter
from collections.abc import Sequence

from cluster.survey import NodeFacts, survey
from deployments.config import ServiceConfig
from pooling.errors import ConfigError, StartupError


def refuse_unequal_nodes(service: ServiceConfig) -> None:
    """Raises StartupError naming the node that has other versions, no files of a model or other files of it.

    One small task for each node; none where there is one node.
    """
    judge(survey([model.source for model in service.models]))


def judge(nodes: Sequence[NodeFacts]) -> None:
    """Raises what is wrong with the nodes as they are known."""
    for node in nodes:
        if node.versions is None:
            raise StartupError(f"raypool cannot be loaded on node {node.node}; install the same version on every node")
    _refuse_other_versions([(node.node, node.versions) for node in nodes if node.versions is not None])
    for source in {source: None for node in nodes for source in node.files}:
        _refuse_other_files(source, [(node.node, *node.files[source]) for node in nodes])


def _refuse_other_versions(nodes: Sequence[tuple[str, dict[str, str]]]) -> None:
    for package in nodes[0][1] if nodes else ():
        most, _ = Counter(versions[package] for _, versions in nodes).most_common(1)[0]
        for node, versions in nodes:
            if versions[package] != most:
                raise StartupError(
                    f"node {node} has {package} {versions[package]}, but others have {most}; install the same on all, "
                    "or the vectors of a text would depend on the node that it comes to"
                )


def _refuse_other_files(source: str, nodes: Sequence[tuple[str, str, str]]) -> None:
    for node, _, wrong in nodes:
        if wrong:
            raise ConfigError(f"on node {node}: {wrong}; it must be on every node")
    most, _ = Counter(digest for _, digest, _ in nodes).most_common(1)[0]
    for node, digest, _ in nodes:
        if digest != most:
            raise ConfigError(
                f"the files of model source {source!r} on node {node} have other names or sizes than those on other "
                "nodes; copy the same files to every node"
            )
