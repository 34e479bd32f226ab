"""EncoderLayer: a layer of BERT's kind on a CPU, in a third of the calls that transformers' module makes."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.camembert.modeling_camembert import CamembertLayer
from transformers.models.electra.modeling_electra import ElectraLayer
from transformers.models.roberta.modeling_roberta import RobertaLayer
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer

from pooling.attention import PackingSlot, Rule, attend, slot_of

# Attention, then what it is added to, normed; then the same with two linear layers. One copies the other's code.
_KINDS = (BertLayer, RobertaLayer, XLMRobertaLayer, CamembertLayer, ElectraLayer)


class EncoderLayer(nn.Module):
    """Stands for one of transformers' layers, with its weights: hidden [1, tokens, dim] -> the same.

    For small steps Python's part is as long as the products'. So a packed row
    takes one product for query, key and value, and what is added is added in
    the product before it. Inputs that do not lie packed, as in the check at
    start-up, take transformers' own code.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        own = layer.attention.self
        self._heads, self._head_dim = own.num_attention_heads, own.attention_head_size
        self._rule = Rule(scale=own.scaling, causal=False, window=None, softcap=None)
        self._project = own.query.merged.linear
        self._attended = _Added(layer.attention.output)
        self._inner, self._outer = layer.intermediate, _Added(layer.output)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        slot: PackingSlot = slot_of(self)
        if slot.packing is None:
            answer: Tensor = self.layer(hidden_states, *args, **kwargs)
            return answer
        x = hidden_states[0]
        # [tokens, 3 * heads * head_dim] -> three views [heads, tokens, head_dim]
        q, k, v = self._project(x).view(len(x), 3, self._heads, self._head_dim).permute(1, 2, 0, 3)
        x = self._attended(attend(q, k, v, slot.packing, self._rule).view(x.shape), x)
        return self._outer(self._inner(x), x)[None]


class _Added:
    """LayerNorm(linear(x) + residual), of a module that is written so."""

    def __init__(self, module: Any) -> None:
        dense, norm = module.dense, module.LayerNorm
        self._weight, self._bias = dense.weight, dense.bias
        self._shape, self._eps = norm.normalized_shape, norm.eps
        self._scale, self._shift = norm.weight.detach(), norm.bias.detach()

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        added = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, self._bias, "add")
        return torch.layer_norm(added, self._shape, self._scale, self._shift, self._eps, False)


def find_layers(model: nn.Module) -> list[Any]:
    """The layers of a model that an EncoderLayer can stand for, once they are merged and prepacked."""
    return [module for module in model.modules() if type(module) in _KINDS and _fits(module)]


def fuse_layers(model: nn.Module, layers: list[Any]) -> None:
    """Replaces layers of a model in place whose linear layers are merged and prepacked."""
    found = {id(layer) for layer in layers if hasattr(layer.attention.self.query, "merged")}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if id(layer) in found:
                setattr(parent, name, EncoderLayer(layer))


def _fits(layer: Any) -> bool:
    own = layer.attention.self
    linear = (own.query, own.key, own.value, layer.attention.output.dense, layer.output.dense)
    return all(type(each) is nn.Linear for each in linear) and not layer.is_decoder and not layer.add_cross_attention
