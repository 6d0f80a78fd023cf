"""What the commands show of language models: perplexity by group of texts and stereotypes, and no rates of labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fairtrim import InputError
from fairtrim.data.batches import Batch
from fairtrim_adapters.huggingface import LanguageComparison, compare_language_models, next_token_labels
from fairtrim_adapters.huggingface.language_scores import check_next_tokens
from fairtrim_adapters.sweep import DataSplits

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compared", "figures_of_language", "is_language", "no_language"]

_ENDS = {"": "", " low": "_low", " high": "_high"}
_OVERALL = {
    "perplexity": "perplexity",
    "times reference": "perplexity_ratio",
    "stereotype preferred": "stereotype_preferred",
    "mean |ΔLL|": "mean_difference",
    "rms ΔLL": "rms_difference",
}
_BY_GROUP = {"perplexity": "perplexity", "times reference": "perplexity_ratio"}


def is_language(model: str, data: DataSplits) -> bool:
    """Whether the data ask a network for the next token.

    Args:
        model: As ``--model`` gave it: a folder holds a language model.
        data: The splits; the first test batch is looked at.

    Returns:
        Whether.

    Raises:
        InputError: They should, and don't: labels are the tokens themselves, or none for each token.
    """
    batch = data.first_batch("test", None)
    if not Path(model).is_dir() and not _asks_for_tokens(batch):
        return False
    check_next_tokens(batch)
    for name in ("forward_fn", "output_transform"):
        if getattr(data, name) is not None:
            raise InputError(f"the data have {name}, and language models are called as they are; leave it out")
    return True


def _asks_for_tokens(batch: Batch) -> bool:
    """Whether the labels are tokens of the texts: the next ones, or by mistake the same."""
    ids = batch.inputs.get("input_ids") if isinstance(batch.inputs, Mapping) else None
    if not isinstance(ids, Tensor) or ids.ndim != 2 or batch.target.shape != ids.shape:
        return False
    labelled = batch.target >= 0
    asked = batch.target[labelled]
    return bool(labelled.any()) and any(bool((of[labelled] == asked).all()) for of in (next_token_labels(ids), ids))


def no_language(model: str, data: DataSplits, command: str, remedy: str) -> None:
    """Refuse language models where labels are asked for.

    Args:
        model: As ``--model`` gave it.
        data: The splits.
        command: Which works on labels.
        remedy: What to do.

    Raises:
        InputError: The network is a language model.
    """
    if is_language(model, data):
        raise InputError(f"{command} works on decisions about people, and this is a language model; {remedy}")


def compared(networks: Mapping[str, nn.Module], data: DataSplits, *, progress: bool) -> LanguageComparison:
    """Language models side by side.

    Args:
        networks: By name; changes are measured from the first.
        data: The splits: ``test`` holds the texts.
        progress: Show progress bars.

    Returns:
        The comparison.
    """
    return compare_language_models(
        networks, data.test, pairs=data.pairs, sensitive_names=data.sensitive_names, progress=progress
    )


def figures_of_language(comparison: LanguageComparison) -> dict[str, dict[str, Any]]:
    """A comparison as flat rows, such as ``check`` compares with bounds.

    Args:
        comparison: It.

    Returns:
        By network: ``perplexity``, ``perplexity_ratio`` against the reference, ``stereotype_preferred`` in per cent and
        so on, with ``…_low`` and ``…_high``; those of a group of texts as ``perplexity[group]``; ``people[group]`` is
        its number of texts.
    """
    rows = {}
    for name, figures in comparison.overall.iterrows():
        row = {"flags": "; ".join(_flags(comparison, str(name))), **_columns(figures, _OVERALL, "")}
        if len(comparison.texts_by_group):
            for group, of_group in comparison.texts_by_group.xs(name, level="model").iterrows():
                if of_group["texts"] > 0:  # of a crossing of several features there may be none
                    bracket = f"[{group if isinstance(group, str) else ', '.join(map(str, group))}]"
                    row[f"people{bracket}"] = int(of_group["texts"])
                    row |= _columns(of_group, _BY_GROUP, bracket)
        rows[str(name)] = row
    return rows


def _columns(figures: pd.Series, names: Mapping[str, str], bracket: str) -> dict[str, float]:
    return {
        f"{column}{ending}{bracket}": float(figures[f"{figure}{end}"])
        for figure, column in names.items()
        for end, ending in _ENDS.items()
        if f"{figure}{end}" in figures
    }


def _flags(comparison: LanguageComparison, name: str) -> Iterator[str]:
    for network, flag, detail in comparison.flags.itertuples(index=False):
        if network in (name, "(data)"):
            yield f"{flag}: {detail}".replace("; ", ", ")
