"""The table of docs/models.md, from the checkpoints that the tests compare. Write it: python -m tests.models_table"""

from pathlib import Path

from pooling.parallel.plans import obstacle_to
from tests.checkpoints import EVERY
from tests.headed import Headed

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
_BEGIN, _END = "<!-- families: begin -->\n", "<!-- families: end -->\n"


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


def with_table(document: str) -> str:
    before, rest = document.split(_BEGIN)
    _, after = rest.split(_END)
    return f"{before}{_BEGIN}\n{table()}\n{_END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
