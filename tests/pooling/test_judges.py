"""Scores of causal language models, against their authors' own steps."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pooling import LLM, PoolingParams
from pooling.errors import InputTooLong, InvalidRequest
from tests.scored import DOCUMENTS, PAIRS, QUERIES, ROUNDING, Scorers, scores, told_apart
from tests.texts import words


class Judge:
    """A causal language model in transformers' own float32, and its authors' steps around it."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = AutoModelForCausalLM.from_pretrained(
            directory, attn_implementation="eager", dtype=torch.float32
        ).eval()

    def tokens(self, text: str, **options: Any) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"])

    def logits(self, ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return self.model(input_ids=torch.tensor([ids])).logits[0, -1]

    def difference(self, ids: list[int], false: str, true: str) -> float:
        logits = self.logits(ids)
        no, yes = (self.tokenizer.convert_tokens_to_ids(token) for token in (false, true))
        return float(logits[yes] - logits[no])


def qwen3_ids(judge: Judge, query: str, document: str, limit: int = 8192, instruction: str | None = None) -> list[int]:
    """The model card of Qwen3-Reranker."""
    prefix = judge.tokens(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    suffix = judge.tokens("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    instruction = instruction or "Given a web search query, retrieve relevant passages that answer the query"
    pair = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    room = limit - len(prefix) - len(suffix)
    return prefix + judge.tokens(pair, truncation="longest_first", max_length=room) + suffix


def mxbai_ids(judge: Judge, query: str, document: str, limit: int = 8192, instruction: str | None = None) -> list[int]:
    """mxbai_rerank_v2.py: each part tokenised apart; the query may have three quarters of what the template leaves."""
    prefix = judge.tokens(
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n"
    )
    task = judge.tokens(
        "You are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
    )
    suffix, separator = judge.tokens("<|im_end|>\n<|im_start|>assistant\n"), judge.tokens("\n")
    room = limit - len(prefix) - len(task) - len(suffix) - len(separator)
    asked = f"query: {query}" if instruction is None else f"instruction: {instruction}\nquery: {query}"
    first = judge.tokens(asked)[: room * 3 // 4]
    second = (separator + judge.tokens(f"document: {document}"))[: room - len(first)]
    return prefix + first + second + separator + task + suffix


def gemma_ids(judge: Judge, query: str, document: str, limit: int = 8192, instruction: str | None = None) -> list[int]:
    """FlagEmbedding's BaseLLMReranker."""
    instruction = instruction or (
        "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing "
        "a prediction of either 'Yes' or 'No'."
    )
    separator, prompt = judge.tokens("\n"), judge.tokens(instruction)
    room = limit - 1 - len(separator) - len(prompt)
    first = judge.tokens(f"A: {query}")[: room * 3 // 4]
    second = (separator + judge.tokens(f"B: {document}"))[: room - len(first)]
    return [judge.tokenizer.bos_token_id, *first, *second, *separator, *prompt]


IDS = {"qwen3-reranker": qwen3_ids, "mxbai": mxbai_ids, "gemma": gemma_ids}


class Reranker:
    def __init__(self, name: str, directory: Path) -> None:
        self.directory, self.ids, self.judge = directory, IDS[name], Judge(directory)
        self.llm = LLM(str(directory), task="score", dtype="float32")
        self.name = name

    def logit(self, ids: list[int]) -> float:
        if self.name == "gemma":
            return float(self.judge.logits(ids)[self.judge.tokenizer.convert_tokens_to_ids("Yes")])
        return self.judge.difference(ids, *(("no", "yes") if self.name == "qwen3-reranker" else ("0", "1")))

    def score(self, query: str, document: str, **options: Any) -> float:
        return float(torch.sigmoid(torch.tensor(self.logit(self.ids(self.judge, query, document, **options)))))


@pytest.fixture(scope="module", params=IDS)
def reranker(request: pytest.FixtureRequest, scorer: Scorers) -> Iterator[Reranker]:
    reranker = Reranker(request.param, scorer(request.param))
    yield reranker
    reranker.llm.close()


def test_a_causal_model_scores_as_its_authors_code(reranker: Reranker) -> None:
    expected = np.array([reranker.score(*pair) for pair in PAIRS])
    assert told_apart(expected)
    answers = reranker.llm.score(QUERIES, DOCUMENTS, use_tqdm=False)
    assert [answer.prompt_token_ids for answer in answers] == [reranker.ids(reranker.judge, *pair) for pair in PAIRS]
    assert np.abs([answer.outputs.score for answer in answers] - expected).max() < ROUNDING
    assert reranker.llm.card.tasks == ("score", "classify")


def test_without_activation_a_score_is_the_logit_itself(reranker: Reranker) -> None:
    logits = scores(reranker.llm, pooling_params=PoolingParams(use_activation=False))
    expected = np.array([reranker.logit(reranker.ids(reranker.judge, *pair)) for pair in PAIRS])
    assert np.abs(logits - expected).max() < ROUNDING * np.abs(expected).max()


def test_an_instruction_reads_as_in_the_authors_code(reranker: Reranker) -> None:
    expected = np.array([reranker.score(*pair, instruction="find code") for pair in PAIRS])
    assert np.abs(scores(reranker.llm, instruction="find code") - expected).max() < ROUNDING
    assert np.abs(scores(reranker.llm) - expected).max() > 0.01
    with LLM(str(reranker.directory), task="score", dtype="float32", instruction="find code") as llm:
        assert np.abs(scores(llm) - expected).max() < ROUNDING


def test_a_cut_takes_from_the_texts_and_leaves_the_template(reranker: Reranker) -> None:
    around = len(reranker.ids(reranker.judge, "", ""))
    for room in (8, 21, 40, 90):
        limit = around + room
        cut = {"truncate_prompt_tokens": limit}
        for pair in PAIRS:
            (answer,) = reranker.llm.score(*pair, use_tqdm=False, tokenization_kwargs=cut)
            assert answer.prompt_token_ids == reranker.ids(reranker.judge, *pair, limit=limit)
            assert answer.outputs.score == pytest.approx(reranker.score(*pair, limit=limit), abs=ROUNDING)
    with pytest.raises(InvalidRequest, match="truncate_prompt_tokens is 5, but the template around a pair has"):
        reranker.llm.score("a", "b", tokenization_kwargs={"truncate_prompt_tokens": 5})
    with pytest.raises(InputTooLong):
        reranker.llm.score(words(600), words(600))


def test_max_tokens_per_query_and_doc_cut_the_texts_before_the_template(reranker: Reranker) -> None:
    (answer,) = reranker.llm.score(
        words(30), words(50), use_tqdm=False, tokenization_kwargs={"max_tokens_per_query": 4, "max_tokens_per_doc": 9}
    )
    assert answer.prompt_token_ids == reranker.ids(reranker.judge, words(4), words(9))


def test_a_text_alone_is_classified_without_a_template(reranker: Reranker) -> None:
    """A caller that has the whole prompt already."""
    ids = reranker.ids(reranker.judge, *PAIRS[0])
    (answer,) = reranker.llm.classify([ids], use_tqdm=False)
    assert answer.outputs.probs == [pytest.approx(reranker.score(*PAIRS[0]), abs=ROUNDING)]


def test_bfloat16_scores_stay_close(reranker: Reranker) -> None:
    expected = np.array([reranker.score(*pair) for pair in PAIRS])
    with LLM(str(reranker.directory), task="score", dtype="bfloat16") as llm:
        assert np.abs(scores(llm) - expected).mean() < 0.05


def test_the_shortcut_of_vllm_means_the_same(scorer: Scorers) -> None:
    """Its settings for the original Qwen3-Reranker, without a task."""
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        "is_original_qwen3_reranker": True,
    }
    with LLM(str(scorer("qwen3-reranker")), task="score", dtype="float32") as llm:
        expected = scores(llm)
    for settings in (overrides, {"is_original_qwen3_reranker": True}, {"classifier_from_token": ["no", "yes"]}):
        with LLM(str(scorer("qwen3-reranker")), dtype="float32", hf_overrides=settings) as llm:
            assert np.abs(scores(llm) - expected).max() < ROUNDING
            assert llm.card.labels == ("yes",)


def test_tokens_of_ones_own_and_no_template_join_the_texts(scorer: Scorers) -> None:
    judge = Judge(scorer("gemma2"))
    override = {"classifier_from_token": ["a", "e"], "method": "from_2_way_softmax"}
    expected = [judge.difference(judge.tokenizer(q + d)["input_ids"], "a", "e") for q, d in PAIRS]
    assert max(map(abs, expected)) < 4  # the cap of 2 on each logit is felt
    with LLM(str(scorer("gemma2")), dtype="float32", hf_overrides=override) as llm:
        logits = scores(llm, pooling_params=PoolingParams(use_activation=False))
    assert np.abs(logits - expected).max() < 4 * ROUNDING


def test_no_post_processing_has_one_label_for_each_token(scorer: Scorers) -> None:
    judge = Judge(scorer("mxbai"))
    override = {"classifier_from_token": ["2", "0", "1"], "method": "no_post_processing"}
    with LLM(str(scorer("mxbai")), dtype="float32", hf_overrides=override) as llm:
        assert (llm.card.tasks, llm.card.labels) == (("classify",), ("2", "0", "1"))
        answers = llm.classify(DOCUMENTS[:4], use_tqdm=False)
    for text, answer in zip(DOCUMENTS, answers, strict=False):
        logits = judge.logits(judge.tokens(text))
        expected = logits[judge.tokenizer.convert_tokens_to_ids(["2", "0", "1"])].softmax(-1)
        assert np.abs(np.array(answer.outputs.probs) - expected.numpy()).max() < ROUNDING


_VLLM_TEMPLATE = (
    "question:{{ (messages | selectattr('role', 'eq', 'query') | first).content }}\n\n"
    "passage:{{ (messages | selectattr('role', 'eq', 'document') | first).content }}"
)


def test_a_chat_template_reads_as_in_vllm(scorer: Scorers, tmp_path: Path) -> None:
    """For a cross-encoder, too; given as text, as a file, or for one call."""
    (tmp_path / "score.jinja").write_text(_VLLM_TEMPLATE)
    expected = [f"question:{q}\n\npassage:{d}" for q, d in PAIRS]
    tokenizer = AutoTokenizer.from_pretrained(scorer("qwen2-classifier"))
    for template in (_VLLM_TEMPLATE, str(tmp_path / "score.jinja")):
        with LLM(str(scorer("qwen2-classifier")), dtype="float32", chat_template=template) as llm:
            answers = llm.score(QUERIES, DOCUMENTS, use_tqdm=False)
            assert [answer.prompt_token_ids for answer in answers] == [
                tokenizer(text)["input_ids"] for text in expected
            ]
    with LLM(str(scorer("qwen2-classifier")), dtype="float32") as llm:
        once = llm.score(QUERIES, DOCUMENTS, use_tqdm=False, chat_template=_VLLM_TEMPLATE)
        assert [answer.prompt_token_ids for answer in once] == [answer.prompt_token_ids for answer in answers]
        assert scores(llm)[0] != once[0].outputs.score


def test_an_output_layer_beside_tied_weights_is_taken_as_transformers_does(scorer: Scorers, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(scorer("qwen3-reranker"), tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    judge = Judge(tmp_path)
    expected = [judge.difference(qwen3_ids(judge, *pair), "no", "yes") for pair in PAIRS]
    with LLM(str(tmp_path), task="score", dtype="float32") as llm:
        logits = scores(llm, pooling_params=PoolingParams(use_activation=False))
    assert np.abs(logits - expected).max() < ROUNDING * np.abs(expected).max()
