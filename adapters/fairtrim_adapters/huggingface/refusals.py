"""Networks of Hugging Face whose weights are not what is computed with: quantised ones, and adapters not merged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from fairtrim import UnsupportedModelError

__all__ = ["read_from_gguf", "refuse_adapters", "refuse_quantised"]

_PACKED = ("qweight", "qzeros", "weight_packed", "codebooks")
"""Names of packed weights in layers of GPTQ, AWQ, compressed tensors and AQLM."""

_QUANTISED = ("Linear4bit", "Linear8bitLt", "QuantLinear", "WQLinear", "QLinear", "HQQLinear", "BitLinear")
"""What names of quantised layers hold, whatever their weights look like: bitsandbytes, GPTQ, AWQ, quanto, HQQ."""


def refuse_adapters(model: nn.Module) -> None:
    """Refuse networks with adapters of PEFT beside their weights, merged into them or not.

    Raises:
        UnsupportedModelError: A layer is wrapped by an adapter.

    Example:
        >>> refuse_adapters(nn.Linear(2, 2))
    """
    for name, module in model.named_modules():
        held = [*module._modules, *module._parameters]
        adapter = isinstance(module._modules.get("base_layer"), nn.Module) or any(n.startswith("lora_") for n in held)
        if adapter or (hasattr(module, "peft_config") and hasattr(module, "merge_and_unload")):
            raise UnsupportedModelError(
                f"{name or type(module).__name__!r} is a {type(module).__name__}: an adapter beside the weights, which "
                "would keep the sizes of before. Merge it: model = model.merge_and_unload().requires_grad_(True): "
                "PEFT leaves weights frozen, which Torch-Pruning doesn't see"
            )


def refuse_quantised(model: nn.Module) -> None:
    """Refuse networks whose weights are integers, packed, or scaled by numbers beside them.

    Networks that were read from a GGUF file as floating-point numbers pass: their weights are plain.

    Raises:
        UnsupportedModelError: A layer is quantised.

    Example:
        >>> class Linear4bit(nn.Linear):  # as that of bitsandbytes
        ...     pass
        >>> refuse_quantised(nn.Linear(2, 2))
        >>> refuse_quantised(nn.Sequential(Linear4bit(2, 2)))
        Traceback (most recent call last):
        fairtrim.errors.UnsupportedModelError: '0' is a Linear4bit: no channels can be taken out of quantised weights. \
Dequantise the network first: model.dequantize(), or read it without quantization_config and with dtype=torch.float32 \
or bfloat16; quantise again after pruning
    """
    for name, what in _quantised(model):
        raise UnsupportedModelError(
            f"{name!r} {what}: no channels can be taken out of quantised weights. Dequantise the network first: "
            "model.dequantize(), or read it without quantization_config and with dtype=torch.float32 or bfloat16; "
            "quantise again after pruning"
        )


def _quantised(model: nn.Module) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        kind = type(module).__name__
        if any(known in kind for known in _QUANTISED) or kind.lower().startswith("quant"):
            yield name or kind, f"is a {kind}"
        for packed in _PACKED:
            if packed in module._buffers or packed in module._parameters:
                yield f"{name}.{packed}" if name else packed, "is a packed weight"
        quantiser = vars(module).get("hf_quantizer")
        method = _method(getattr(quantiser, "quantization_config", None))
        if quantiser is not None and method != "gguf":
            yield name or kind, f"was read by {type(quantiser).__name__}"
    for name, parameter in model.named_parameters():
        package = type(parameter.data).__module__.partition(".")[0]
        if package != "torch":
            yield name, f"is a {type(parameter.data).__name__} of {package}"
        if not parameter.is_floating_point() or parameter.element_size() < 2:
            yield name, f"holds {parameter.dtype}"


def read_from_gguf(module: Any) -> bool:
    """Whether the config still tells of a GGUF file, so that ``save_pretrained`` refuses the network.

    Example:
        >>> read_from_gguf(nn.Linear(2, 2))
        False
    """
    return _method(getattr(getattr(module, "config", None), "quantization_config", None)) == "gguf"


def _method(config: Any) -> str:
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return str(getattr(method, "value", method))
