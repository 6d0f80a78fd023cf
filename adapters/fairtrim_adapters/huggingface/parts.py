"""The parts of a transformer, found by the names that Hugging Face gives them."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal

from torch import nn

from fairtrim import InputError, UnsupportedModelError
from fairtrim_adapters.torch_pruning.graph.layers import description_of
from fairtrim_adapters.torch_pruning.graph.shared_heads import SharedHeads

from .refusals import refuse_adapters, refuse_quantised

__all__ = [
    "HEAD_SIZE",
    "PARTS",
    "Attention",
    "Part",
    "Transformer",
    "attentions_of",
    "bare_parameters",
    "is_conv1d",
    "is_rms_norm",
    "layer_types",
    "outermost",
    "widths",
]

Part = Literal["intermediate", "heads", "query_heads", "head_dims", "hidden"]
"""What can be pruned: channels of the feed-forward layers (``config.intermediate_size``), whole attention heads (where
queries share keys and values: a head of keys and values with all its query heads), the same number of query heads from
each head of keys and values, the dimensions of every head, the hidden size with the embeddings."""

PARTS: tuple[Part, ...] = ("intermediate", "heads", "query_heads", "head_dims", "hidden")

HEAD_SIZE = ("attention_head_size", "head_dim")
"""Where attention modules keep the size of their heads."""

_QUERY_KEY_VALUE = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))
_FUSED = "c_attn"
_FUSED_SHARED = "qkv_proj"
"""A layer that gives queries, and keys and values that several of them may share: Phi-3."""
_FUSED_INTERMEDIATE = "mlp.gate_up_proj"
_INTERMEDIATE = (
    *("intermediate.dense", "mlp.fc1", "ffn.lin1", "mlp.c_fc", "mlp.gate_proj", "mlp.up_proj"),
    *("decoder.layers.*.fc1", _FUSED_INTERMEDIATE),
)
"""Ends of the names of the layers that widen the hidden states: BERT, ViT, DistilBERT, GPT-2, Llama, OPT, Phi-3."""
_OUTPUT = ("o_proj", "out_proj", "c_proj", "dense")
"""Layers of attention modules that read what the heads give, where it is the module itself that has them."""
_OF_EMBEDDINGS = "project_out"
"""A layer that gives what the embeddings have, where that is not the hidden size: OPT."""


def is_conv1d(module: object) -> bool:
    """Whether it is Hugging Face's Conv1D, a linear layer whose weight is (in, out)."""
    return isinstance(module, nn.Module) and type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_rms_norm(module: nn.Module) -> bool:
    """Whether it is one of the many RMSNorms: one weight for each channel and nothing else."""
    return type(module).__name__.endswith("RMSNorm") and [n for n, _ in module.named_parameters()] == ["weight"]


def bare_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that no layer owns, as positions, or a bias for each head and distance, by name."""
    for path, inner in module.named_modules():
        if description_of(inner) is None and not is_conv1d(inner) and not is_rms_norm(inner):
            yield from inner.named_parameters(path, recurse=False)


def layer_types(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """Types of layers whose outputs Torch-Pruning may prune: linear, convolutions, and Conv1D where there is one."""
    conv1d = {type(module) for module in model.modules() if is_conv1d(module)}
    return (nn.modules.conv._ConvNd, nn.Linear, *conv1d)


def widths(layer: Any) -> tuple[int, int]:
    """Numbers of inputs and outputs of a linear layer, from its weight."""
    rows, columns = layer.weight.shape
    return (rows, columns) if is_conv1d(layer) else (columns, rows)


def _n_outputs(layer: Any) -> int:
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim
    return int(layer.out_channels) if hasattr(layer, "out_channels") else widths(layer)[1]


def outermost(model: nn.Module) -> list[tuple[str, Any]]:
    """Networks of Hugging Face in a module that lie in no other one; refused with adapters or quantised weights."""
    refuse_adapters(model)
    refuse_quantised(model)
    found: list[tuple[str, Any]] = []
    for name, module in model.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer, _ in found)
        if not inside and hasattr(module, "base_model_prefix") and hasattr(module, "config"):
            found.append((name, module))
    if not found:
        raise InputError(
            f"got a {type(model).__name__} without any transformer of Hugging Face in it; expected one, or a module "
            "that holds one"
        )
    return found


@dataclass(frozen=True)
class Attention:
    """One attention module.

    Where layers are fused, query, key and value are the same one.
    """

    name: str
    module: Any
    query: nn.Module
    key: nn.Module
    value: nn.Module

    @property
    def fused(self) -> bool:
        """Whether one layer gives query, key and value."""
        return self.query is self.key

    @property
    def rotary(self) -> bool:
        """Whether positions enter by rotating pairs of head dimensions."""
        return hasattr(sys.modules.get(type(self.module).__module__), "apply_rotary_pos_emb")

    @property
    def head_size(self) -> int:
        """What the module says of the size of its heads."""
        return next(int(vars(self.module)[name]) for name in HEAD_SIZE if name in vars(self.module))

    @property
    def output(self) -> nn.Module:
        """The layer that reads what the heads give, where the module has it."""
        children: dict[str, nn.Module] = dict(self.module.named_children())
        for name in _OUTPUT:
            if name in children:
                return children[name]
        raise UnsupportedModelError(
            f"{self.name or type(self.module).__name__} has no layer that reads its heads; expected one of {_OUTPUT}: "
            "pass num_heads and ignored_layers to the pruner by hand"
        )

    def parts(self) -> tuple[int, int, int]:
        """Channels of queries, keys and values."""
        if not self.fused:
            query, key, value = (widths(layer)[1] for layer in (self.query, self.key, self.value))
            return query, key, value
        queries, every = widths(self.output)[0], widths(self.query)[1]
        shared = (every - queries) // 2
        return queries, shared, shared

    @property
    def grouped(self) -> bool:
        """Whether several query heads share a head of keys and values."""
        queries, keys, _ = self.parts()
        return queries > keys and queries % keys == 0

    def outputs(self) -> dict[nn.Module, int]:
        """Channels that each layer gives: queries, keys, values, or one of the three."""
        queries, keys, values = self.parts()
        return {self.query: queries} if self.fused else {self.query: queries, self.key: keys, self.value: values}

    def sharing(self) -> int:
        """How many query heads share a head of keys and values."""
        queries, keys, _ = self.parts()
        return queries // keys

    def heads(self, evenly: bool = False) -> dict[nn.Module, int]:
        """Heads of each layer, if they are as large as the module says, as Torch-Pruning is told.

        Where heads of keys and values are shared, only these are counted, for they go with all their queries; with
        ``evenly`` query heads go by themselves.
        """
        sizes = self.outputs()
        if self.grouped and not evenly:
            keys, sharing = self.parts()[1], self.sharing()
            count = SharedHeads(keys // self.head_size, sharing) if self.fused else keys // self.head_size
            return dict.fromkeys(sizes, count)
        return {layer: width // self.head_size for layer, width in sizes.items()}

    def stays(self, wanted: Collection[Part]) -> str:
        """Why no heads of it can go, as a whole or evenly, with what to do; else nothing."""
        queries, keys, _ = self.parts()
        leave = "; leave 'heads', 'query_heads' and 'head_dims' out of prune="
        for name, _ in bare_parameters(self.module):
            return (
                f"{self.name}.{name} holds numbers for every head, and Torch-Pruning doesn't know that they go with it"
                + leave
            )
        for name, child in self.module.named_children():
            if name.endswith("norm") and any(p.numel() != self.head_size for p in child.parameters()):
                return f"{self.name}.{name} takes its statistics over all heads together" + leave
        if self.rotary and widths(self.output)[0] != queries:
            return f"{self.name} gives {queries} channels of queries and reads {widths(self.output)[0]}" + leave
        if "heads" in wanted and self.grouped and keys == self.head_size:
            return (
                f"all {queries // keys} query heads of {self.name} share one head of keys and values, which must stay; "
                "use 'query_heads' in place of 'heads', to take some of them"
            )
        if "query_heads" in wanted and (self.fused or not self.grouped):
            return (
                f"query heads of {self.name} "
                + ("come from one layer with keys and values" if self.grouped else "share no keys and values")
                + "; use 'heads' in place of 'query_heads'"
            )
        return ""


def attentions_of(base: nn.Module) -> Iterator[Attention]:
    """Attention modules whose layers have names that are known here."""
    for name, module in base.named_modules():
        children = dict(module.named_children())
        for names in _QUERY_KEY_VALUE:
            if all(isinstance(children.get(child), nn.Linear) for child in names):
                yield Attention(name, module, *(children[child] for child in names))
        if is_conv1d(children.get(_FUSED)):
            yield Attention(name, module, *[children[_FUSED]] * 3)
        if isinstance(children.get(_FUSED_SHARED), nn.Linear):
            yield Attention(name, module, *[children[_FUSED_SHARED]] * 3)


@dataclass(frozen=True)
class Transformer:
    """A network of Hugging Face by its parts.

    Attributes:
        module: The network, with its classifier if it has one.
        base: The transformer in it.
        config: Its config.
        attentions: Its attention modules.
        intermediate: By name, the layers that widen the hidden states.
    """

    module: Any
    base: nn.Module
    config: Any
    attentions: tuple[Attention, ...]
    intermediate: Mapping[str, nn.Module]

    @classmethod
    def of(cls, name: str, module: Any) -> Transformer:
        """Find the parts."""
        config, base = module.config, module.base_model
        label = name or type(module).__name__
        if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
            raise UnsupportedModelError(
                f"{label} has an encoder and a decoder; expected one of them: cross attention is not supported"
            )
        attentions = tuple(attentions_of(base))
        if not attentions:
            raise UnsupportedModelError(
                f"{label} has no attention whose layers are named as known here; expected one of {_QUERY_KEY_VALUE}, "
                f"{_FUSED!r} or {_FUSED_SHARED!r}: pass num_heads and ignored_layers to the pruner by hand"
            )
        intermediate = {
            n: layer for n, layer in base.named_modules() if any(fnmatch(f".{n}", f"*.{end}") for end in _INTERMEDIATE)
        }
        return cls(module, base, config, attentions, intermediate)

    @property
    def fused_intermediate(self) -> list[nn.Module]:
        """Layers that give the gate and what it multiplies, one behind the other."""
        return [layer for name, layer in self.intermediate.items() if f".{name}".endswith(f".{_FUSED_INTERMEDIATE}")]

    def hidden_sizes(self) -> list[int]:
        """How many channels enter attention and feed-forward layers; several where stages have their own."""
        layers = [layer for a in self.attentions for layer in (a.query, a.key, a.value)]
        return list(dict.fromkeys(widths(layer)[0] for layer in (*layers, *self.intermediate.values())))

    def check(self, wanted: set[Part]) -> None:
        """Refuse what can't be pruned here."""
        experts = next((name for name, _ in self.base.named_modules() if name.endswith(".experts")), "")
        of_experts = sorted(wanted & ({"hidden"} if self.intermediate else {"hidden", "intermediate"}))
        if experts and of_experts:
            raise UnsupportedModelError(
                f"{type(self.base).__name__} is a mixture of experts, whose weights lie together in {experts!r}, where "
                f"Torch-Pruning can't take channels out; leave {' and '.join(map(repr, of_experts))} out of prune=, "
                "e.g. prune=['heads']"
            )
        if "intermediate" in wanted and not self.intermediate:
            raise UnsupportedModelError(
                f"{type(self.base).__name__} has no feed-forward layer whose name ends in one of {_INTERMEDIATE}; "
                "leave 'intermediate' out of prune="
            )
        sizes, said = self.hidden_sizes(), getattr(self.config, "hidden_size", None)
        if "hidden" in wanted and sizes != [said]:
            raise UnsupportedModelError(
                f"layers of {type(self.base).__name__} take {', '.join(map(str, sizes))} hidden channels and its "
                f"config says {said}; expected one hidden size for all of them: leave 'hidden' out of prune="
            )
        stays = self.heads_stay(wanted)
        if wanted & {"heads", "query_heads", "head_dims"} and stays:
            raise UnsupportedModelError(stays)
        rotary = [attention.name for attention in self.attentions if attention.rotary]
        if "head_dims" in wanted and rotary:
            raise UnsupportedModelError(
                f"{rotary[0]} rotates pairs of head dimensions by their position, and all layers share the angles, so "
                "that no dimension can go by itself; use 'heads' in place of 'head_dims'"
            )

    def heads_stay(self, wanted: Collection[Part]) -> str:
        """Why some attention can't lose heads, with what to do; else nothing."""
        return next((reason for attention in self.attentions if (reason := attention.stays(wanted))), "")

    def layers(self, types: tuple[type[nn.Module], ...]) -> Iterator[tuple[nn.Module, set[Part]]]:
        """Layers of these types, and embeddings, with the parts that their outputs belong to."""
        of_heads = {layer for attention in self.attentions for layer in attention.outputs()}
        widening, hidden = set(self.intermediate.values()), getattr(self.config, "hidden_size", None)
        pooler = getattr(getattr(self.base, "pooler", None), "dense", None)
        layer: nn.Module
        for name, layer in self.base.named_modules():
            if not isinstance(layer, (*types, nn.Embedding)):
                continue
            if name.endswith(_OF_EMBEDDINGS):
                yield layer, set()
            elif layer in of_heads:
                yield layer, {"heads", "query_heads", "head_dims"}
            elif layer in widening:
                yield layer, {"intermediate"}
            elif layer is pooler or _n_outputs(layer) == hidden:
                yield layer, {"hidden"}
            else:  # belongs to no part, such as layers inside of unknown modules
                yield layer, set()
