"""What the app's Serve handle can be asked, in Python: arrays in and out."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from PIL import Image as Pillow

from deployments.inputs import as_inputs, as_side
from deployments.scorer import Asked, ranked, score
from deployments.served import Answered, ServedModel
from pooling.loading.card import InputType
from pooling.media import Content, Conversation, Image, ImageEmbeds, ImagePrompt
from pooling.request import Ids, PackedBatch, PooledOutput, PoolingParams, PoolingRequest, Prompt, Rows
from pooling.scoring import Scores

Picture = Pillow.Image | Image | ImageEmbeds
Media = Picture | ImagePrompt | Content | Conversation
Inputs = str | Ids | Sequence[Prompt] | Sequence[int] | Media | Sequence[str | Media]
Side = str | Picture | Content


class PythonApi:
    """The methods of the router's handle.

    A model that takes images has them wherever a text may stand: as Pillow's, or as
    the nouns of pooling/media.py, of which Content and Conversation have texts beside.
    Arguments that they share: `model`, None for the default one;
    `prompt_name`, a prompt of the model to put before every text; `input_type`,
    the side of a search that texts are on; `instruction`, what a template for
    scoring tells the model;
    `truncate_prompt_tokens`, None to refuse an input that is too long, -1 to
    cut it to what the model takes, k to cut it to k tokens; `timeout_s`, None
    for the service's own limit.
    They raise PoolingError of the fitting kind.
    """

    @abstractmethod
    def pick(self, name: str | None, task: str | None) -> ServedModel: ...

    @abstractmethod
    async def answer(self, model: ServedModel, request: PoolingRequest, timeout_s: float | None) -> Answered: ...

    async def embed(
        self,
        inputs: Inputs,
        *,
        model: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        prompt_name: str | None = None,
        input_type: InputType | None = None,
        truncate_prompt_tokens: int | None = None,
        timeout_s: float | None = None,
    ) -> Rows:
        """One vector for each input: [inputs, dim] float32. A text, token ids, an image, or a list of them."""
        output = await self.pool(
            inputs,
            task="embed",
            model=model,
            dimensions=dimensions,
            normalize=normalize,
            prompt_name=prompt_name,
            input_type=input_type,
            truncate_prompt_tokens=truncate_prompt_tokens,
            timeout_s=timeout_s,
        )
        return output.data

    async def classify(
        self,
        inputs: Inputs,
        *,
        model: str | None = None,
        use_activation: bool | None = None,
        truncate_prompt_tokens: int | None = None,
        timeout_s: float | None = None,
    ) -> Rows:
        """The probability of each label for each input, or its logit without activation: [inputs, labels] float32."""
        output = await self.pool(
            inputs,
            task="classify",
            model=model,
            normalize=use_activation,
            truncate_prompt_tokens=truncate_prompt_tokens,
            timeout_s=timeout_s,
        )
        return output.data

    async def reward(
        self,
        inputs: Inputs,
        *,
        model: str | None = None,
        use_activation: bool | None = None,
        truncate_prompt_tokens: int | None = None,
        timeout_s: float | None = None,
    ) -> list[Rows]:
        """A reward model's answer for every token, or step, of each input: [tokens, labels] float32 each."""
        output = await self.pool(
            inputs,
            task="reward",
            model=model,
            normalize=use_activation,
            truncate_prompt_tokens=truncate_prompt_tokens,
            timeout_s=timeout_s,
        )
        return output.rows()

    async def score(
        self,
        queries: Side | Sequence[Side],
        documents: Side | Sequence[Side],
        *,
        model: str | None = None,
        instruction: str | None = None,
        use_activation: bool | None = None,
        truncate_prompt_tokens: int | None = None,
        timeout_s: float | None = None,
    ) -> Scores:
        """How relevant each document is to its query: [documents] float32. 1:1, 1:N or N:N, one by one."""
        served = self.pick(model, "score")
        first, second = as_side(queries), as_side(documents)
        asked = Asked(use_activation, truncate_prompt_tokens, instruction=instruction)
        return (await score(self, served, first, second, asked, timeout_s)).scores

    async def rerank(
        self,
        query: Side,
        documents: Sequence[Side],
        *,
        model: str | None = None,
        top_n: int | None = None,
        instruction: str | None = None,
        use_activation: bool | None = None,
        truncate_prompt_tokens: int | None = None,
        timeout_s: float | None = None,
    ) -> list[tuple[int, float]]:
        """(index, score) of the documents, the most relevant first; top_n None: of all."""
        scores = await self.score(
            query,
            documents,
            model=model,
            instruction=instruction,
            use_activation=use_activation,
            truncate_prompt_tokens=truncate_prompt_tokens,
            timeout_s=timeout_s,
        )
        return [(index, float(scores[index])) for index in ranked(scores, top_n)]

    async def pool(
        self,
        inputs: Inputs,
        *,
        task: str | None = None,
        model: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        prompt_name: str | None = None,
        input_type: InputType | None = None,
        truncate_prompt_tokens: int | None = None,
        truncation_side: Literal["left", "right"] | None = None,
        add_special_tokens: bool = True,
        timeout_s: float | None = None,
    ) -> PooledOutput:
        """What any task of any model answers; `rows()` has it by input."""
        request = PoolingRequest(
            as_inputs(inputs),
            task,
            PoolingParams(normalize, dimensions),
            truncate_prompt_tokens,
            truncation_side,
            add_special_tokens,
            prompt_name,
            input_type=input_type,
        )
        return (await self.answer(self.pick(model, task), request, timeout_s)).output

    async def tokenize(
        self,
        inputs: Inputs,
        *,
        model: str | None = None,
        prompt_name: str | None = None,
        truncate_prompt_tokens: int | None = None,
        add_special_tokens: bool = True,
    ) -> PackedBatch:
        """The token ids of each input as the engine would read them, laid end to end with their lengths."""
        request = PoolingRequest(
            as_inputs(inputs),
            truncate_prompt_tokens=truncate_prompt_tokens,
            add_special_tokens=add_special_tokens,
            prompt_name=prompt_name,
        )
        return await self.pick(model, None).tokenize(request)
