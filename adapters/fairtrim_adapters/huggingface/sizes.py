"""The sizes of a pruned transformer, written where Hugging Face reads them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from fairtrim import UnsupportedModelError
from fairtrim.preservation import preserved_random_state
from fairtrim_adapters.torch_pruning.graph.head_counts import after_step_of

from .parts import HEAD_SIZE, Attention, Transformer, attentions_of, outermost, widths
from .refusals import read_from_gguf

__all__ = ["holds_transformers", "update_sizes"]

# what modules and configs of the families call the same thing
_HEADS = ("num_attention_heads", "num_heads", "n_heads")
_ALL_HEADS = ("all_head_size", "split_size")
_HIDDEN = ("hidden_size", "embed_dim", "dim")
_CONFIG_INTERMEDIATE = ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim")


def update_sizes(model: nn.Module, pruner: tp.pruner.BasePruner | None = None) -> None:
    """Write what is left after a step into the attention modules and the config; before that the network can't run.

    Heads, head sizes and widths are those of the layers themselves. The scale of the attention scores stays what it
    was, 1/√(head size before pruning): removing dimensions then does what the gates predicted. A network that is built
    from the config alone has another one, so this is among the things that a warning names: what the config has no
    words for is kept by ``fairtrim.save_pruned`` only, to be loaded into a network of the original config. Where stages
    have hidden sizes of their own (Swin) these can't be pruned, and ``config.hidden_size`` stays as it is.

    Args:
        model: The pruned network.
        pruner: Its pruner, which knows how many heads each layer has left; None for a network that was loaded, whose
            modules know it.

    Raises:
        InputError: The network holds no transformer.
        UnsupportedModelError: Layers don't fit together, because Torch-Pruning pruned something out of its sight.

    Example:
        >>> update_sizes(nn.Linear(2, 2))
        Traceback (most recent call last):
        fairtrim.errors.InputError: got a Linear without any transformer of Hugging Face in it; expected one, or a \
module that holds one
    """
    for name, module in outermost(model):
        if read_from_gguf(module):
            warnings.warn(
                "save_pretrained refuses a network whose config tells of the GGUF file that it was read from; before "
                "saving: del model.config.quantization_config, model.hf_quantizer",
                stacklevel=2,
            )
        unsaid = _updated(Transformer.of(name, module), pruner)
        if unsaid:
            warnings.warn(
                f"{type(module.config).__name__} can't say that " + "; that ".join(unsaid) + ". Save with "
                "fairtrim.save_pruned, and load into a network of the original config",
                stacklevel=2,
            )


def _updated(transformer: Transformer, pruner: tp.pruner.BasePruner | None) -> list[str]:
    """Write all sizes; what the config has no words for."""
    config, unsaid = transformer.config, list[str]()
    hidden = _update_hidden(transformer)
    counts = [_update_attention(attention, pruner, unsaid) for attention in transformer.attentions]
    if hidden is not None:
        _update_pooler(transformer, hidden, unsaid)
        _check_scale(transformer, hidden, unsaid)
    _say_heads(transformer, counts, unsaid)
    _update_intermediate(transformer, unsaid)
    unsaid.extend(_refusal(config))
    _tie(transformer)
    if not unsaid:
        unsaid.extend(_misread(transformer))
    return unsaid


def _say_heads(transformer: Transformer, counts: Sequence[tuple[int, int, int]], unsaid: list[str]) -> None:
    """Write heads, key and value heads and the head size into the config."""
    config = transformer.config
    _say(transformer, "num_attention_heads", [heads for heads, _, _ in counts], unsaid)
    if hasattr(config, "num_key_value_heads"):
        _say(transformer, "num_key_value_heads", [shared for _, shared, _ in counts], unsaid)
    sizes = [size for _, _, size in counts]
    # where keys can be shared, networks ask for this name also in configs that don't have it
    unsized = getattr(config, "num_key_value_heads", None) and getattr(config, "head_dim", None) is None
    if unsized and sizes[0] != config.hidden_size // config.num_attention_heads:
        config.head_dim = sizes[0]
    if getattr(config, "head_dim", None) is not None:
        _say(transformer, "head_dim", sizes, unsaid)
    elif any(
        heads * size != widths(attention.query)[0]
        for attention, (heads, _, size) in zip(transformer.attentions, counts, strict=True)
    ):
        dimensions = ", ".join(map(str, dict.fromkeys(sizes)))
        unsaid.append(f"heads have {dimensions} dimensions (it takes hidden_size / num_attention_heads)")
    for attention, (heads, _, _) in zip(transformer.attentions, counts, strict=True):
        if attention.fused and attention.rotary:  # Phi-3 asks the config for its heads, whatever the layer
            own = config if config.num_attention_heads == heads else copy.copy(config)
            own.num_attention_heads, attention.module.config = heads, own


def _update_hidden(transformer: Transformer) -> int | None:
    """Write the hidden size if there is one for all layers, and return it: stages have their own, which stay."""
    config, hidden_sizes = transformer.config, transformer.hidden_sizes()
    before = getattr(config, "hidden_size", None)
    if len(hidden_sizes) > 1 or type(before) is not int or before < hidden_sizes[0]:
        return None
    hidden = hidden_sizes[0]
    if hidden < before:
        for module in transformer.base.modules():
            for name in _HIDDEN:
                if type(vars(module).get(name)) is int and vars(module)[name] == before:
                    setattr(module, name, hidden)
        config.hidden_size = hidden
        if getattr(config, "word_embed_proj_dim", None) == before:  # OPT's embeddings, where nothing projects them
            config.word_embed_proj_dim = hidden
    return hidden


def _update_attention(
    attention: Attention, pruner: tp.pruner.BasePruner | None, unsaid: list[str]
) -> tuple[int, int, int]:
    """Heads, key and value heads, and head size of one module, now written into it."""
    module, before, outputs, heads = attention.module, attention.head_size, attention.outputs(), attention.heads()
    if attention.grouped:
        return _update_shared(attention, pruner)
    for layer in outputs:
        if pruner is None or layer not in pruner.num_heads:
            continue
        counted = pruner.num_heads[layer]
        if counted > 0 and outputs[layer] % counted == 0:
            heads[layer] = counted
        else:
            # Torch-Pruning counts heads away before it finds that it must skip a layer that would lose all of them
            pruner.num_heads[layer] = pruner.out_channel_groups[layer] = heads[layer]
    sizes = {width / heads[layer] if heads[layer] else 0 for layer, width in outputs.items()}
    if len(sizes) > 1 or not all(size >= 1 and size == int(size) for size in sizes):
        raise UnsupportedModelError(
            f"{attention.name}: query, key and value have {list(outputs.values())} outputs and {list(heads.values())} "
            "heads; expected heads of one size: prune with the options of pruning_options(model)"
        )
    n_heads, n_shared, size = heads[attention.query], heads[attention.key], int(sizes.pop())
    _write(module, n_heads, n_shared, size)
    if size != before and isinstance(getattr(module, "scaling", None), float):
        unsaid.append(f"{attention.name} scales its scores by {module.scaling:.3g}, for {before} dimensions a head")
    return n_heads, n_shared, size


def _update_shared(attention: Attention, pruner: tp.pruner.BasePruner | None) -> tuple[int, int, int]:
    """The same where heads of keys and values go with their query heads: all sizes are those of the layers."""
    size, (queries, keys, values) = attention.head_size, attention.parts()
    if keys != values or keys % size:
        raise UnsupportedModelError(
            f"{attention.name}: query, key and value have {[queries, keys, values]} outputs; expected heads of {size}: "
            "prune with the options of pruning_options(model)"
        )
    first = pruner.init_num_heads if pruner is not None else {}
    evenly = first.get(attention.query) != first.get(attention.key)
    for layer, heads in attention.heads(evenly).items():
        if pruner is not None and pruner.num_heads.get(layer, heads) != heads:  # counted away, and then skipped
            pruner.num_heads[layer] = pruner.out_channel_groups[layer] = heads
    _write(attention.module, queries // size, keys // size, size)
    return queries // size, keys // size, size


def _write(module: Any, n_heads: int, n_shared: int, size: int) -> None:
    """Write sizes into an attention module, under the names that it has."""
    for names, value in (
        (_HEADS, n_heads),
        (HEAD_SIZE, size),
        (_ALL_HEADS, n_heads * size),
        (("num_key_value_heads",), n_shared),
        (("num_key_value_groups",), n_heads // n_shared),
    ):
        for name in names:
            if type(vars(module).get(name)) is int:
                setattr(module, name, value)


def _update_intermediate(transformer: Transformer, unsaid: list[str]) -> None:
    found: dict[nn.Module, int] = {}
    fused = transformer.fused_intermediate
    for name, layer in transformer.intermediate.items():
        owner = transformer.base.get_submodule(name.rpartition(".")[0])
        found[owner] = widths(layer)[1] // (2 if layer in fused else 1)
        if type(vars(owner).get("intermediate_size")) is int:
            setattr(owner, "intermediate_size", found[owner])  # noqa: B010 - an attribute that nn.Module doesn't declare
    ratio = getattr(transformer.config, "mlp_ratio", 0)
    name = next((name for name in _CONFIG_INTERMEDIATE if hasattr(transformer.config, name)), "")
    if name and found:
        _say(transformer, name, list(found.values()), unsaid)
    elif any(int(ratio * widths(layer)[0]) != widths(layer)[1] for layer in transformer.intermediate.values()):
        outputs = ", ".join(str(width) for width in dict.fromkeys(found.values()))
        unsaid.append(f"feed-forward layers have {outputs} channels")


def _check_scale(transformer: Transformer, hidden: int, unsaid: list[str]) -> None:
    """Embeddings are multiplied by √(hidden size) in Gemma; by that of before in the pruned network."""
    scale = getattr(transformer.module.get_input_embeddings(), "scalar_embed_scale", None)
    if isinstance(scale, float) and abs(scale - hidden**0.5) > 1e-6 * scale:
        unsaid.append(f"its embeddings are multiplied by {scale:.3g} (it takes the square root of hidden_size)")


def _update_pooler(transformer: Transformer, hidden: int, unsaid: list[str]) -> None:
    dense = getattr(getattr(transformer.base, "pooler", None), "dense", None)
    if not isinstance(dense, nn.Linear):
        return
    if dense.in_features != hidden:
        raise UnsupportedModelError(
            f"the pooler of {type(transformer.base).__name__} expects {dense.in_features} hidden channels and {hidden} "
            "are left: the scores don't depend on it, so Torch-Pruning didn't see it. Build the network with "
            "add_pooling_layer=False, and prune again"
        )
    if hasattr(transformer.config, "pooler_output_size"):
        transformer.config.pooler_output_size = dense.out_features
    elif dense.out_features != hidden:
        unsaid.append(f"its pooler gives {dense.out_features} channels")


def _say(transformer: Transformer, name: str, values: Sequence[int], unsaid: list[str]) -> None:
    """Write one number for all layers into the config, or note that there is none."""
    config = transformer.config
    if isinstance(getattr(config, name), list | tuple):  # one for each stage
        stages = zip(getattr(config, name), getattr(config, "depths", ()), strict=False)
        if [value for value, depth in stages for _ in range(depth)] != list(values):
            unsaid.append(f"{name} is {', '.join(map(str, values))} in its layers")
    elif len(set(values)) > 1:
        unsaid.append(f"{name} is {', '.join(map(str, values))} in its layers (it stays at {getattr(config, name)})")
    elif getattr(config, name) != values[0]:
        setattr(config, name, values[0])


def _refusal(config: Any) -> Iterator[str]:
    """Sizes that the config holds and would not take: it could be neither saved nor loaded."""
    if not hasattr(config, "validate"):
        return
    from huggingface_hub.errors import StrictDataclassError

    try:
        config.validate()
    except StrictDataclassError as error:
        yield f"these sizes are right (it refuses them: {str(error).splitlines()[-1].strip()})"


def _misread(transformer: Transformer) -> Iterator[str]:
    """What a network built from the config has in another size: not all families read all that their config holds."""
    try:
        with preserved_random_state(), torch.device("meta"):
            built = type(transformer.base)(copy.deepcopy(transformer.config))
    except TypeError:  # a class of one's own, whose arguments nobody knows
        return
    except ValueError as error:
        yield f"these sizes are right (a network built from it refuses them: {error})"
        return
    sizes = {name: tuple(parameter.shape) for name, parameter in built.named_parameters()}
    for name, parameter in transformer.base.named_parameters():
        if sizes.get(name, tuple(parameter.shape)) != tuple(parameter.shape):
            yield f"{name} is {tuple(parameter.shape)} (a network built from it has {sizes[name]})"
            return


def _tie(transformer: Transformer) -> None:
    """Let weights that were shared before Torch-Pruning replaced both be one again."""
    if not getattr(transformer.config, "tie_word_embeddings", False):
        return
    inputs, outputs = transformer.module.get_input_embeddings(), transformer.module.get_output_embeddings()
    if outputs is not None and torch.equal(outputs.weight, inputs.weight):
        outputs.weight = inputs.weight


def holds_transformers(model: nn.Module) -> bool:
    """Whether the network holds transformers whose sizes are written here.

    Example:
        >>> holds_transformers(nn.Linear(2, 2))
        False
    """
    inner = [module for module in model.modules() if hasattr(module, "base_model_prefix") and hasattr(module, "config")]
    return any(True for module in inner for _ in attentions_of(module))


after_step_of(holds_transformers, update_sizes)
