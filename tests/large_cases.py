"""A small causal language model, its feed-forward channels, and what lays its weights elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fairtrim import ChannelGroup, ChannelPlace, ParameterPlace


def llama(transformers: Any, dtype: torch.dtype = torch.float32, **sizes: Any) -> Any:
    """Two layers; weights large enough that its scores depend on its inputs."""
    small = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        **{"vocab_size": 29, "num_hidden_layers": 2, "max_position_embeddings": 32, **small, **sizes}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    return model.to(dtype).eval()


def feed_forward(model: Any) -> list[ChannelGroup]:
    """One group of channels a layer."""
    groups = []
    for k, layer in enumerate(model.model.layers):
        channels, name = range(layer.mlp.down_proj.in_features), f"model.layers.{k}.mlp"
        weights = (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1))
        groups.append(
            ChannelGroup(
                f"{name}.up_proj",
                len(channels),
                (ChannelPlace(f"{name}.down_proj", "input", channels, channels, channel_axis=-1),),
                tuple(ParameterPlace(f"{name}.{w}.weight", axis, channels, channels) for w, axis in weights),
            )
        )
    return groups


def texts(n_samples: int = 7, length: int = 9) -> list[Any]:
    """Batches of three, one shorter than the others by padding, and two groups."""
    ids = torch.randint(29, (n_samples, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, length - 3 :] = 0
    labels = torch.cat([ids[:, 1:], torch.full((n_samples, 1), -100)], 1)
    labels[1, length - 4 :] = -100
    people = ["a" if n % 3 else "b" for n in range(n_samples)]
    return [
        ({"input_ids": ids[a : a + 3], "attention_mask": mask[a : a + 3]}, labels[a : a + 3], people[a : a + 3])
        for a in range(0, n_samples, 3)
    ]


class Hook:
    """What accelerate's AlignDevicesHook is to others: it brings weights in for a call, and they are gone after it."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.execution_device, self.offload, self.weights_map = "cpu", True, weights


def offload(model: nn.Module) -> nn.Module:
    """Lay every linear layer's weights elsewhere between calls, as accelerate's ``cpu_offload`` does."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _hook(module)
    return model


def _hook(module: Any) -> None:
    hook = Hook({name: p.detach() for name, p in module.named_parameters()})
    own = module.forward

    def empty() -> None:
        for name, value in hook.weights_map.items():
            setattr(module, name, nn.Parameter(value.to("meta")))

    def forward(*args: Any) -> Any:
        for name, value in hook.weights_map.items():
            setattr(module, name, nn.Parameter(value))
        output = own(*args)
        empty()
        return output

    module.forward, module._hf_hook = forward, hook
    empty()
