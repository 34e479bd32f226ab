"""read_pairs(): pairs of a query and a document -> token ids, by the model's template where it has one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers.utils.chat_template_utils import render_jinja_template

from pooling.errors import ConfigError, InvalidRequest
from pooling.loading.score_templates import ChatTemplate, PieceTemplate, Template
from pooling.loading.tokenizer import TextTokenizer
from pooling.request import Ids, Pair

# Two pairs without a token in common: what their renderings share at the end is the template's own.
_PROBES: tuple[Pair, Pair] = (("0", "0"), ("1 2 3 4", "1 2 3 4"))


def read_pairs(
    tokenizer: TextTokenizer,
    template: Template,
    pairs: Sequence[Pair],
    limit: int | None,
    most: tuple[int | None, int | None],
    instruction: str | None,
) -> list[Ids]:
    """Each pair as one input.

    limit: tokens of the whole; what the template puts before and after the texts
    is kept whole. most: tokens of the query and of the document. Raises
    InvalidRequest if the template alone has more tokens than the limit.
    """
    sides = ([pair[side] for pair in pairs] for side in (0, 1))
    cut = [_within(tokenizer, texts, limit, bound) for texts, bound in zip(sides, most, strict=True)]
    pairs = list(zip(*cut, strict=True))
    told = template.instruction if instruction is None else instruction
    if isinstance(template, PieceTemplate):
        return _by_pieces(tokenizer, template, pairs, limit, told)
    return _rendered(tokenizer, template, pairs, limit, told)


def check_template(tokenizer: TextTokenizer, template: Template | None) -> None:
    """Raises ConfigError if a template is missing or leaves one of the texts out, which would make scores random."""
    if not isinstance(template, ChatTemplate):
        return
    same, *changed = (_render(tokenizer, template, pair, "") for pair in (("a", "b"), ("c", "b"), ("a", "c")))
    for role, text in zip(("query", "document"), changed, strict=True):
        if text == same:
            raise ConfigError(
                f"the chat template leaves the {role} out; it is given two messages, of the roles query and document"
            )


def _within(tokenizer: TextTokenizer, texts: list[str], limit: int | None, most: int | None) -> list[str]:
    """Texts of at most `most` tokens; and no longer than the limit can leave anything of."""
    if most is not None:
        short = {text: tokenizer.leading(text, most) for text in set(texts)}
    elif limit is not None:
        short = {text: tokenizer.shorten(text, limit, "right") for text in set(texts)}
    else:
        return texts
    return [short[text] for text in texts]


def _by_pieces(
    tokenizer: TextTokenizer, template: PieceTemplate, pairs: list[Pair], limit: int | None, instruction: str
) -> list[Ids]:
    preface = template.preface.format(instruction=instruction) if instruction else ""
    fixed = {"instruction": instruction, "preface": preface}
    head, tail = (
        np.concatenate(tokenizer.encode([piece.format(**fixed) for piece in pieces], special=False))
        for pieces in (template.head, template.tail)
    )
    texts = [[piece.format(query=q, document=d, **fixed) for piece in template.body] for q, d in pairs]
    # A query that many documents share is tokenised once.
    distinct = list(dict.fromkeys(piece for pieces in texts for piece in pieces))
    ids_of = dict(zip(distinct, tokenizer.encode(distinct, special=False), strict=True))
    room = None if limit is None else _room(limit, len(head) + len(tail))
    answers = []
    for pieces in texts:
        query, *rest = (ids_of[piece] for piece in pieces)
        if room is not None and rest:
            query = query[: room * 3 // 4]
        answers.append(np.concatenate([head, np.concatenate([query, *rest])[:room], tail]))
    return answers


def _rendered(
    tokenizer: TextTokenizer, template: ChatTemplate, pairs: list[Pair], limit: int | None, instruction: str
) -> list[Ids]:
    texts = [_render(tokenizer, template, pair, instruction) for pair in pairs]
    encoded = tokenizer.encode(texts, template.special)
    if limit is None or all(len(ids) <= limit for ids in encoded):
        return encoded
    tail = _tail(
        *tokenizer.encode([_render(tokenizer, template, probe, instruction) for probe in _PROBES], template.special)
    )
    room = _room(limit, len(tail))
    return [ids if len(ids) <= limit else np.concatenate([ids[:room], tail]) for ids in encoded]


def _render(tokenizer: TextTokenizer, template: ChatTemplate, pair: Pair, instruction: str) -> str:
    source = template.source or tokenizer.chat_template
    if source is None:
        raise ConfigError(
            "the model reads pairs as chat messages, but its tokenizer has no chat template; set chat_template"
        )
    said = [("query", pair[0]), ("document", pair[1])]
    told = {"instruction": instruction} if instruction else {}
    if told:
        said.insert(0, ("system", instruction))
    messages = [_message(template, role, text) for role, text in said]
    try:
        answer: Any = render_jinja_template(
            [messages], chat_template=source, **{**tokenizer.named_tokens, **template.variables, **told}
        )
    except Exception as error:  # whatever a template raises, it is the template that is wrong
        raise ConfigError(f"the chat template fails: {str(error).splitlines()[0] if str(error) else error!r}") from None
    return str(answer[0][0])  # the texts, and where an assistant speaks


def _message(template: ChatTemplate, role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}] if template.structured else text}


def _tail(first: Ids, second: Ids) -> Ids:
    """The tokens in which both end."""
    shorter = min(len(first), len(second))
    same = first[len(first) - shorter :] == second[len(second) - shorter :]
    count = shorter if same.all() else int(np.argmin(same[::-1]))
    return first[len(first) - count :]


def _room(limit: int, template: int) -> int:
    if template >= limit:
        raise InvalidRequest(
            f"truncate_prompt_tokens is {limit}, but the template around a pair has {template} tokens, which are kept",
            "truncate_prompt_tokens",
        )
    return limit - template
