"""A report of causal language models: perplexity by group of texts, and which stereotypes each prefers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from torch import nn

from fairtrim.comparison.network_size import network_size
from fairtrim.devices import model_device
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim_adapters.huggingface import LanguageComparison, StereoSetContext, compare_language_models
from fairtrim_adapters.sweep import DataSplits, versions

from .contents import Data, Figure, Flag, Network, Table, finite
from .document import Report

__all__ = ["report_language_models"]

_FIGURES = {
    "perplexity": "perplexity",
    "times reference": "perplexity_ratio",
    "stereotype preferred": "stereotype_preferred",
    "mean |ΔLL|": "mean_difference",
    "rms ΔLL": "rms_difference",
    "language-model score": "language-model_score",
    "stereotype score": "stereotype_score",
    "ICAT": "ICAT",
}
_LIMITS = (
    "A share of stereotypes near 50 % is no proof of a model without: other sentences were not asked, and a model may "
    "be at 50 % with a strong preference in every pair.",
    "A model that predicts worse prefers less of everything: read perplexity beside every share.",
    "Pairs and contexts are short sentences in English about people of the United States, written by crowd workers as "
    "small edits of one another; some say nothing about a stereotype.",
    "Perplexity of a group is of texts about it, or by it, as they were given, which differ in subject and length too: "
    "compare networks on the same texts rather than groups with each other.",
    "Intervals are of other texts and pairs drawn like these, each figure by itself; they don't cover training.",
)
_NOT_MEASURED = (
    "What the models write, and what becomes of them after tuning on instructions.",
    "Latency, memory and energy: no network was timed.",
    "Other languages, and groups of people that no text and no pair names.",
)


def report_language_models(
    models: Mapping[str, nn.Module],
    splits: DataSplits | Mapping[str, Any],
    *,
    contexts: Sequence[StereoSetContext] | None = None,
    tokenizer: Callable[[list[str]], Any] | None = None,
    title: str = "Language models by group of texts",
    progress: bool = True,
) -> Report:
    """Compare causal language models on the texts and pairs of the data, and tell what was not measured.

    Args:
        models: Networks by name; changes are measured from the first. Left as they were.
        splits: ``test`` are the texts, with the next token at each as the label; ``pairs`` the pairs of sentences.
        contexts: Of ``stereo_set()``.
        tokenizer: Texts -> their tokens, for the contexts.
        title: Of the report.
        progress: Show progress bars.

    Returns:
        The report.

    Raises:
        InputError: As of ``compare_language_models``.

    Example:
        >>> import torch
        >>> class Uniform(nn.Module):
        ...     def forward(self, input_ids, attention_mask):
        ...         return torch.zeros(*input_ids.shape, 8)
        >>> inputs = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2)}
        >>> texts = [(inputs, torch.tensor([[2, -100]]), ["news"])]
        >>> report = report_language_models({"dense": Uniform()}, {"test": texts, "name": "a text"}, progress=False)
        >>> report.data.people, round(report.networks[0].by_group["news"]["perplexity"].value, 3)
        ({'news': 1}, 8.0)
    """
    splits = DataSplits.of(splits)
    compared = compare_language_models(
        models,
        splits.test,
        pairs=splits.pairs,
        contexts=contexts,
        tokenizer=tokenizer,
        sensitive_names=splits.sensitive_names,
        progress=progress,
    )
    batch = splits.first_batch("test", model_device(models[compared.reference]))
    sizes = {name: network_size(ScoredNetwork(model), batch) for name, model in models.items()}
    dense = sizes[compared.reference]
    networks = [
        Network(
            name=name,
            class_name=type(model).__name__,
            parameters=sizes[name]["parameters"],
            parameters_ratio=sizes[name]["parameters"] / dense["parameters"] if dense["parameters"] else None,
            macs=sizes[name]["macs"],
            macs_ratio=sizes[name]["macs"] / dense["macs"] if dense["macs"] else None,
            latency_ms=None,
            latency_ratio=None,
            facts={},
            overall=_figures(compared.overall.loc[name]),
            by_group=_by_group(compared, name),
        )
        for name, model in models.items()
    ]
    return Report(
        title=title,
        data=_data(compared, splits),
        reference=compared.reference,
        networks=tuple(networks),
        methods=(),
        settings={},
        versions=versions(),
        seeds=(),
        intervals=True,
        n_boot=None,
        timing=None,
        flags=tuple(
            Flag(flag, "" if name == "(data)" else name, detail)
            for name, flag, detail in compared.flags.itertuples(index=False)
        ),
        pictures=(),
        tables=tuple(_tables(compared)),
        limits=_LIMITS,
        not_measured=_NOT_MEASURED,
    )


def _figures(row: pd.Series) -> dict[str, Figure]:
    found = {}
    for figure, name in _FIGURES.items():
        if figure in row:
            ends = [finite(row.get(f"{figure} {end}")) for end in ("low", "high")]
            change: list[float | None] = []
            if figure == "stereotype preferred":
                change = [finite(row.get(f"change of preference{end}")) for end in ("", " low", " high")]
            found[name] = Figure(finite(row[figure]), *ends, *change)
    return found


def _group(index: Any) -> str:
    return index if isinstance(index, str) else ", ".join(map(str, index))


def _texts(compared: LanguageComparison, name: str) -> pd.DataFrame:
    """The rows of groups that have texts."""
    if not len(compared.texts_by_group):
        return pd.DataFrame()
    rows = compared.texts_by_group.xs(name, level="model")
    return rows[rows["texts"] > 0]


def _by_group(compared: LanguageComparison, name: str) -> dict[str, dict[str, Figure]]:
    return {_group(index): _figures(row) for index, row in _texts(compared, name).iterrows()}


def _data(compared: LanguageComparison, splits: DataSplits) -> Data:
    rows = _texts(compared, compared.reference)
    return Data(
        name=splits.name,
        description=splits.description,
        n_people=int(compared.overall.loc[compared.reference, "texts"]),
        sensitive_features=tuple(map(str, rows.index.names)) if len(rows) else (),
        classes=(),
        people={_group(index): int(row["texts"]) for index, row in rows.iterrows()},
        counts={},
        counted="texts",
    )


def _tables(compared: LanguageComparison) -> list[Table]:
    """Shares by category, a column for each network."""
    tables = []
    for frame, figure, count, caption in (
        (compared.pairs_by_category, "stereotype preferred", "pairs", "Pairs with the stereotype preferred, %"),
        (compared.contexts_by_category, "stereotype score", "contexts", "StereoSet's stereotype score"),
    ):
        if not len(frame):
            continue
        names = list(compared.overall.index)
        categories = frame.xs(compared.reference, level="model")
        rows: list[tuple[str | int, ...]] = []
        for category, row in categories.iterrows():
            shares = [frame.loc[(name, category)] for name in names]
            shown = [f"{of[figure]:.1f} [{of[f'{figure} low']:.1f}, {of[f'{figure} high']:.1f}]" for of in shares]
            rows.append((str(category), int(row[count]), *shown))
        tables.append(Table(f"{caption}, by category, with 95 % intervals", ("category", count, *names), tuple(rows)))
    return tables
