"""The commands that run a model over files: raypool embed, classify, score and reward."""

import argparse
from collections.abc import Callable

from deployments import commands

_INPUT_FORMATS = ("parquet", "jsonl", "csv", "text")
_OUTPUT_FORMATS = ("parquet", "jsonl", "lance")
_TASKS = {
    "embed": "embed a column of texts or pictures in files",
    "classify": "classify a column of texts or pictures in files",
    "score": "score a column of documents against a column of queries",
    "reward": "reward every token, or step, of a column of texts in files",
}
_EPILOG = (
    "Broken off, the same command goes on where it stopped. A row that has no answer has the reason in the error "
    "column. Runs on the cluster that RAY_ADDRESS names, or on this machine."
)


def add_jobs(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
    add_model_flags: Callable[[argparse._ActionsContainer], None],
    source: str,
) -> None:
    """source: what a model may be named by, in words."""
    for task, what in _TASKS.items():
        parser = subparsers.add_parser(task, help=what, description=f"raypool {task}: {what}.", epilog=_EPILOG)
        parser.set_defaults(run=commands.pool_files, starts_ray=True, task=task)
        _add_files(parser)
        _COLUMNS[task](parser)
        _add_asked(parser, task)
        _add_resources(parser)
        model = parser.add_argument_group("the model")
        model.add_argument("--model", required=True, help=source)
        add_model_flags(model)


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="INPUT", help="a file or a directory of files: Parquet, JSON lines, CSV, text")
    parser.add_argument("--output", required=True, metavar="DIR", help="directory to write to; new or empty")
    parser.add_argument("--input-format", choices=_INPUT_FORMATS, help="default: by the ending of the names")
    parser.add_argument("--output-format", choices=_OUTPUT_FORMATS, default="parquet", help="default parquet")
    parser.add_argument("--error-column", default="error", help="why a row has no answer; default error")


def _add_column(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--column", default="text", help="the column with the texts; default text")


def _add_image_column(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image-column",
        metavar="NAME",
        help="read the pictures of this column instead of texts: bytes, paths, or structs of both as Hugging Face's "
        "datasets store them",
    )


def _add_embed_columns(parser: argparse.ArgumentParser) -> None:
    _add_column(parser)
    _add_image_column(parser)
    parser.add_argument("--output-column", help="the column for the vectors; default embedding")


def _add_classify_columns(parser: argparse.ArgumentParser) -> None:
    _add_column(parser)
    _add_image_column(parser)
    parser.add_argument("--output-column", help="the column for the probabilities; default probs")
    parser.add_argument("--label-column", default="label", help="the column for the likeliest label; default label")


def _add_score_columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--query-column", default="query", help="the column with the queries; default query")
    parser.add_argument("--document-column", default="document", help="that with the documents; default document")
    parser.add_argument("--output-column", help="the column for the scores; default score")


def _add_reward_columns(parser: argparse.ArgumentParser) -> None:
    _add_column(parser)
    parser.add_argument("--output-column", help="the column for the rewards, a list of rows a text; default reward")


_COLUMNS = {
    "embed": _add_embed_columns,
    "classify": _add_classify_columns,
    "score": _add_score_columns,
    "reward": _add_reward_columns,
}


def _add_asked(parser: argparse.ArgumentParser, task: str) -> None:
    parser.add_argument("--truncate", action="store_true", help="cut over-long texts instead of refusing them")
    activation = ["--use-activation", *(["--normalize"] if task == "embed" else [])]
    parser.add_argument(
        *activation, dest="use_activation", action=argparse.BooleanOptionalAction, help="default: as the model says"
    )
    if task == "embed":
        parser.add_argument("--dimensions", type=int, help="keep so many leading components (Matryoshka models)")
    if task in ("embed", "score"):
        parser.add_argument("--prompt-name", help="the model's prompt to put before each text, or each query of a pair")


def _add_resources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", type=int, default=2048, help="rows handed to an engine at once, and of each file; default 2048"
    )
    parser.add_argument("--concurrency", type=int, default=1, help="engines that work at once; default 1")
    parser.add_argument(
        "--num-cpus", type=float, help="CPUs of each engine, shared by its ranks; default: all, shared evenly"
    )
    parser.add_argument(
        "--num-gpus", type=float, help="GPUs of each engine; default one for each rank where the cluster has any"
    )
