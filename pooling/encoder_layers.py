"""EncoderLayers: the layers of a model of BERT's kind on a CPU, as one call that does not come back to Python."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.camembert.modeling_camembert import CamembertLayer
from transformers.models.electra.modeling_electra import ElectraLayer
from transformers.models.roberta.modeling_roberta import RobertaLayer
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer

from pooling.attention import PackingSlot, plain_bytes, slot_of
from pooling.full_attention import attend_merged
from pooling.native import native
from pooling.prepacked import PrepackedLinear, fusable_activation, linear
from pooling.quantized import QuantizedLinear, activated, int8_linear

# Attention, then what it is added to, normed; then the same with two linear layers. One copies the other's code.
_KINDS = (BertLayer, RobertaLayer, XLMRobertaLayer, CamembertLayer, ElectraLayer)


class EncoderLayers(nn.Module):
    """Stands for all layers of a model, with their weights: hidden [1, tokens, dim] -> the same.

    For small steps Python's part is as long as the products'. So a packed row
    goes through all layers in compiled code, with one product for query, key
    and value, and what is added is added in the product before it. Inputs that
    do not lie packed, as in the check at start-up, take transformers' own code.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        own = layers[0].attention.self
        self._heads, self._scale, self._eps = own.num_attention_heads, own.scaling, layers[0].output.LayerNorm.eps
        self._activation = layers[0].intermediate.dense.activation
        self._weights = [_weights(layer) for layer in layers]

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        slot: PackingSlot = slot_of(self)
        if slot.packing is None:
            for layer in self.layers:
                hidden_states = layer(hidden_states, *args, **kwargs)
            return hidden_states
        activation, algorithm = self._activation
        return _encode(
            hidden_states[0],
            self._weights,
            self._heads,
            slot.packing.rows,
            self._scale,
            self._eps,
            activation,
            algorithm,
            plain_bytes(),
        )[None]


@native
def _linear(x: Tensor, of: list[Tensor], activation: str, algorithm: str) -> Tensor:
    """of: the tensors of a PrepackedLinear or of a QuantizedLinear."""
    if len(of) == 2:
        return linear(x, of[0], of[1], activation, algorithm)
    return activated(int8_linear(x, of[0], of[1], of[2], of[3], of[4]), activation, algorithm)


@native
def _added(x: Tensor, residual: Tensor, of: list[Tensor], norm: list[Tensor], eps: float) -> Tensor:
    """LayerNorm(linear(x) + residual)"""
    if len(of) == 2:
        added = torch.ops.mkldnn._linear_pointwise(x, residual, of[0], of[1], "add")
    else:
        added = int8_linear(x, of[0], of[1], of[2], of[3], of[4]).add_(residual)
    return torch.layer_norm(added, [added.shape[1]], norm[0], norm[1], eps, False)


@native
def _encode(
    x: Tensor,
    layers: list[list[list[Tensor]]],
    heads: int,
    groups: list[tuple[int, int, int, int]],
    scale: float,
    eps: float,
    activation: str,
    algorithm: str,
    plain_bytes: int,
) -> Tensor:
    """x [tokens, dim] -> the same; layers: as _weights() lists them; groups: as attention.Group has it."""
    tokens = x.shape[0]
    for w in layers:
        # [tokens, 3 * heads * head_dim] -> a view [3, heads, tokens, head_dim]
        qkv = _linear(x, w[0], "none", "").view(tokens, 3, heads, -1).permute(1, 2, 0, 3)
        attended = attend_merged(qkv, groups, scale, plain_bytes).view(tokens, -1)
        x = _added(attended, x, w[1], w[2], eps)
        x = _added(_linear(x, w[3], activation, algorithm), x, w[4], w[5], eps)
    return x


def _weights(layer: Any) -> list[list[Tensor]]:
    """In the order in which _encode() needs them: the tensors of each linear layer and of the norms behind two."""
    attended, outer = layer.attention.output, layer.output
    norms = [[norm.weight.detach(), norm.bias.detach()] for norm in (attended.LayerNorm, outer.LayerNorm)]
    merged, inner = layer.attention.self.query.merged.linear, layer.intermediate.dense
    return [merged.tensors, attended.dense.tensors, norms[0], inner.tensors, outer.dense.tensors, norms[1]]


def find_layers(model: nn.Module) -> list[list[Any]]:
    """The layers of each encoder in a model that EncoderLayers can stand for, once they are merged and prepacked."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    encoders = [layers for layers in lists if all(type(layer) in _KINDS and _fits(layer) for layer in layers)]
    return [layers for layers in encoders if len(set(map(_constants, layers))) == 1]


def fuse_layers(model: nn.Module, encoders: list[list[Any]]) -> None:
    """Replaces in place the layers of encoders of a model whose linear layers are merged and prepacked."""
    found = {id(layers[0]): layers for layers in encoders if all(map(_is_ready, layers))}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ModuleList) and len(child) and id(child[0]) in found:
                setattr(parent, name, nn.ModuleList([EncoderLayers(found[id(child[0])])]))


def _constants(layer: Any) -> tuple[Any, ...]:
    """What EncoderLayers knows of the first layer and takes for that of all."""
    own, norms = layer.attention.self, (layer.attention.output.LayerNorm, layer.output.LayerNorm)
    return own.num_attention_heads, own.scaling, fusable_activation(layer.intermediate), norms[0].eps, norms[1].eps


def _fits(layer: Any) -> bool:
    own = layer.attention.self
    dense = (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)
    linear_layers = (own.query, own.key, own.value, *dense)
    plain = all(type(each) is nn.Linear and each.bias is not None for each in linear_layers)
    known = fusable_activation(layer.intermediate) is not None
    one_eps = layer.attention.output.LayerNorm.eps == layer.output.LayerNorm.eps
    return plain and known and one_eps and not layer.is_decoder and not layer.add_cross_attention


def _is_ready(layer: Any) -> bool:
    dense = (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)
    return hasattr(layer.attention.self.query, "merged") and all(
        type(each) in (PrepackedLinear, QuantizedLinear) for each in dense
    )
