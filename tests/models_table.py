"""The tables of docs/models.md, from the checkpoints that are compared. Write them: python -m tests.models_table"""

from pathlib import Path

from pooling.parallel.plans import obstacle_to
from tests.checkpoints import EVERY
from tests.checkpoints.images import CLASSIFIERS, DECODERS, RETRIEVING, TOWERS, WITH_IMAGES
from tests.headed import Headed

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
_APART = "a text or an image"
# What the tests of each kind compare, and what an input of it is.
_WITH_IMAGES = (
    (TOWERS, _APART, "embed, score"),
    (CLASSIFIERS, "an image", "classify"),
    (DECODERS, "texts and images in order", "embed, token_embed"),
    (RETRIEVING, _APART, "token_embed, score"),
)


def table() -> str:
    """One row for each checkpoint: what is compared with transformers, and how the engine runs it."""
    rows = ["| checkpoint | `model_type` | compared | path | pooling | tensor parallel |", "|---|---|---|---|---|---|"]
    for name, family in EVERY.items():
        config = family.build()[0].config
        compared = ["embed", "token_embed"]
        compared += ["classify"] if Headed(name, "sequence").exists() else []
        compared += ["token_classify"] if Headed(name, "token").exists() else []
        kind = family.edit.get("model_type", config.model_type)
        pooling = family.expected_pooling + ("" if family.pooling is None else " (its files)")
        split = "yes" if obstacle_to(2, config, family.path == "packed") is None else "no"
        rows.append(f"| {name} | {kind} | {', '.join(compared)} | {family.path} | {pooling} | {split} |")
    return "\n".join(rows) + "\n"


def table_of_images() -> str:
    rows = ["| checkpoint | `model_type` | an input is | compared | tensor parallel |", "|---|---|---|---|---|"]
    for name, checkpoint in WITH_IMAGES.items():
        config = checkpoint.build()[0].config
        read, compared = next((read, compared) for kind, read, compared in _WITH_IMAGES if name in kind)
        compared += ", score of pairs" if config.model_type == "qwen3_vl" else ""
        split = "yes" if obstacle_to(2, config, True) is None else "no"
        rows.append(f"| {name} | {config.model_type} | {read} | {compared} | {split} |")
    return "\n".join(rows) + "\n"


def with_tables(document: str) -> str:
    return _put("images", table_of_images(), _put("families", table(), document))


def _put(name: str, rows: str, document: str) -> str:
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, rest = document.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{rows}\n{end}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
