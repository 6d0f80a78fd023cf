"""Transformers of Hugging Face, for Torch-Pruning: the options that its pruner needs, and the sizes it leaves behind.

The network needs no change, and ``transformers`` is not imported here: everything is read from the modules and from
``config``.

Example:
    >>> import pytest
    >>> transformers = pytest.importorskip("transformers", exc_type=ImportError)  # doctest: +SKIP
    >>> config = transformers.BertConfig(  # doctest: +SKIP
    ...     vocab_size=30, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40
    ... )
    >>> model = transformers.BertForSequenceClassification(config)  # doctest: +SKIP
    >>> pruner = tp.pruner.BasePruner(  # doctest: +SKIP
    ...     model, example_inputs(model), importance=tp.importance.GroupMagnitudeImportance(), **pruning_options(model)
    ... )
    >>> pruner.step()  # doctest: +SKIP
    >>> update_sizes(model, pruner)  # doctest: +SKIP
    >>> model.config.intermediate_size  # doctest: +SKIP
    20
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import InputError, UnsupportedModelError

from .torch_pruning.layers import describe_layer, description_of

__all__ = ["Part", "example_inputs", "pruning_options", "update_sizes"]

Part = Literal["intermediate", "heads", "head_dims", "hidden"]
"""What can be pruned: channels of the feed-forward layers (``config.intermediate_size``), whole attention heads, the
dimensions of every head, the hidden size with the embeddings."""

_PARTS: tuple[Part, ...] = ("intermediate", "heads", "head_dims", "hidden")

_QUERY_KEY_VALUE = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))
_FUSED, _FUSED_OUTPUT = "c_attn", "c_proj"
_INTERMEDIATE = ("intermediate.dense", "mlp.fc1", "ffn.lin1", "mlp.c_fc", "mlp.gate_proj", "mlp.up_proj")
"""Ends of the names of the layers that widen the hidden states, in BERT, ViT, DistilBERT, GPT-2 and Llama."""

# where the modules and configs of the families keep their sizes
_HEADS = ("num_attention_heads", "num_heads", "n_heads")
_HEAD_SIZE = ("attention_head_size", "head_dim")
_ALL_HEADS = ("all_head_size", "split_size")
_HIDDEN = ("hidden_size", "embed_dim", "dim")
_CONFIG_INTERMEDIATE = ("intermediate_size", "n_inner", "hidden_dim")


# What the host needs -----------------------------------------------------------------------------------------


def pruning_options(model: nn.Module, prune: Collection[Part] = ("intermediate", "heads")) -> dict[str, Any]:
    """Arguments of ``tp.pruner.BasePruner`` for a transformer, or for a network with transformers in it.

    Layers outside the transformer (the classifier) keep their outputs. Whole heads are removed only if the pruner is
    given ``head_pruning_ratio`` too.

    Args:
        model: A network of Hugging Face, or a module that holds some: BERT, RoBERTa, DistilBERT, ViT, GPT-2, Llama,
            and what names its layers as these do.
        prune: What may be pruned: ``"intermediate"``, ``"heads"``, ``"head_dims"``, ``"hidden"``.

    Returns:
        ``num_heads``, ``ignored_layers``, ``customized_pruners``, ``output_transform`` and so on.

    Raises:
        InputError: The network holds no transformer, or ``prune`` names something else.
        UnsupportedModelError: A part can't be pruned in this network.

    Example:
        >>> pruning_options(nn.Linear(2, 2))
        Traceback (most recent call last):
        ...
        fairtrim.errors.InputError: got a Linear without any transformer of Hugging Face in it; expected one, or a ...
    """
    wanted = _checked_parts(prune)
    transformers = [_Transformer.of(name, module) for name, module in _outermost(model)]
    for transformer in transformers:
        transformer.check(wanted)
    inside = {module for transformer in transformers for module in transformer.base.modules()}
    head = [layer for layer in model.modules() if isinstance(layer, _layer_types(model)) and layer not in inside]
    if not head and "hidden" in wanted:
        raise UnsupportedModelError(
            f"the hidden states of this {type(model).__name__} are its output, so its hidden size can't be pruned; "
            "leave 'hidden' out of prune=, or pass the network that has the classifier"
        )
    kept = [layer for t in transformers for layer, part in t.parts(_layer_types(model)) if not part & wanted]
    return {
        "num_heads": {layer: n for t in transformers for a in t.attentions for layer, n in a.heads_by_layer().items()},
        "prune_num_heads": "heads" in wanted,
        "prune_head_dims": "head_dims" in wanted,
        "ignored_layers": head + kept,
        "root_module_types": list(_layer_types(model)),
        "customized_pruners": _customized_pruners(model),
        "unwrapped_parameters": [pair for t in transformers for pair in _bare_parameters(t.base)],
        "output_transform": _scores,
        "forward_fn": _traced_forward,
        # the host's defaults are dicts that all its pruners share
        "in_channel_groups": {},
        "out_channel_groups": {},
    }


def example_inputs(model: nn.Module, *, batch_size: int = 2) -> dict[str, Tensor]:
    """Inputs to trace a transformer with, made from its config: token ids and mask, or images.

    Args:
        model: A network of Hugging Face, or a module with the same arguments around one.
        batch_size: N; with 1 the host may take the samples' axis for none.

    Returns:
        ``input_ids`` and ``attention_mask``, (N, T) each, or ``pixel_values`` (N, C, H, W), on the model's device.

    Raises:
        InputError: There is no transformer, or its input is neither text nor images.
    """
    name, transformer = next(iter(_outermost(model)))
    config, main = transformer.config, getattr(transformer, "main_input_name", "input_ids")
    first = next(model.parameters())
    if main == "input_ids":
        length = min(8, int(getattr(config, "max_position_embeddings", 8)) - 2)
        padding = getattr(config, "pad_token_id", None)
        known = [token for token in range(int(config.vocab_size)) if token != padding][:length]
        row = torch.tensor([known[k % len(known)] for k in range(length)], device=first.device)
        ids = row.expand(batch_size, -1).contiguous()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if main == "pixel_values":
        size = config.image_size
        height, width = size if isinstance(size, Sequence) else (size, size)
        shape = batch_size, int(config.num_channels), height, width
        return {"pixel_values": torch.zeros(shape, dtype=first.dtype, device=first.device)}
    raise InputError(
        f"{name or type(transformer).__name__} takes {main!r}; expected input_ids or pixel_values: make "
        "the example inputs by hand, as a dict"
    )


# What the host leaves behind ---------------------------------------------------------------------------------


def update_sizes(model: nn.Module, pruner: tp.pruner.BasePruner | None = None) -> None:
    """Write what is left after a step into the attention modules and the config; before that the network can't run.

    Heads, head sizes and widths are those of the layers themselves. The scale of the attention scores stays what it
    was, 1/√(head size before pruning): removing dimensions then does what the gates predicted. A network that is built
    from the config alone has another one, so this is among the things that a warning names: what the config has no
    words for is kept by ``fairtrim.save_pruned`` only, to be loaded into a network of the original config.

    Args:
        model: The pruned network.
        pruner: Its pruner, which knows how many heads each layer has left; None for a network that was loaded, whose
            modules know it.

    Raises:
        InputError: The network holds no transformer.
        UnsupportedModelError: Layers don't fit together, because the host pruned something out of its sight.
    """
    for name, module in _outermost(model):
        transformer = _Transformer.of(name, module)
        unsaid = transformer.update(pruner)
        if unsaid:
            warnings.warn(
                f"{type(transformer.config).__name__} can't say that " + "; that ".join(unsaid) + ". Save with "
                "fairtrim.save_pruned, and load into a network of the original config",
                stacklevel=2,
            )


# Finding the parts -------------------------------------------------------------------------------------------


def _outermost(model: nn.Module) -> list[tuple[str, Any]]:
    """Networks of Hugging Face in a module that lie in no other one."""
    found: list[tuple[str, Any]] = []
    for name, module in model.named_modules():
        if (
            hasattr(module, "base_model_prefix")
            and hasattr(module, "config")
            and not any(name.startswith(f"{outer}.") or not outer for outer, _ in found)
        ):
            found.append((name, module))
    if not found:
        raise InputError(
            f"got a {type(model).__name__} without any transformer of Hugging Face in it; expected one, or a module "
            "that holds one"
        )
    return found


def _checked_parts(prune: Collection[Part]) -> set[Part]:
    unknown = [prune] if isinstance(prune, str) else [part for part in prune if part not in _PARTS]
    if unknown or not prune:
        raise InputError(f"prune={prune!r}; expected a collection of some of {_PARTS}")
    return set(prune)


def _is_conv1d(module: object) -> bool:
    """Hugging Face's Conv1D, a linear layer whose weight is (in, out)."""
    return isinstance(module, nn.Module) and type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _is_rms_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm") and [n for n, _ in module.named_parameters()] == ["weight"]


def _layer_types(model: nn.Module) -> tuple[type[nn.Module], ...]:
    conv1d = {type(module) for module in model.modules() if _is_conv1d(module)}
    return (nn.modules.conv._ConvNd, nn.Linear, *conv1d)


def _widths(layer: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer, from its weight."""
    rows, columns = layer.weight.shape
    return (rows, columns) if _is_conv1d(layer) else (columns, rows)


@dataclass(frozen=True)
class _Attention:
    """One attention module: its layers, and how many heads they hold."""

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

    def head_size(self) -> int:
        """What the module says of the size of its heads."""
        return next(int(vars(self.module)[name]) for name in _HEAD_SIZE if name in vars(self.module))

    def heads_by_layer(self) -> dict[nn.Module, int]:
        """Heads of each layer as the module stands."""
        repeats = 3 if self.fused else 1
        return {layer: _widths(layer)[1] // repeats // self.head_size() for layer in (self.query, self.key, self.value)}


@dataclass(frozen=True)
class _Transformer:
    """A network of Hugging Face by its parts."""

    module: Any
    base: nn.Module
    config: Any
    attentions: tuple[_Attention, ...]
    intermediate: Mapping[str, nn.Module]

    @classmethod
    def of(cls, name: str, module: Any) -> _Transformer:
        config, base = module.config, module.base_model
        label = name or type(module).__name__
        if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
            raise UnsupportedModelError(
                f"{label} has an encoder and a decoder; expected one of them: cross attention is not supported"
            )
        attentions = tuple(_attentions(base))
        if not attentions:
            raise UnsupportedModelError(
                f"{label} has no attention whose layers are named as known here; expected one of {_QUERY_KEY_VALUE} or "
                f"{_FUSED!r}: pass num_heads and ignored_layers to the pruner by hand"
            )
        intermediate = {
            n: layer for n, layer in base.named_modules() if any(f".{n}".endswith(f".{end}") for end in _INTERMEDIATE)
        }
        return cls(module, base, config, attentions, intermediate)

    def check(self, wanted: Collection[Part]) -> None:
        """Refuse parts that can't be pruned here."""
        if "intermediate" in wanted and not self.intermediate:
            raise UnsupportedModelError(
                f"{type(self.base).__name__} has no feed-forward layer whose name ends in one of {_INTERMEDIATE}; "
                "leave 'intermediate' out of prune="
            )
        rotary = [attention.name for attention in self.attentions if attention.rotary]
        if "head_dims" in wanted and rotary:
            raise UnsupportedModelError(
                f"{rotary[0]} rotates pairs of head dimensions by their position, and all layers share the angles, so "
                "that no dimension can go by itself; use 'heads' in place of 'head_dims'"
            )

    def parts(self, types: tuple[type[nn.Module], ...]) -> Iterator[tuple[nn.Module, set[Part]]]:
        """Layers with the parts that their outputs belong to."""
        of_heads = {layer for a in self.attentions for layer in (a.query, a.key, a.value)}
        widening = set(self.intermediate.values())
        for layer in self.base.modules():
            if isinstance(layer, (*types, nn.Embedding)):
                yield (
                    layer,
                    {"heads", "head_dims"}
                    if layer in of_heads
                    else {"intermediate"}
                    if layer in widening
                    else {"hidden"},
                )

    def update(self, pruner: tp.pruner.BasePruner | None) -> list[str]:
        """Set the sizes; what the config has no words for."""
        unsaid: list[str] = []
        before = int(self.config.hidden_size)
        hidden = _widths(self.attentions[0].query)[0]
        counts = [self._update_attention(attention, pruner, unsaid) for attention in self.attentions]
        self._update_pooler(hidden, unsaid)
        for module in self.base.modules():
            for name in _HIDDEN:
                if type(vars(module).get(name)) is int and vars(module)[name] == before:
                    setattr(module, name, hidden)
        self.config.hidden_size = hidden
        self._say("num_attention_heads", [heads for heads, _, _ in counts], unsaid)
        if hasattr(self.config, "num_key_value_heads"):
            self._say("num_key_value_heads", [heads for _, heads, _ in counts], unsaid)
        sizes = {size for _, _, size in counts}
        if getattr(self.config, "head_dim", None) is not None:
            self._say("head_dim", [size for _, _, size in counts], unsaid)
        elif any(heads * size != hidden for heads, _, size in counts):
            unsaid.append(f"heads have {_listed(sizes)} dimensions (it takes hidden_size / num_attention_heads)")
        self._update_intermediate(unsaid)
        self._tie()
        return unsaid

    def _update_attention(
        self, attention: _Attention, pruner: tp.pruner.BasePruner | None, unsaid: list[str]
    ) -> tuple[int, int, int]:
        """Heads, key and value heads and head size of one module, now written into it."""
        known = attention.heads_by_layer()
        if pruner is not None:
            known |= {layer: pruner.num_heads[layer] for layer in known if layer in pruner.num_heads}
        widths = {layer: _widths(layer)[1] // (3 if attention.fused else 1) for layer in known}
        before = attention.head_size()
        for layer in known:
            if known[layer] < 1 or widths[layer] % known[layer]:
                # the host counts heads away before it finds that it must skip a layer that would lose all of them
                known[layer] = widths[layer] // before
                if pruner is not None:
                    pruner.num_heads[layer] = pruner.out_channel_groups[layer] = known[layer]
        sizes = {widths[layer] // known[layer] if known[layer] else 0 for layer in known}
        if len(sizes) != 1 or 0 in sizes or any(widths[layer] % known[layer] for layer in known):
            raise UnsupportedModelError(
                f"{attention.name}: query, key and value have {list(widths.values())} outputs and {list(known.values())} "
                "heads; expected heads of one size: prune with the options of pruning_options(model)"
            )
        heads, shared, size = known[attention.query], known[attention.key], sizes.pop()
        module = attention.module
        for names, value in (
            (_HEADS, heads),
            (_HEAD_SIZE, size),
            (_ALL_HEADS, heads * size),
            (("num_key_value_heads",), shared),
            (("num_key_value_groups",), heads // shared),
        ):
            for name in names:
                if type(vars(module).get(name)) is int:
                    setattr(module, name, value)
        if size != before and isinstance(getattr(module, "scaling", None), float):
            unsaid.append(f"{attention.name} scales its scores by {module.scaling:.3g}, for {before} dimensions a head")
        return heads, shared, size

    def _update_intermediate(self, unsaid: list[str]) -> None:
        widths: dict[nn.Module, int] = {}
        for name, layer in self.intermediate.items():
            owner = self.base.get_submodule(name.rpartition(".")[0])
            widths[owner] = _widths(layer)[1]
            if type(vars(owner).get("intermediate_size")) is int:
                owner.intermediate_size = widths[owner]
        name = next((name for name in _CONFIG_INTERMEDIATE if hasattr(self.config, name)), "")
        if name and widths:
            self._say(name, list(widths.values()), unsaid)

    def _say(self, name: str, values: Sequence[int], unsaid: list[str]) -> None:
        """Write one number for all layers into the config, or say that there is none."""
        if len(set(values)) == 1:
            if getattr(self.config, name) != values[0]:
                setattr(self.config, name, values[0])
        else:
            unsaid.append(f"{name} is {_listed(values)} in its layers (it stays at {getattr(self.config, name)})")

    def _update_pooler(self, hidden: int, unsaid: list[str]) -> None:
        dense = getattr(getattr(self.base, "pooler", None), "dense", None)
        if not isinstance(dense, nn.Linear):
            return
        if dense.in_features != hidden:
            raise UnsupportedModelError(
                f"the pooler of {type(self.base).__name__} expects {dense.in_features} hidden channels and {hidden} are "
                "left: the scores don't depend on it, so the host didn't see it. Build the network with "
                "add_pooling_layer=False, and prune again"
            )
        if hasattr(self.config, "pooler_output_size"):
            self.config.pooler_output_size = dense.out_features
        elif dense.out_features != hidden:
            unsaid.append(f"its pooler gives {dense.out_features} channels")

    def _tie(self) -> None:
        """Let weights that were shared before the host replaced both be one again."""
        if not getattr(self.config, "tie_word_embeddings", False):
            return
        inputs, outputs = self.module.get_input_embeddings(), self.module.get_output_embeddings()
        if outputs is not None and torch.equal(outputs.weight, inputs.weight):
            outputs.weight = inputs.weight


def _listed(values: Collection[int]) -> str:
    return ", ".join(map(str, values))


def _attentions(base: nn.Module) -> Iterator[_Attention]:
    for name, module in base.named_modules():
        children = dict(module.named_children())
        for names in _QUERY_KEY_VALUE:
            if all(isinstance(children.get(child), nn.Linear) for child in names):
                yield _Attention(name, module, *(children[child] for child in names))
        if _is_conv1d(children.get(_FUSED)):
            yield _Attention(name, module, *[children[_FUSED]] * 3)


def _bare_parameters(base: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Parameters that no layer owns, as ViT's positions, with the axis of their channels: the last one."""
    for module in base.modules():
        if description_of(module) is None and not _is_conv1d(module) and not _is_rms_norm(module):
            for parameter in module.parameters(recurse=False):
                yield parameter, parameter.ndim - 1


# What the host has to be told --------------------------------------------------------------------------------


class _Conv1DPruner(tp.BasePruningFunc):  # type: ignore[misc]
    """The host's LinearPruner for a weight (in, out)."""

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        kept = sorted(set(range(layer.nf)) - set(idxs))
        layer.weight = self._prune_parameter_and_grad(layer.weight, kept, 1)
        layer.bias = self._prune_parameter_and_grad(layer.bias, kept, 0)
        layer.nf = len(kept)
        return layer  # type: ignore[no-any-return]

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        kept = sorted(set(range(layer.nx)) - set(idxs))
        layer.weight = self._prune_parameter_and_grad(layer.weight, kept, 0)
        layer.nx = len(kept)
        return layer  # type: ignore[no-any-return]

    def get_out_channels(self, layer: Any) -> int:
        return int(layer.nf)

    def get_in_channels(self, layer: Any) -> int:
        return int(layer.nx)


class _RMSNormPruner(tp.BasePruningFunc):  # type: ignore[misc]
    """Channels pass through; the same function for both sides tells the host so."""

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        kept = sorted(set(range(len(layer.weight))) - set(idxs))
        layer.weight = self._prune_parameter_and_grad(layer.weight, kept, 0)
        if hasattr(layer, "normalized_shape"):
            layer.normalized_shape = (len(kept),)
        return layer  # type: ignore[no-any-return]

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Any) -> int:
        return len(layer.weight)

    def get_in_channels(self, layer: Any) -> int:
        return len(layer.weight)


def _customized_pruners(model: nn.Module) -> dict[type[nn.Module], tp.BasePruningFunc]:
    pruners: dict[type[nn.Module], tp.BasePruningFunc] = {}
    for layer_type in {type(module) for module in model.modules() if _is_conv1d(module)}:
        describe_layer(layer_type, input_parameters={"weight": 0}, output_parameters={"weight": 1, "bias": 0})
        pruners[layer_type] = _Conv1DPruner()
        if not hasattr(layer_type, "out_features"):  # where the host removes whole heads it asks for this name
            layer_type.out_features = property(lambda layer: layer.nf)  # type: ignore[attr-defined]
    for layer_type in {type(module) for module in model.modules() if _is_rms_norm(module)}:
        if not issubclass(layer_type, getattr(nn, "RMSNorm", ())):
            describe_layer(layer_type, input_parameters={"weight": 0}, output_parameters={"weight": 0})
        pruners[layer_type] = _RMSNormPruner()
    return pruners


def _scores(output: Any) -> Tensor:
    """The tensor whose graph the host follows."""
    for name in ("logits", "last_hidden_state"):
        if hasattr(output, name):
            output = getattr(output, name)
    return output[0] if isinstance(output, tuple | list) else output  # type: ignore[no-any-return]


def _traced_forward(model: nn.Module, inputs: Any) -> Any:
    """Run the network for the host's trace, with a stand-in for the attention that it can't follow."""
    attentions = [a for _, module in _outermost(model) for a in _attentions(module.base_model)]
    with _stand_ins([a for a in attentions if a.rotary or a.fused]):
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


@contextmanager
def _stand_ins(attentions: Sequence[_Attention]) -> Iterator[None]:
    """Attention without rotations and softmax, in which the same channels are coupled.

    The host's walk does not end on the slices of rotary positions, and it does not see that GPT-2's split at axis 2 is
    one of channels.
    """
    try:
        for attention in attentions:
            attention.module.forward = _stand_in(attention)
        yield
    finally:
        for attention in attentions:
            del attention.module.forward


def _stand_in(attention: _Attention) -> Callable[..., tuple[Tensor, None]]:
    module = attention.module

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        if attention.fused:
            query, key, value = attention.query(hidden_states).chunk(3, -1)
            mixed: Tensor = getattr(module, _FUSED_OUTPUT)(query + key + value)
            return mixed, None
        shape = (*hidden_states.shape[:2], -1, attention.head_size())
        query, key, value = (
            layer(hidden_states).view(shape).transpose(1, 2)
            for layer in (attention.query, attention.key, attention.value)
        )
        key, value = (_repeated(states, query.shape[1] // states.shape[1]) for states in (key, value))
        mixed = module.o_proj((query + key + value).transpose(1, 2).reshape(*hidden_states.shape[:2], -1))
        return mixed, None

    return forward


def _repeated(states: Tensor, times: int) -> Tensor:
    """Keys or values for the queries that share them, in the operations whose form the host knows."""
    if times == 1:
        return states
    n, heads, length, size = states.shape
    return states[:, :, None].expand(n, heads, times, length, size).reshape(n, heads * times, length, size)
