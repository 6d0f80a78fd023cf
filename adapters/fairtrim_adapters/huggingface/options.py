"""What Torch-Pruning must be told about a transformer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import InputError, UnsupportedModelError
from fairtrim_adapters.torch_pruning.graph.layers import describe_layer, description_of
from fairtrim_adapters.torch_pruning.graph.shared_heads import correct_traced_graph, shared_by
from fairtrim_adapters.torch_pruning.graph.tracing import RMSNormPruner

from .parts import (
    PARTS,
    Attention,
    Part,
    Transformer,
    attentions_of,
    bare_parameters,
    is_conv1d,
    is_rms_norm,
    layer_types,
    outermost,
)

__all__ = ["example_inputs", "pruning_options"]


def pruning_options(model: nn.Module, prune: Collection[Part] | None = None) -> dict[str, Any]:
    """Arguments of ``tp.pruner.BasePruner`` for a transformer, or for a network with transformers in it.

    Layers outside the transformer (the classifier) keep their outputs. Whole heads are removed only if the pruner is
    given ``head_pruning_ratio`` too.

    Args:
        model: A network of Hugging Face, or a module that holds some: BERT, RoBERTa, DistilBERT, ViT, GPT-2, Llama,
            Qwen2 and 3, Mistral, Gemma, Phi-3, OPT, and what names its layers as these do.
        prune: What may be pruned: ``"intermediate"``, ``"heads"``, ``"query_heads"``, ``"head_dims"``, ``"hidden"``; by
            default the first two, or the first alone where heads can't go. Where query heads share keys and values,
            ``"heads"`` are those of keys and values with all their query heads, and ``"query_heads"`` takes the same
            number of query heads from each.

    Returns:
        ``num_heads``, ``ignored_layers``, ``customized_pruners``, ``output_transform`` and so on.

    Raises:
        InputError: The network holds no transformer, or ``prune`` names something else.
        UnsupportedModelError: A part can't be pruned in this network.

    Example:
        >>> pruning_options(nn.Linear(2, 2))
        Traceback (most recent call last):
        fairtrim.errors.InputError: got a Linear without any transformer of Hugging Face in it; expected one, or a \
module that holds one
    """
    if prune is not None and (isinstance(prune, str) or not prune or not set(prune) <= set(PARTS)):
        raise InputError(f"prune={prune!r}; expected a collection of some of {PARTS}")
    if prune is not None and {"heads", "query_heads"} <= set(prune):
        raise InputError(
            f"prune={prune!r} names two ways to remove heads; expected one: 'heads' takes query heads "
            "together with the keys and values that they share, 'query_heads' some of them from each"
        )
    transformers = [Transformer.of(name, module) for name, module in outermost(model)]
    fixed = any(transformer.heads_stay({"heads"}) for transformer in transformers)
    wanted: set[Part] = set(prune) if prune is not None else {"intermediate"} if fixed else {"intermediate", "heads"}
    for transformer in transformers:
        transformer.check(wanted)
    evenly = "query_heads" in wanted
    types = layer_types(model)
    inside = {module for transformer in transformers for module in transformer.base.modules()}
    head = [layer for layer in model.modules() if isinstance(layer, types) and layer not in inside]
    if not head and "hidden" in wanted:
        raise UnsupportedModelError(
            f"the hidden states of this {type(model).__name__} are its output, so its hidden size can't be pruned; "
            "leave 'hidden' out of prune=, or pass the network that has the classifier"
        )
    if "hidden" in wanted:
        for transformer in transformers:
            _check_tied(transformer, types)
    kept = [layer for t in transformers for layer, parts in t.layers(types) if not parts & wanted]
    return {
        "num_heads": {layer: n for t in transformers for a in t.attentions for layer, n in a.heads(evenly).items()},
        "prune_num_heads": bool(wanted & {"heads", "query_heads"}),
        "prune_head_dims": "head_dims" in wanted,
        "ignored_layers": head + kept,
        "root_module_types": list(types),
        "customized_pruners": _customized_pruners(model),
        "unwrapped_parameters": [
            (parameter, parameter.ndim - 1)  # as ViT's positions: the last axis is that of the channels
            for t in transformers
            for _, parameter in bare_parameters(t.base)
        ],
        "output_transform": _scores,
        "forward_fn": partial(_traced_forward, together=not evenly),
        # Torch-Pruning's defaults are dicts that all its pruners share
        "in_channel_groups": {},
        "out_channel_groups": {layer: 2 for t in transformers for layer in t.fused_intermediate},
    }


def _check_tied(transformer: Transformer, types: tuple[type[nn.Module], ...]) -> None:
    """Refuse embeddings whose weight is that of an output layer that doesn't read the hidden states themselves."""
    inputs, outputs = transformer.module.get_input_embeddings(), transformer.module.get_output_embeddings()
    if outputs is None or outputs.weight is not inputs.weight:
        return
    inside = set(transformer.base.modules())
    for name, layer in transformer.module.named_modules():
        if isinstance(layer, types) and layer not in inside and layer is not outputs:
            raise UnsupportedModelError(
                f"the embeddings of {type(transformer.module).__name__} share their weight with its output layer, "
                f"which reads {name!r} and not the hidden states, so that it would keep what they lose; leave 'hidden' "
                "out of prune=, or untie them: model.config.tie_word_embeddings = False, and give the output layer a "
                "weight of its own, nn.Parameter(weight.detach().clone())"
            )


def example_inputs(model: nn.Module, *, batch_size: int = 2) -> dict[str, Tensor]:
    """Inputs to trace a transformer with, made from its config: token ids and mask, or images.

    Args:
        model: A network of Hugging Face, or a module with the same arguments around one.
        batch_size: N; with 1 Torch-Pruning may take the samples' axis for none.

    Returns:
        ``input_ids`` and ``attention_mask``, (N, T) each, or ``pixel_values`` (N, C, H, W), on the model's device.

    Raises:
        InputError: There is no transformer, or its input is neither text nor images.

    Example:
        >>> example_inputs(nn.Linear(2, 2))
        Traceback (most recent call last):
        fairtrim.errors.InputError: got a Linear without any transformer of Hugging Face in it; expected one, or a \
module that holds one
    """
    transformer = outermost(model)[0][1]
    config, main = transformer.config, getattr(transformer, "main_input_name", "input_ids")
    first = next(model.parameters())
    if main == "input_ids":
        length = max(1, min(8, int(getattr(config, "max_position_embeddings", 10)) - 2))
        padding = getattr(config, "pad_token_id", None)
        words = [token for token in range(min(int(config.vocab_size), length + 1)) if token != padding]
        row = torch.tensor([words[k % len(words)] for k in range(length)], device=first.device)
        ids = row.expand(batch_size, -1).contiguous()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if main == "pixel_values":
        size = config.image_size
        height, width = size if isinstance(size, Sequence) else (size, size)
        shape = batch_size, int(config.num_channels), height, width
        return {"pixel_values": torch.zeros(shape, dtype=first.dtype, device=first.device)}
    raise InputError(
        f"{type(transformer).__name__} takes {main!r}; expected input_ids or pixel_values: make the example inputs by "
        "hand, as a dict"
    )


def _scores(output: Any) -> Tensor:
    """The tensor whose graph Torch-Pruning follows."""
    for name in ("logits", "last_hidden_state"):
        if hasattr(output, name):
            output = getattr(output, name)
    return output[0] if isinstance(output, tuple | list) else output  # type: ignore[no-any-return]


# Layers that Torch-Pruning doesn't know ---------------------------------------------------------------------------


class _Conv1DPruner(tp.BasePruningFunc):  # type: ignore[misc]
    """Torch-Pruning's LinearPruner for a weight (in, out)."""

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        kept = sorted(set(range(layer.nf)) - set(idxs))
        layer.weight = self._prune_parameter_and_grad(layer.weight, kept, 1)
        layer.bias = self._prune_parameter_and_grad(layer.bias, kept, 0)
        layer.nf = len(kept)
        if "out_features" in vars(layer):
            layer.out_features = np.int64(layer.nf)
        return layer

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
        kept = sorted(set(range(layer.nx)) - set(idxs))
        layer.weight = self._prune_parameter_and_grad(layer.weight, kept, 0)
        layer.nx = len(kept)
        return layer

    def get_out_channels(self, layer: Any) -> int:
        return int(layer.nf)

    def get_in_channels(self, layer: Any) -> int:
        return int(layer.nx)


def _customized_pruners(model: nn.Module) -> dict[type[nn.Module], tp.BasePruningFunc]:
    """Pruners for layers that Torch-Pruning doesn't know; types that nobody has described yet are described."""
    pruners: dict[type[nn.Module], tp.BasePruningFunc] = {}
    module: Any
    for module in model.modules():
        conv1d = is_conv1d(module)
        if not conv1d and not is_rms_norm(module):
            continue
        pruners[type(module)] = _Conv1DPruner() if conv1d else RMSNormPruner()
        if conv1d and not hasattr(type(module), "out_features"):
            # where Torch-Pruning removes whole heads it asks for this name; save_pruned would store an int of Python's,
            # and a network that was only built has no counterpart to it
            module.out_features = np.int64(module.nf)
        if description_of(module) is None:
            outputs = {"weight": 1, "bias": 0} if conv1d else {"weight": 0}
            describe_layer(type(module), input_parameters={"weight": 0}, output_parameters=outputs)
    return pruners


# Attention that Torch-Pruning can't follow ------------------------------------------------------------------------


def _traced_forward(model: nn.Module, inputs: Any, *, together: bool) -> Any:
    """Run the network for Torch-Pruning's trace, with stand-ins for some attention.

    ``together``: whether query heads go only with the keys that they share.
    """
    correct_traced_graph()
    attentions = [a for _, module in outermost(model) for a in attentions_of(module.base_model)]
    forwards = {a.module: _stand_in(a, together) for a in attentions if a.rotary or a.fused}
    with _stand_ins(forwards), _no_cache(model), _unhooked_if_it_fails(model):
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


@contextmanager
def _unhooked_if_it_fails(model: nn.Module) -> Iterator[None]:
    """Torch-Pruning leaves the hooks of its trace where the network is interrupted."""
    try:
        yield
    except BaseException:
        for module in model.modules():
            for key, hook in list(module._forward_hooks.items()):
                if getattr(hook, "__name__", "") == "_record_grad_fn":
                    del module._forward_hooks[key]
        raise


@contextmanager
def _no_cache(model: nn.Module) -> Iterator[None]:
    """Keys and values that a network would keep for the next token are no outputs to prune by."""
    every: list[Any] = [module.config for module in model.modules() if hasattr(module, "config")]
    configs = {id(config): config for config in every if getattr(config, "use_cache", False)}
    try:
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for config in configs.values():
            config.use_cache = True


@contextmanager
def _stand_ins(forwards: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """Attention without rotations and softmax, in which the same channels are coupled.

    Torch-Pruning's walk does not end on the slices of rotary positions, and it does not see that GPT-2's split at axis
    2 is one of channels.
    """
    own = {module: vars(module).get("forward") for module in forwards}  # as a hook of accelerate's
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, forward in own.items():
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward


def _stand_in(attention: Attention, together: bool) -> Callable[..., tuple[Tensor, None]]:
    output: Any = attention.output

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        if attention.fused:
            query, key, value = attention.query(hidden_states).split(attention.parts(), -1)
        else:
            query, key, value = (layer(hidden_states) for layer in (attention.query, attention.key, attention.value))
        if attention.grouped:
            size, times = attention.head_size, attention.sharing
            key, value = (shared_by(states, size=size, times=times, together=together) for states in (key, value))
        return output(value + key + query), None  # the walk from behind meets the last first: queries, if any are more

    return forward
