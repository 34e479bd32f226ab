"""What the packages may import, and what an installation holds."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pooling", "cluster", "deployments")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# deployments -> cluster -> pooling, and what must not be seen from each.
FORBIDDEN = {
    "pooling": ("ray", "fastapi", "starlette", "uvicorn", "cluster", "deployments"),
    "cluster": ("ray.serve", "fastapi", "starlette", "uvicorn", "deployments"),
    "deployments": (),
}


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import of a file, those inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import hides which way it points"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def wrong_way(package: str, directory: Path) -> list[str]:
    return [
        f"{file.relative_to(directory)}:{line} imports {name}"
        for file in sorted(directory.rglob("*.py"))
        for line, name in imports(file)
        if any(below(name, forbidden) for forbidden in FORBIDDEN[package])
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    assert list((ROOT / package).rglob("*.py"))
    assert wrong_way(package, ROOT / package) == []


@pytest.mark.parametrize(
    "line",
    ["import ray", "from ray import serve", "import ray.serve.handle", "from deployments import app", "import fastapi"],
)
def test_a_wrong_import_would_be_found_even_inside_a_function(tmp_path: Path, line: str) -> None:
    (tmp_path / "module.py").write_text(f"def late():\n    {line}\n")
    assert len(wrong_way("pooling", tmp_path)) == 1


def test_cluster_may_use_ray_but_not_serve(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("import ray\nfrom ray.data import Dataset\nfrom ray import serve\n")
    assert wrong_way("cluster", tmp_path) == ["module.py:3 imports ray.serve"]


def test_every_foreign_import_is_a_declared_dependency() -> None:
    declared = {normal(re.split(r"[\[<>=;~! ]", item)[0]) for item in PROJECT["dependencies"]}
    homes = packages_distributions()
    used = {
        name.partition(".")[0]
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for _, name in imports(file)
    }
    foreign = used - set(sys.stdlib_module_names) - set(PACKAGES)
    assert foreign
    missing = {
        name: homes.get(name) for name in foreign if not declared & {normal(home) for home in homes.get(name, [])}
    }
    assert missing == {}


def test_every_declared_dependency_is_pinned_for_the_test_run() -> None:
    pinned = {
        normal(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    extras = [item for items in PROJECT["optional-dependencies"].values() for item in items]
    wanted = {normal(re.split(r"[\[<>=;~! ]", item)[0]) for item in PROJECT["dependencies"] + extras}
    assert wanted - pinned == set()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_version_is_said_once_and_everywhere_the_same() -> None:
    from pooling import __version__

    assert PROJECT["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("module", "unseen"), [("pooling.intake", "ray"), ("pooling.errors", "torch"), ("deployments.cli", "ray")]
)
def test_a_light_module_does_not_pay_for_a_heavy_one(module: str, unseen: str) -> None:
    code = f"import sys, {module}; print({unseen!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
