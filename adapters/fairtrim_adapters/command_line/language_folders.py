"""Folders with a causal language model, as ``save_pretrained`` of Hugging Face writes them: read, written pruned."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairtrim import InputError, save_pruned
from fairtrim_adapters.huggingface import update_sizes

__all__ = ["check_new_folder", "is_folder_output", "read_folder", "write_folder"]

_CAUSAL = ("ForCausalLM", "LMHeadModel")
_WEIGHTS = {".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx"}
_OF_THE_NETWORK = {"config.json", "generation_config.json", "README.md"}
"""Files of a folder that tell of the network as it was; what else there is belongs to the tokenizer."""


def read_folder(folder: Path, option: str) -> nn.Module:
    """The causal language model of a folder, in single precision and eval mode; nothing is downloaded.

    Args:
        folder: With ``config.json`` and weights.
        option: The option it was given with, for messages.

    Returns:
        The network.

    Raises:
        InputError: transformers is missing, there is no config, the network is no causal language model, its weights
            are quantised or incomplete, or it is an adapter.
    """
    config = _config(folder, option)
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise InputError(f"{option} {folder} needs transformers: pip install 'fairtrim[huggingface]'") from None
    try:
        with _no_bars():
            read: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        said = next(iter(str(error).splitlines()), "")
        raise InputError(f"{option} {folder}: transformers can't read it ({type(error).__name__}: {said})") from error
    network, told = read
    if missing := sorted(told["missing_keys"]):
        raise InputError(
            f"{option} {folder}: {len(missing)} weights of a {config.get('model_type')} are missing, such as "
            f"{missing[0]}; expected a folder that save_pretrained wrote"
        )
    return network.eval()  # type: ignore[no-any-return]


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the progress bars of transformers, of which every shard of a file has one."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _config(folder: Path, option: str) -> dict[str, Any]:
    """The config, of what can be read and pruned."""
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{option} {folder} is an adapter (PEFT) without its network; expected one merged into it: "
            "model.merge_and_unload().save_pretrained(folder)"
        )
    path = folder / "config.json"
    if not path.is_file():
        remedy = "expected a folder that save_pretrained wrote, or MODULE:FUNCTION"
        if any(folder.glob("*.gguf")):
            remedy = (
                "for a GGUF file expected MODULE:FUNCTION, with AutoModelForCausalLM.from_pretrained(folder, "
                "gguf_file=...) in the function"
            )
        raise InputError(f"{option} {folder}: the folder has no config.json; {remedy}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        classes = list(config.get("architectures") or [])
    except (ValueError, AttributeError) as error:
        raise InputError(f"{option} {folder}: config.json is no config of a network: {error}") from error
    if classes and not any(name.endswith(_CAUSAL) for name in classes):
        raise InputError(
            f"{option} {folder} holds a {classes[0]}, which is no causal language model; expected one, or "
            "MODULE:FUNCTION for any other network"
        )
    if config.get("quantization_config"):
        raise InputError(
            f"{option} {folder}: the weights are quantised, and channels of packed numbers can't be removed; expected "
            "the network before it was quantised: quantise the pruned one"
        )
    return dict(config)


def is_folder_output(model: str, output: Path) -> bool:
    """Whether a network is to be written as a folder: it comes from one, and the name has no suffix.

    Example:
        >>> is_folder_output(".", Path("pruned")), is_folder_output("net.py:network", Path("pruned"))
        (True, False)
    """
    return Path(model).is_dir() and (not output.suffix or output.is_dir())


def check_new_folder(output: Path, source: Path, *, global_pruning: bool) -> None:
    """Refuse before hours of work a folder that can't be written afterwards.

    Args:
        output: The folder.
        source: The folder of the network.
        global_pruning: Whether layers would keep numbers of channels of their own.

    Raises:
        InputError: It is no new or empty folder, or its config could not say what the network is.
    """
    parent = output.resolve().parent
    if output.resolve() == source.resolve():
        raise InputError(f"--output {output} is the folder of --model; expected another one")
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"--output {output}: folder {parent} doesn't exist or can't be written to; create it first")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output {output} is there already, and not empty; expected the name of a new folder")
    if global_pruning:
        raise InputError(
            f"--output {output} --global: a config has one size for all layers, and layers ranked together keep "
            "different ones; expected --local, or a file: --output pruned.safetensors"
        )


def write_folder(output: Path, model: nn.Module, source: Path) -> None:
    """Write a pruned network so that ``from_pretrained`` reads it, with the other files of the folder it came from.

    Args:
        output: A new or empty folder.
        model: The network.
        source: The folder it came from.

    Raises:
        InputError: The config can't say what the network is; then it is in a file beside.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        update_sizes(model)
    if caught:
        file = output.with_name(f"{output.name}.safetensors")
        save_pruned(file, model)
        raise InputError(
            f"--output {output}: {str(caught[0].message).split('. ')[0]}, so that from_pretrained could not read it; "
            f"the network is in {file}, for --checkpoint and load_pruned"
        )
    network: Any = model
    with tempfile.TemporaryDirectory(dir=output.resolve().parent) as work:
        folder = Path(work, output.name)
        with _no_bars():
            network.save_pretrained(folder)
        for path in source.iterdir():
            if path.is_file() and not _of_the_network(path):
                shutil.copyfile(path, folder / path.name)
        if output.exists():
            output.rmdir()
        folder.rename(output)


def _of_the_network(path: Path) -> bool:
    return path.name in _OF_THE_NETWORK or path.suffix in _WEIGHTS or path.name.endswith(".index.json")
