"""The comparison as a picture."""

from __future__ import annotations

import numpy as np
import pytest

from fairtrim import InputError
from fairtrim_adapters.fairlearn import compare_models, plot_comparison
from tests.fairlearn_cases import (
    Constant,
    drawn_data,
    linear,
)


def test_plot_takes_and_returns_axes() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    x, y, codes = drawn_data()
    models = {"dense": linear(), "pruned": linear(seed=1), "constant": Constant()}
    comparison = compare_models(models, [(x, y, codes[:, 0])], n_boot=3, random_state=0, progress=False)
    figure, ax = pyplot.subplots()
    assert plot_comparison(comparison, ax=ax) is ax
    assert [label.get_text() for label in ax.get_xticklabels()] == ["dense", "pruned", "constant\n(constant)"]
    dots = {
        line.get_label().split(" (")[0]: line.get_ydata() for line in ax.get_lines() if line.get_marker() in ("o", "s")
    }
    for group in ("0", "1"):
        expected = [comparison.by_group.loc[(name, group), "accuracy"] for name in models]
        np.testing.assert_allclose(dots[group], expected)
    assert " ".join(ax.get_title().split()) + "." == comparison.verdict()
    assert ax.get_ylabel() == "accuracy (higher is better ↑)"
    pyplot.close(figure)
    crossed = compare_models(models, [(x, y, codes)], progress=False)
    new = plot_comparison(crossed, metric="selection rate")
    assert new.get_ylabel() == "selection rate" and len(new.get_legend().get_texts()) == 8
    pyplot.close(new.figure)
    rates = comparison.by_group["true positive rate"].unstack(0)
    losses = {name: rates["dense"] - rates[name] for name in ("pruned", "constant")}
    name = max(losses, key=lambda entry: losses[entry].max())
    told = f"{name} costs {losses[name].idxmax()} {100 * losses[name].max():.1f} points of true positive rate"
    other = plot_comparison(comparison, metric="true positive rate")
    assert losses[name].max() > 0 and " ".join(other.get_title().split()).startswith(told)
    pyplot.close(other.figure)
    with pytest.raises(InputError, match="metric='auc' is not in the comparison"):
        plot_comparison(comparison, metric="auc")
