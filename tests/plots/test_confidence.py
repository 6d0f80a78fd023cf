"""Pictures of confidence under pruning."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from torch import Tensor

from fairtrim import InputError, MinedSamples
from fairtrim_adapters.plots import plot_confidence
from tests.plot_cases import check_drawn

LEVELS = (0.0, 0.25, 0.5)


def _mined(n_samples: int = 23) -> MinedSamples:
    """Three classes; every fifth sample is mined."""
    generator = torch.Generator().manual_seed(3)
    confidence = torch.rand(3, n_samples, generator=generator, dtype=torch.float64)
    n = torch.arange(n_samples)
    return MinedSamples(1 - confidence[1:].mean(0), n % 3, n % 5 == 0, levels=LEVELS, confidence=confidence)


def _lines(ax: Any) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in ax.lines}


@pytest.mark.parametrize("label", [None, 2])
def test_medians_and_quartiles_of_every_set(label: int | None) -> None:
    mined = _mined()
    mislabelled = torch.arange(23) > 19
    ax = plot_confidence(mined, known={"mislabelled": mislabelled}, label=label)
    check_drawn(ax)
    of_class = np.ones(23, dtype=bool) if label is None else mined.target.numpy() == label
    sets = {"others": np.arange(23) % 5 != 0, "mined": np.arange(23) % 5 == 0, "mislabelled": mislabelled.numpy()}
    bands = [band.get_paths()[0].vertices for band in ax.collections]
    for (name, flags), band in zip(sets.items(), bands, strict=True):
        chosen = mined.confidence.numpy()[:, flags & of_class]  # type: ignore[union-attr]
        assert _lines(ax)[f"{name} (n = {chosen.shape[1]})"] == pytest.approx(np.median(chosen, axis=1).tolist())
        for level, of_level in zip(LEVELS, chosen, strict=True):
            at_level = band[band[:, 0] == level, 1]
            ends = (at_level.min(), at_level.max())
            assert ends == pytest.approx((np.quantile(of_level, 0.25), np.quantile(of_level, 0.75)))
    what = "confidence in the label" if label is None else "confidence in label 2"
    assert ax.get_ylabel() == f"{what} (low: given up first)"
    chosen = mined.confidence.numpy()[-1, mined.conflicting().numpy() & of_class]  # type: ignore[union-attr]
    words = " ".join(ax.get_title().split())
    assert f"With 50 % of the channels gone, median {what}: " in words and f"{np.median(chosen):.2f} in mined" in words


def test_a_set_of_one_s_own_and_an_empty_one() -> None:
    mined = _mined()
    _, axes = pyplot.subplots(1, 2)
    own = torch.arange(23) == 4
    assert plot_confidence(mined, conflicting=own, known={"none": torch.zeros(23).bool()}, ax=axes[1]) is axes[1]
    check_drawn(axes[1])
    lines = _lines(axes[1])
    assert list(lines) == ["others (n = 22)", "mined (n = 1)", "none (n = 0)"] and not lines["none (n = 0)"]
    assert lines["mined (n = 1)"] == mined.confidence[:, 4].tolist()  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"conflicting": torch.zeros(22).bool()},
            r"conflicting is torch.bool of shape \(22,\) for 23 samples; expected",
        ),
        ({"conflicting": [True] * 23}, "conflicting is list for 23 samples"),
        ({"known": {"true": torch.zeros(23)}}, r"known\['true'\] is torch.float32 of shape \(23,\)"),
        ({"known": {"mined": torch.zeros(23).bool()}}, "known has 'mined', which is drawn already"),
        ({"label": 3}, r"label=3; expected one of \[0, 1, 2\]"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plot_confidence(_mined(), **options)
    assert not pyplot.get_fignums()


def test_a_miner_that_does_not_prune() -> None:
    scores: Tensor = torch.rand(4)
    with pytest.raises(InputError, match="no confidence was kept at any level; expected what AccumulatedConfidence"):
        plot_confidence(MinedSamples(scores, torch.arange(4) % 2))
