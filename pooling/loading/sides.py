"""sides_of(): how a multi-vector model reads queries and documents, in token ids."""

from transformers import PreTrainedConfig

from pooling.errors import CheckpointError
from pooling.loading.card import InputType, Side
from pooling.loading.multi_vector import Expansion, MultiVector
from pooling.loading.tokenizer import TextTokenizer


def sides_of(
    files: MultiVector, tokenizer: TextTokenizer, config: PreTrainedConfig, max_model_len: int
) -> dict[InputType, Side]:
    """Raises CheckpointError for an expansion that the tokenizer or the model cannot have."""
    skipped = _ids(files.mask.skiplist_words, tokenizer)
    tasks, kept = files.mask.skiplist_tasks, files.mask.keep_only_token_ids
    query = Side(files.query_length, dropped_ids=skipped if "query" in tasks else ())
    if files.expansion is not None:
        query = _expanding(query, files.expansion, tokenizer, config, max_model_len)
    document = Side(files.document_length, dropped_ids=skipped if "document" in tasks else (), kept_ids=kept)
    return {"query": query, "document": document}


def _ids(words: tuple[str, ...], tokenizer: TextTokenizer) -> tuple[int, ...]:
    """Of the words that are one token; the others are never seen as one, so no row could be dropped for them."""
    ids = (tokenizer.id_of(word) for word in words)
    return tuple(id for id in ids if id is not None)


def _expanding(
    query: Side, expansion: Expansion, tokenizer: TextTokenizer, config: PreTrainedConfig, max_model_len: int
) -> Side:
    named = tokenizer.named_ids
    token = tokenizer.id_of(expansion.token) if expansion.token else named.get("mask", named.get("eos"))
    length, most = expansion.length, query.max_tokens
    window = getattr(config, "sliding_window", None)
    limit = min(max_model_len, most or max_model_len)
    if token is None:
        raise CheckpointError(f"queries are filled up with {expansion.token or 'a mask'}, which the tokenizer lacks")
    if tokenizer.padding_side != "right":
        raise CheckpointError(
            "queries are filled up in front, for the tokenizer's padding_side is left; supported is right"
        )
    if length > limit:
        raise CheckpointError(f"queries are filled up to {length} tokens; the model takes at most {limit}")
    if not expansion.attends and window is not None and length > window:
        raise CheckpointError(
            f"queries are filled up to {length} tokens that see the query only, but some layers see {window} tokens to "
            "each side: the last ones would see nothing"
        )
    return Side(
        max_tokens=length if expansion.cuts else most,
        expand_to=length,
        expansion_id=token,
        attends=expansion.attends,
        dropped_ids=query.dropped_ids,
    )
