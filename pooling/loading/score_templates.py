"""Score templates: how a query and a document become the one text that a model judges."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PieceTemplate:
    """Pieces of text, each tokenised apart and without special tokens, as the authors' own code does.

    `{query}`, `{document}`, `{instruction}` and `{preface}` are filled in; preface
    is itself empty where no instruction is given. head and tail are kept whole
    whatever an input is cut to. body loses its end; before that, a query that is a
    piece of its own gives way to the document where it is over three quarters.
    """

    head: tuple[str, ...]
    body: tuple[str, ...]
    tail: tuple[str, ...]
    instruction: str = ""
    preface: str = ""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A Jinja template over a pair's messages, of the roles `query` and `document`; rendered, then tokenised whole.

    source None means the tokenizer's own. An instruction is a first message of the
    role `system`, and the variable `instruction`. structured: contents are lists
    of typed parts. special: the tokenizer adds its special tokens, as in vLLM,
    or not, as in Sentence Transformers. variables: what else the template is given.
    """

    source: str | None
    structured: bool = False
    special: bool = False
    instruction: str = ""
    variables: dict[str, Any] = field(default_factory=dict)


Template = PieceTemplate | ChatTemplate


@dataclass(frozen=True, slots=True)
class Preset:
    """A published family of rerankers: of its tokens, two mean false and true, one is the answer itself."""

    tokens: tuple[str, ...]
    template: Template


# Source: the model card of Qwen/Qwen3-Reranker-0.6B (format_instruction, process_inputs, compute_logits).
QWEN3_RERANKER = Preset(
    ("no", "yes"),
    PieceTemplate(
        head=(
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        ),
        body=("<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}",),
        tail=("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",),
        instruction="Given a web search query, retrieve relevant passages that answer the query",
    ),
)
# Source: mixedbread-ai/mxbai-rerank, mxbai_rerank/mxbai_rerank_v2.py (prepare_inputs, forward). Its rank() shows the
# difference of the two logits; the default here is vLLM's, the sigmoid of it, and use_activation: false is theirs.
MXBAI_RERANK_V2 = Preset(
    ("0", "1"),
    PieceTemplate(
        head=(
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n",
        ),
        body=("{preface}query: {query}", "\n", "document: {document}"),
        tail=(
            "\n",
            "You are a search relevance expert who evaluates how well documents match search queries. For each "
            "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
            "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        preface="instruction: {instruction}\n",
    ),
)
# Source: FlagOpen/FlagEmbedding, FlagEmbedding/inference/reranker/decoder_only/base.py (BaseLLMReranker). Its scores
# are logits unless normalize=True; the default here is vLLM's, their sigmoid, and use_activation: false is the logit.
BGE_RERANKER_V2_GEMMA = Preset(
    ("Yes",),
    PieceTemplate(
        head=("<bos>",),
        body=("A: {query}", "\n", "B: {document}"),
        tail=("\n", "{instruction}"),
        instruction="Given a query A and a passage B, determine whether the passage contains an answer to the query by "
        "providing a prediction of either 'Yes' or 'No'.",
    ),
)
# Source: QwenLM/Qwen3-VL-Embedding, src/models/qwen3_vl_reranker.py (format_mm_instruction, format_mm_content), which
# puts an image of a query or a document before its text; here parts keep their order.
QWEN3_VL_RERANKER = Preset(
    ("no", "yes"),
    PieceTemplate(
        head=(
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        ),
        body=("<Instruct>: {instruction}<Query>:{query}\n<Document>:{document}",),
        tail=("<|im_end|>\n<|im_start|>assistant\n",),
        instruction="Given a search query, retrieve relevant candidates that answer the query.",
    ),
)
# By the model_type of the causal language model that they were trained from.
PRESETS = {
    "qwen3_vl": QWEN3_VL_RERANKER,
    "qwen3": QWEN3_RERANKER,
    "qwen2": MXBAI_RERANK_V2,
    "gemma": BGE_RERANKER_V2_GEMMA,
}
# Query and document one behind the other: what vLLM reads where it is given tokens and no template.
CONCATENATED = ChatTemplate("{{ messages[-2].content }}{{ messages[-1].content }}", special=True)
