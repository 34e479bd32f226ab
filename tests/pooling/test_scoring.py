"""Scores: cross-encoders against Sentence Transformers, causal language models against their authors' own steps,
embedding models against SentenceTransformer.similarity."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from pooling import LLM, Intake, ModelSpec, PoolingParams, PoolingRequest
from pooling.config import parse_settings
from pooling.errors import CheckpointError, ConfigError, InputTooLong, InvalidRequest, UnsupportedTask
from pooling.loading.describe import describe
from pooling.request import Rows
from tests.scorers import pairs
from tests.texts import words

Scorers = Callable[[str], Path]
PAIRS = pairs()
QUERIES, DOCUMENTS = [query for query, _ in PAIRS], [document for _, document in PAIRS]
# Rounding of a score between 0 and 1.
ROUNDING = 2e-5

logging.set_verbosity_error()


def scores(llm: LLM, first: Any = QUERIES, second: Any = DOCUMENTS, **options: Any) -> Rows:
    return np.array([out.outputs.score for out in llm.score(first, second, use_tqdm=False, **options)], np.float32)


def cross_encoder(directory: Path, **options: Any) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(directory), device="cpu", model_kwargs={"attn_implementation": "eager"}, **options)


def predicted(reference: Any, given: list[tuple[str, str]] = PAIRS, **options: Any) -> Rows:
    """One pair at a time: never padded."""
    return np.array([reference.predict([pair], show_progress_bar=False, **options)[0] for pair in given], np.float32)


def told_apart(values: Rows) -> bool:
    """Whether a wrong answer would show: scores are neither all one half nor at the ends."""
    return float(values.std()) > 0.05 and float(np.mean((values > 0.02) & (values < 0.98))) > 0.5


# Cross-encoders


@pytest.mark.parametrize("name", ["bert", "bert-without-types", "xlmr", "modernbert", "qwen2-classifier"])
def test_a_cross_encoder_scores_as_cross_encoder_predicts(scorer: Scorers, name: str) -> None:
    expected = predicted(cross_encoder(scorer(name)))
    assert told_apart(expected)
    with LLM(str(scorer(name)), dtype="float32") as llm:
        together = scores(llm)
        alone = np.concatenate([scores(llm, *pair) for pair in PAIRS])
        logits = scores(llm, pooling_params=PoolingParams(use_activation=False))
    assert np.abs(together - expected).max() < ROUNDING
    assert np.abs(alone - expected).max() < ROUNDING
    assert np.abs(1 / (1 + np.exp(-logits)) - expected).max() < ROUNDING
    assert np.abs(logits).max() > 1


def test_a_directory_that_cross_encoder_saved_scores_the_same(scorer: Scorers, tmp_path: Path) -> None:
    reference = cross_encoder(
        scorer("bert"), prompts={"ask": "question about ", "find": "find "}, default_prompt_name="ask"
    )
    reference.save_pretrained(str(tmp_path), create_model_card=False)
    assert [module["type"].rsplit(".", 1)[-1] for module in json.loads((tmp_path / "modules.json").read_text())] == [
        "Transformer"
    ]
    with LLM(str(tmp_path), dtype="float32") as llm:
        assert np.abs(scores(llm) - predicted(reference)).max() < ROUNDING
        named = scores(llm, prompt_name="find")
        assert np.abs(named - predicted(reference, prompt_name="find")).max() < ROUNDING
    assert np.abs(named - predicted(reference)).max() > 0.01  # the prompt is heard


@pytest.mark.parametrize(
    ("activation", "file"),
    [
        (torch.nn.Identity, "config_sentence_transformers.json"),
        (torch.nn.Tanh, "config_sentence_transformers.json"),
        (torch.nn.Identity, "sentence_transformers"),
        (torch.nn.Tanh, "sbert_ce_default_activation_function"),
    ],
)
def test_the_activation_is_the_one_the_files_name(
    scorer: Scorers, tmp_path: Path, activation: type[torch.nn.Module], file: str
) -> None:
    named = f"{activation.__module__}.{activation.__name__}"
    if file.endswith(".json"):
        cross_encoder(scorer("bert"), activation_fn=activation()).save_pretrained(
            str(tmp_path), create_model_card=False
        )
        assert json.loads((tmp_path / file).read_text())["activation_fn"] == named
    else:
        shutil.copytree(scorer("bert"), tmp_path, dirs_exist_ok=True)
        value = {"activation_fn": named} if file == "sentence_transformers" else named
        change(tmp_path / "config.json", **{file: value})
    with LLM(str(tmp_path), dtype="float32") as llm:
        answers = scores(llm)
    expected = predicted(cross_encoder(tmp_path))
    assert np.abs(answers - expected).max() < ROUNDING * max(1, np.abs(expected).max())
    assert expected.min() < -0.1  # no sigmoid


def test_three_labels_are_classified_as_cross_encoder_predicts(scorer: Scorers, tmp_path: Path) -> None:
    reference = cross_encoder(scorer("bert-3-labels"), activation_fn=torch.nn.Softmax(dim=-1))
    reference.save_pretrained(str(tmp_path), create_model_card=False)
    with LLM(str(tmp_path), dtype="float32") as llm:
        answers = llm.encode(PAIRS, pooling_task="classify", use_tqdm=False)
        probabilities = np.stack([answer.outputs.data.numpy() for answer in answers])
        with pytest.raises(UnsupportedTask, match="it has 3 labels, and a score needs one"):
            llm.score("a", "b")
    expected = np.stack([reference.predict([pair], show_progress_bar=False)[0] for pair in PAIRS])
    assert np.abs(probabilities - expected).max() < ROUNDING
    with pytest.raises(ConfigError, match="task score is impossible for BertForSequenceClassification"):
        describe(ModelSpec(source=str(tmp_path), task="score"))


@pytest.mark.parametrize("name", ["bert", "xlmr", "modernbert", "qwen2-classifier"])
def test_a_pair_is_cut_as_the_tokenizer_cuts_it(scorer: Scorers, name: str) -> None:
    """The longer text first, in steps of one token; against transformers on lengths drawn at random."""
    tokenizer = AutoTokenizer.from_pretrained(scorer(name))
    intake = Intake.load(ModelSpec(source=str(scorer(name))))
    draw = random.Random(0)
    for _ in range(150):
        a, b = (words(draw.choice([0, 1, 2, 5, 20, 60, 150]), start=draw.randrange(99)) for _ in range(2))
        limit = draw.choice([5, 6, 7, 12, 33, 64, 120, 300])
        cut = tokenizer([a], [b], truncation="longest_first", max_length=limit)  # a list: alone, "" is no second text
        theirs = {field: rows[0] for field, rows in cut.items()}
        if not theirs["input_ids"]:
            continue
        ours = intake.tokenize(PoolingRequest([(a, b)], "score", truncate_prompt_tokens=limit))
        assert ours.ids.tolist() == theirs["input_ids"]
        assert ("token_type_ids" in theirs) is (ours.second is not None) is (name == "bert")
        if ours.second is not None:
            types = (np.arange(ours.tokens) >= ours.second[0]).astype(int).tolist()
            assert types == theirs["token_type_ids"]


def test_max_tokens_per_doc_cuts_the_second_text_alone(scorer: Scorers) -> None:
    tokenizer = AutoTokenizer.from_pretrained(scorer("bert"))
    intake = Intake.load(ModelSpec(source=str(scorer("bert"))))
    draw = random.Random(1)
    for _ in range(50):
        a, b = words(draw.choice([1, 5, 20]), start=draw.randrange(99)), words(draw.choice([1, 9, 80]))
        most = draw.choice([1, 5, 40])
        query = len(tokenizer(a, add_special_tokens=False)["input_ids"])
        theirs = tokenizer(a, b, truncation="only_second", max_length=query + most + 3)["input_ids"]
        ours = intake.tokenize(PoolingRequest([(a, b)], "score", max_tokens_per_doc=most))
        assert ours.ids.tolist() == theirs


def test_pairs_are_one_to_one_one_to_many_or_many_to_many(scorer: Scorers) -> None:
    with LLM(str(scorer("bert")), dtype="float32") as llm:
        one = scores(llm, QUERIES[0], DOCUMENTS[0])
        many = scores(llm, QUERIES[0], DOCUMENTS)
        each = np.concatenate([scores(llm, QUERIES[0], document) for document in DOCUMENTS])
        assert one.shape == (1,)
        assert one[0] == pytest.approx(many[0], abs=ROUNDING)
        assert np.abs(many - each).max() < ROUNDING
        with pytest.raises(InvalidRequest, match=r"must be either 1:1, 1:N or N:N \(given 2:3\)"):
            llm.score(["a", "b"], ["c", "d", "e"])
        with pytest.raises(InvalidRequest, match="At least one text element"):
            llm.score([], ["c"])
        with pytest.raises(InvalidRequest, match="At least one text_pair element"):
            llm.score("a", [])


def test_a_query_of_many_documents_is_tokenised_once(scorer: Scorers) -> None:
    from pooling.loading.tokenizer import TextTokenizer

    class Counting:
        def __init__(self, backend: Any) -> None:
            self._backend, self.texts = backend, 0

        def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
            self.texts += len(texts)
            return self._backend.encode_batch_fast(texts, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._backend, name)

    tokenizer = TextTokenizer.load(scorer("bert"))
    expected = tokenizer.encode_pairs([("query", text) for text in DOCUMENTS], True, None, (None, None))
    tokenizer._backend = counting = Counting(tokenizer._backend)
    again = tokenizer.encode_pairs([("query", text) for text in DOCUMENTS], True, None, (None, None))
    assert counting.texts == len(set(DOCUMENTS)) + 1
    assert all(np.array_equal(a, b) and i == j for (a, i), (b, j) in zip(expected, again, strict=True))


def test_two_empty_texts_are_a_pair_of_special_tokens(scorer: Scorers) -> None:
    with LLM(str(scorer("bert")), dtype="float32") as llm:
        answers = scores(llm, "", "")
    assert np.abs(answers - predicted(cross_encoder(scorer("bert")), [("", "")])).max() < ROUNDING


def test_many_pairs_stream_through_in_their_order(scorer: Scorers) -> None:
    count = 4_200  # more than two of the chunks that are tokenised at once
    documents = [DOCUMENTS[index % len(DOCUMENTS)][:40] for index in range(count)]
    with LLM(str(scorer("bert")), dtype="float32", max_batch_tokens=8_192) as llm:
        answers = scores(llm, QUERIES[0], documents)
        period = scores(llm, QUERIES[0], documents[: len(DOCUMENTS)])
    assert np.abs(answers - np.resize(period, count)).max() < ROUNDING


# Causal language models


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


# Sentence Transformers' own form of the same


def write_logit_score(source: Path, directory: Path, template: str, variables: dict[str, Any], form: str) -> Path:
    """As CrossEncoder saves a causal language model with a LogitScore module."""
    shutil.copytree(source, directory, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    ids = {f"{side}_token_id": tokenizer.convert_tokens_to_ids(t) for side, t in (("true", "yes"), ("false", "no"))}
    (directory / "1_LogitScore").mkdir()
    method = {"method": "forward", "method_output_name": "logits"}
    files = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
            {
                "idx": 1,
                "name": "1",
                "path": "1_LogitScore",
                "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
            },
        ],
        "sentence_bert_config.json": {
            "transformer_task": "text-generation",
            "modality_config": {"text": method, "message": {**method, "format": form}},
            "module_output_name": "causal_logits",
            "processing_kwargs": {"chat_template": variables},
        },
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "prompts": {"code": "find code"},
            "default_prompt_name": None,
            "activation_fn": "torch.nn.modules.activation.Sigmoid",
        },
        "1_LogitScore/config.json": {**ids, "module_input_name": "causal_logits"},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    return directory


_FLAT = (
    "{%- set told = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first"
    " | default('retrieve') -%}\n"
    "<|im_start|>system\n{{ told }}<|im_end|>\n<|im_start|>user\n"
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>: {{ m.content }}\n{% endfor %}<|im_end|>\n"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{%- endif %}"
)
_STRUCTURED = _FLAT.replace("m.content", "m.content[0].text").replace("| first", "| first", 1)


@pytest.fixture(scope="module", params=["flat", "structured"])
def logit_score(request: pytest.FixtureRequest, scorer: Scorers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = {"flat": _FLAT, "structured": _STRUCTURED}[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    source = scorer("qwen3-reranker")
    return write_logit_score(source, directory, template, {"add_generation_prompt": True}, request.param)


def test_a_logit_score_module_scores_as_cross_encoder_predicts(logit_score: Path) -> None:
    reference = cross_encoder(logit_score)
    expected = predicted(reference)
    assert told_apart(expected)
    with LLM(str(logit_score), dtype="float32") as llm:
        assert np.abs(scores(llm) - expected).max() < ROUNDING
        prompted = predicted(reference, prompt_name="code")
        assert np.abs(scores(llm, prompt_name="code") - prompted).max() < ROUNDING
        assert np.abs(prompted - expected).max() > 0.01


def test_a_logit_score_module_cuts_as_cross_encoder_does(logit_score: Path) -> None:
    reference = cross_encoder(logit_score)
    with LLM(str(logit_score), dtype="float32") as llm:
        for limit in (40, 64, 100):
            reference.max_seq_length = limit
            expected = predicted(reference)
            answers = scores(llm, tokenization_kwargs={"truncate_prompt_tokens": limit})
            assert np.abs(answers - expected).max() < ROUNDING


# Embedding models


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan", None])
def test_an_embedding_model_scores_as_its_similarity_says(
    checkpoint: Callable[[str], Path], tmp_path: Path, similarity: str | None
) -> None:
    from sentence_transformers import SentenceTransformer

    shutil.copytree(checkpoint("modernbert"), tmp_path, dirs_exist_ok=True)  # its vectors are not normalised
    if similarity is not None:
        change(tmp_path / "config_sentence_transformers.json", similarity_fn_name=similarity)
    reference = SentenceTransformer(str(tmp_path), device="cpu", model_kwargs={"attn_implementation": "eager"})
    a, b = ([reference.encode(text) for text in texts] for texts in (QUERIES[:8], DOCUMENTS[:8]))
    expected = np.array([float(reference.similarity(x, y)) for x, y in zip(a, b, strict=True)])
    with LLM(str(tmp_path), dtype="float32", task="score") as llm:
        answers = scores(llm, QUERIES[:8], DOCUMENTS[:8])
    assert np.abs(answers - expected).max() < ROUNDING * np.abs(expected).max()


# Refusals


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("math-shepherd", {"task": "score"}, "known for qwen3, qwen2, gemma, not for llama: name the tokens in"),
        ("bert", {"hf_overrides": {"classifier_from_token": ["no", "yes"]}}, "BertForSequenceClassification has none"),
        ("bert", {"instruction": "find"}, "reads pairs without a template"),
        ("bert", {"chat_template": "none.jinja"}, "neither a Jinja template nor a file"),
        ("qwen3-reranker", {"chat_template": "{{ messages }}"}, "chat_template is for models that read a pair"),
        (
            "qwen3-reranker",
            {"hf_overrides": {"is_original_qwen3_reranker": True}, "chat_template": "{{ messages[0].content }}"},
            "the chat template leaves the document out",
        ),
        (
            "qwen3-reranker",
            {"hf_overrides": {"is_original_qwen3_reranker": True}, "chat_template": "{{ raise_exception('no') }}"},
            "the chat template fails: 'no'",
        ),
    ],
)
def test_what_would_score_at_random_is_refused(
    scorer: Scorers, name: str, settings: dict[str, Any], sentence: str
) -> None:
    spec = parse_settings(ModelSpec, {"source": str(scorer(name)), **settings}, "test")
    with pytest.raises(ConfigError, match=sentence.replace("(", r"\(")):
        Intake.load(spec)


def test_a_token_that_the_vocabulary_lacks_is_refused(scorer: Scorers) -> None:
    overrides = {"classifier_from_token": ["no", "certainly"]}
    with pytest.raises(CheckpointError, match="the token 'certainly', which the model's tokenizer does not have"):
        LLM(str(scorer("qwen3-reranker")), dtype="float32", hf_overrides=overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"method": "from_2_way_softmax"}, "needs classifier_from_token"),
        ({"method": "from_2_way_softmax", "classifier_from_token": ["a"]}, "needs two tokens"),
        ({"classifier_from_token": []}, "classifier_from_token"),
        ({"classifier_from_token": ["a"], "architectures": ["Qwen3Model"]}, "ends in ForSequenceClassification"),
        ({"classifier": ["a"]}, "known settings are: architectures, classifier_from_token"),
    ],
)
def test_overrides_that_contradict_themselves_are_refused(overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_settings(ModelSpec, {"source": "x", "hf_overrides": overrides}, "test")


def test_a_model_without_a_template_takes_no_instruction(scorer: Scorers) -> None:
    with LLM(str(scorer("bert")), dtype="float32") as llm, pytest.raises(InvalidRequest, match="takes no instruction"):
        llm.score("a", "b", instruction="find")
    with LLM(str(scorer("qwen3-reranker")), dtype="float32") as llm, pytest.raises(InvalidRequest, match="needs pairs"):
        llm.score("a", "b", instruction="find")


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


def test_a_pair_is_not_cut_at_its_start(scorer: Scorers) -> None:
    intake = Intake.load(ModelSpec(source=str(scorer("bert"))))
    with pytest.raises(InvalidRequest, match="a pair of texts is cut at their ends"):
        intake.tokenize(PoolingRequest([("a", "b")], "score", truncate_prompt_tokens=4, truncation_side="left"))


def test_the_output_layer_must_be_there(scorer: Scorers, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(scorer("mxbai"), tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks tensor 'lm_head\.weight', the output layer"):
        LLM(str(tmp_path), task="score", dtype="float32")
