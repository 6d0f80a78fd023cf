"""The parts of a transformer, found by the names that Hugging Face gives them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from fairtrim import InputError, UnsupportedModelError
from fairtrim_adapters.torch_pruning.graph.layers import description_of

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
    "shared_attentions_of",
    "widths",
]

Part = Literal["intermediate", "heads", "head_dims", "hidden"]
"""What can be pruned: channels of the feed-forward layers (``config.intermediate_size``), whole attention heads, the
dimensions of every head, the hidden size with the embeddings."""

PARTS: tuple[Part, ...] = ("intermediate", "heads", "head_dims", "hidden")

HEAD_SIZE = ("attention_head_size", "head_dim")
"""Where attention modules keep the size of their heads."""

_QUERY_KEY_VALUE = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))
_FUSED = "c_attn"
_FUSED_SHARED = "qkv_proj"
"""A layer that gives queries, and keys and values that several of them may share: Phi-3."""
_FUSED_INTERMEDIATE = "mlp.gate_up_proj"
_INTERMEDIATE = (
    *("intermediate.dense", "mlp.fc1", "ffn.lin1", "mlp.c_fc", "mlp.gate_proj", "mlp.up_proj"),
    _FUSED_INTERMEDIATE,
)
"""Ends of the names of the layers that widen the hidden states: BERT, ViT, DistilBERT, GPT-2, Llama, Phi-3."""


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


def outermost(model: nn.Module) -> list[tuple[str, Any]]:
    """Networks of Hugging Face in a module that lie in no other one."""
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

    def outputs(self) -> dict[nn.Module, int]:
        """Channels that each layer gives: queries, keys, values, or one of the three."""
        repeats = 3 if self.fused else 1
        return {layer: widths(layer)[1] // repeats for layer in (self.query, self.key, self.value)}

    def heads(self) -> dict[nn.Module, int]:
        """Heads of each layer, if they are as large as the module says."""
        return {layer: width // self.head_size for layer, width in self.outputs().items()}


def attentions_of(base: nn.Module) -> Iterator[Attention]:
    """Attention modules whose layers have names that are known here."""
    for name, module in base.named_modules():
        children = dict(module.named_children())
        for names in _QUERY_KEY_VALUE:
            if all(isinstance(children.get(child), nn.Linear) for child in names):
                yield Attention(name, module, *(children[child] for child in names))
        if is_conv1d(children.get(_FUSED)):
            yield Attention(name, module, *[children[_FUSED]] * 3)


def shared_attentions_of(base: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attention modules of which one layer gives queries, keys and values of different numbers: their heads stay."""
    for name, module in base.named_modules():
        if isinstance(dict(module.named_children()).get(_FUSED_SHARED), nn.Linear):
            yield name, module


@dataclass(frozen=True)
class Transformer:
    """A network of Hugging Face by its parts.

    Attributes:
        module: The network, with its classifier if it has one.
        base: The transformer in it.
        config: Its config.
        attentions: Its attention modules.
        intermediate: By name, the layers that widen the hidden states.
        shared: Attention modules whose heads stay as they are, because one layer gives all that several of them share.
    """

    module: Any
    base: nn.Module
    config: Any
    attentions: tuple[Attention, ...]
    intermediate: Mapping[str, nn.Module]
    shared: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, name: str, module: Any) -> Transformer:
        """Find the parts."""
        config, base = module.config, module.base_model
        label = name or type(module).__name__
        if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
            raise UnsupportedModelError(
                f"{label} has an encoder and a decoder; expected one of them: cross attention is not supported"
            )
        attentions, shared = tuple(attentions_of(base)), tuple(shared_attentions_of(base))
        if not attentions and not shared:
            raise UnsupportedModelError(
                f"{label} has no attention whose layers are named as known here; expected one of {_QUERY_KEY_VALUE}, "
                f"{_FUSED!r} or {_FUSED_SHARED!r}: pass num_heads and ignored_layers to the pruner by hand"
            )
        intermediate = {
            n: layer for n, layer in base.named_modules() if any(f".{n}".endswith(f".{end}") for end in _INTERMEDIATE)
        }
        return cls(module, base, config, attentions, intermediate, shared)

    @property
    def fused_intermediate(self) -> list[nn.Module]:
        """Layers that give the gate and what it multiplies, one behind the other."""
        return [layer for name, layer in self.intermediate.items() if f".{name}".endswith(f".{_FUSED_INTERMEDIATE}")]

    def hidden_sizes(self) -> list[int]:
        """How many channels enter attention and feed-forward layers; several where stages have their own."""
        layers = [layer for a in self.attentions for layer in (a.query, a.key, a.value)]
        layers += [getattr(module, _FUSED_SHARED) for _, module in self.shared]
        return list(dict.fromkeys(widths(layer)[0] for layer in (*layers, *self.intermediate.values())))

    def check(self, wanted: set[Part]) -> None:
        """Refuse what can't be pruned here."""
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
        if self.shared and wanted & {"heads", "head_dims"}:
            raise UnsupportedModelError(
                f"{self.shared[0][0]}.{_FUSED_SHARED} gives queries, and keys and values that they share, so its heads "
                "can't be pruned yet; leave 'heads' and 'head_dims' out of prune="
            )
        biased = [f"{a.name}.{name}" for a in self.attentions for name, _ in bare_parameters(a.module)]
        if "heads" in wanted and biased:
            raise UnsupportedModelError(
                f"{biased[0]} holds numbers for every head, and Torch-Pruning doesn't know that they go with it; leave "
                "'heads' out of prune="
            )
        rotary = [attention.name for attention in self.attentions if attention.rotary]
        if "head_dims" in wanted and rotary:
            raise UnsupportedModelError(
                f"{rotary[0]} rotates pairs of head dimensions by their position, and all layers share the angles, so "
                "that no dimension can go by itself; use 'heads' in place of 'head_dims'"
            )

    def layers(self, types: tuple[type[nn.Module], ...]) -> Iterator[tuple[nn.Module, set[Part]]]:
        """Layers of these types, and embeddings, with the parts that their outputs belong to."""
        of_heads = {layer for attention in self.attentions for layer in attention.outputs()}
        of_heads |= {getattr(module, _FUSED_SHARED) for _, module in self.shared}
        widening = set(self.intermediate.values())
        for layer in self.base.modules():
            if not isinstance(layer, (*types, nn.Embedding)):
                continue
            if layer in of_heads:
                yield layer, {"heads", "head_dims"}
            else:
                yield layer, {"intermediate" if layer in widening else "hidden"}
