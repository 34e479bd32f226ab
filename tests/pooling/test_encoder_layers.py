"""A layer of BERT's kind in fewer calls gives what transformers' module gives, where it stands for the same."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    ElectraConfig,
    ElectraModel,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaXLConfig,
    XLMRobertaXLModel,
)

from pooling.attention import NAME, Packing, bind
from pooling.encoder_layers import EncoderLayers, find_layers
from pooling.prepacked import PrepackedLinear
from pooling.tuned import Part, tune

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 80,
    "vocab_size": 99,
    "attn_implementation": NAME,
}
LENGTHS = [19, 19, 7, 1]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def drawn(model: Any) -> Any:
    """With biases and norms that are no identity, as trained models have them."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.copy_(parameter + torch.randn_like(parameter) / 2)
    return model.eval()


def packed(model: Any, ids: Tensor, lengths: list[int], attended: list[int] | None = None) -> Tensor:
    slot = bind(model)
    slot.packing = Packing.of(lengths, attended=attended)
    positions = torch.cat([torch.arange(length) for length in lengths])
    answer: Tensor = model(input_ids=ids[None], position_ids=positions[None] + 2)[0][0]
    return answer


@pytest.mark.parametrize("attended", [LENGTHS, [19, 11, 7, 1]], ids=["all seen", "some unseen"])
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
@pytest.mark.parametrize(
    ("model", "config"),
    [(BertModel, BertConfig), (XLMRobertaModel, XLMRobertaConfig), (ElectraModel, ElectraConfig)],
)
def test_it_answers_as_the_layers_it_stands_for(model: Any, config: Any, act: str, attended: list[int]) -> None:
    layers = drawn(model(config(**SIZES, hidden_act=act, layer_norm_eps=0.01)))
    ids = torch.randint(3, 99, (sum(LENGTHS),))
    expected = packed(layers, ids, LENGTHS, attended)
    tune(layers, CPU, torch.float32, 64)
    assert [type(layer) for layer in layers.encoder.layer] == [EncoderLayers]
    torch.testing.assert_close(packed(layers, ids, LENGTHS, attended), expected, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_it_is_as_near_to_the_truth_as_the_layer_it_stands_for() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no kernels for bfloat16")
    config, ids = BertConfig(**SIZES), torch.randint(3, 99, (sum(LENGTHS),))
    truth, theirs = drawn(BertModel(config)), BertModel(config).eval()
    theirs.load_state_dict(truth.state_dict())
    expected = packed(truth, ids, LENGTHS)
    theirs.bfloat16()
    off = (packed(theirs, ids, LENGTHS).float() - expected).norm()
    tune(theirs, CPU, torch.bfloat16, 64)
    assert isinstance(theirs.encoder.layer[0], EncoderLayers)
    assert (packed(theirs, ids, LENGTHS).float() - expected).norm() < 1.1 * off


def test_inputs_that_do_not_lie_packed_take_the_code_of_transformers() -> None:
    """The check at start-up compares with it, so it must not be ours."""
    model = BertModel(BertConfig(**SIZES)).eval()
    model.config._attn_implementation = "eager"
    ids, mask = torch.randint(3, 99, (2, 9)), torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    expected = model(input_ids=ids, attention_mask=mask)[0]
    tune(model, CPU, torch.float32, 64)
    called: list[int] = []
    for layer in model.encoder.layer[0].layers:
        layer.attention.register_forward_hook(lambda *_: called.append(1))
    bind(model)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask)[0], expected, rtol=1e-5, atol=1e-5)
    assert len(called) == 2


def test_its_weights_are_those_of_the_layer_and_lie_in_memory_once() -> None:
    model = BertModel(BertConfig(**SIZES), add_pooling_layer=False).eval()
    tune(model, CPU, torch.float32, 64)
    packs = {id(part) for part in model.modules() if isinstance(part, PrepackedLinear)}
    assert len(packs) == 2 * 4  # query, key and value are one; then the layer behind them, and two more
    assert not [part for part in model.modules() if type(part) is torch.nn.Linear]
    stack = model.encoder.layer[0]
    for weights, layer in zip(stack._weights, stack.layers, strict=True):
        theirs = layer.attention.output
        places = [tensor.data_ptr() for tensor in weights[2]]
        assert places == [theirs.LayerNorm.weight.data_ptr(), theirs.LayerNorm.bias.data_ptr()]
        packs = [layer.attention.self.key.merged.linear, theirs.dense, layer.intermediate.dense, layer.output.dense]
        for pack, own in zip(packs, (weights[0], weights[1], weights[3], weights[4]), strict=True):
            assert pack.weight is own[0]


@pytest.mark.parametrize(
    "kind",
    [
        "decoder",
        "float16",
        "one rank's share",
        "a linear layer of another kind",
        "an activation that no product has",
        "norms that differ",
        "layers that differ",
    ],
)
def test_a_layer_that_it_cannot_stand_for_stays_as_it_is(kind: str) -> None:
    model = BertModel(BertConfig(**SIZES, is_decoder=kind == "decoder")).eval()
    dtype = torch.float16 if kind == "float16" else torch.float32
    if kind == "a linear layer of another kind":
        for layer in model.encoder.layer:
            layer.output.dense = torch.nn.Sequential(layer.output.dense)
    if kind == "an activation that no product has":
        for layer in model.encoder.layer:
            layer.intermediate.intermediate_act_fn = torch.nn.Hardswish()
    if kind == "norms that differ":
        model.encoder.layer[1].output.LayerNorm.eps = 0.5
    if kind == "layers that differ":
        model.encoder.layer[1].attention.self.scaling = 0.5
    tune(model.to(dtype), CPU, dtype, 64, split=kind == "one rank's share")
    assert not [part for part in model.modules() if isinstance(part, EncoderLayers | Part)]


def test_layers_that_only_look_alike_are_not_found() -> None:
    """XLM-R of size XL norms before attention and not behind it."""
    model = XLMRobertaXLModel(XLMRobertaXLConfig(**SIZES))
    assert find_layers(model) == []
