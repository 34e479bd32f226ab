"""The command `raypool`: serve models, run one over files, or say what a model is."""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import get_args

from cluster.supervisor import supervised
from deployments import commands
from deployments.job_flags import add_jobs
from pooling import __version__
from pooling.config import ModelSpec, Quantization, Task
from pooling.errors import ConfigError, PoolingError, SourceError

_FAILED, _MISTAKEN, _INTERRUPTED = 1, 2, 130
_SOURCE = "a directory, a hub id such as org/name, or python:package/dir inside an installed package"
_TASKS = ("auto", *get_args(Task))
_DTYPES = get_args(ModelSpec.model_fields["dtype"].annotation)
_QUANTIZATIONS = get_args(Quantization)
_DEVICES = get_args(ModelSpec.model_fields["device"].annotation)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, 1 for a failure, 2 for a mistake in what was asked, 130 for an interruption."""
    arguments = _parser().parse_args(argv)
    return supervised(lambda: _run(arguments)) if arguments.starts_ray else _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    try:
        with _stop_signals():
            arguments.run(arguments)
    except PoolingError as error:
        print(f"raypool: {error.detail}", file=sys.stderr)
        return _MISTAKEN if isinstance(error, ConfigError | SourceError) else _FAILED
    except KeyboardInterrupt:
        if arguments.run is commands.pool_files:
            print("raypool: broken off; the same command goes on where this one stopped", file=sys.stderr)
        return _INTERRUPTED
    return 0


@contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, and neither breaks off its tidying up."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="raypool", description="Pooling models, served and run in bulk on Ray.")
    parser.add_argument("--version", action="version", version=f"raypool {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(subparsers.add_parser("serve", help="serve a config file or one model over HTTP until Ctrl-C"))
    add_jobs(subparsers, _add_model_flags, _SOURCE)
    _add_inspect(subparsers.add_parser("inspect", help="say what a model is and does, without reading its weights"))
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=commands.serve, starts_ray=True)
    parser.add_argument("target", metavar="CONFIG_OR_MODEL", help=f"a Serve config file (.yaml), or a model: {_SOURCE}")
    parser.add_argument("--host", help="address to listen on; default 127.0.0.1, or what the config file says")
    parser.add_argument("--port", type=int, help="port to listen on; default 8000, or what the config file says")
    model = parser.add_argument_group("for a model (a config file says these itself)")
    _add_model_flags(model)
    model.add_argument("--task", choices=_TASKS, help="what a request that names no task gets")
    model.add_argument("--served-model-name", metavar="NAME", help="what clients send as `model`; default: the model")
    model.add_argument("--replicas", type=int, help="engine replicas; default 1")
    model.add_argument("--api-key", action="append", metavar="KEY", help="a key clients must send; may be repeated")
    model.add_argument(
        "--allowed-media-domains",
        nargs="+",
        action="extend",
        metavar="DOMAIN",
        help="hosts that images may be fetched from, such as images.example.com or *.example.com; default: none",
    )


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=commands.inspect, starts_ray=False)
    parser.add_argument("model", metavar="MODEL", help=_SOURCE)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--task", choices=_TASKS, help="which task is to be the default one")
    _add_model_flags(parser)


def _add_model_flags(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--dtype", choices=_DTYPES, help="default auto: bfloat16 where the hardware is fast at it")
    parser.add_argument("--device", choices=_DEVICES, help="default auto: CUDA where there is a GPU")
    parser.add_argument("--tensor-parallel-size", type=int, metavar="N", help="devices that share one replica")
    parser.add_argument(
        "--max-model-len", type=int, metavar="TOKENS", help="longest input; default: what the model takes"
    )
    parser.add_argument("--max-batch-tokens", type=int, metavar="TOKENS", help="tokens of one forward pass")
    parser.add_argument(
        "--enforce-eager", action="store_true", default=None, help="on a GPU, run small steps without CUDA graphs"
    )
    parser.add_argument(
        "--quantization", choices=_QUANTIZATIONS, help="8-bit linear layers: int8 on a CPU with VNNI, fp8 on a GPU"
    )
    parser.add_argument(
        "--override-pooler-config",
        "--pooler-config",
        dest="override_pooler_config",
        metavar="JSON",
        help="""e.g. '{"pooling_type": "MEAN"}'; what is left out keeps the model's own choice""",
    )
    parser.add_argument(
        "--hf-overrides",
        "--hf_overrides",
        dest="hf_overrides",
        metavar="JSON",
        help="""of a causal language model that scores, e.g. '{"classifier_from_token": ["no", "yes"]}'""",
    )
    parser.add_argument(
        "--limit-mm-per-prompt", metavar="JSON", help="""how many images an input may have; default '{"image": 8}'"""
    )
    parser.add_argument("--chat-template", metavar="JINJA", help="how a pair of texts reads; a template or its file")
    parser.add_argument(
        "--instruction", metavar="TEXT", help="what a template tells the model where a request does not"
    )
