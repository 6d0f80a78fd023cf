"""Repair a trained network on the Adult census data, beside Fairlearn's ThresholdOptimizer.

Trains a small network on Adult (predict an income above 50,000 dollars a year), and repairs it on people whom it was
not trained on, so that women and men are predicted a high income equally often, up to a bound. fairtrim's
post-processors write the repair into the network, which then needs nobody's sex to predict; ThresholdOptimizer keeps a
threshold for each sex. Fairlearn's MetricFrame judges all of them on test people.

    python examples/repair_adult.py
    python examples/repair_adult.py --epsilon 0.1 --seed 1 --picture repair.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from fairlearn.metrics import MetricFrame, demographic_parity_difference, selection_rate, true_positive_rate
from fairlearn.postprocessing import ThresholdOptimizer
from prune_adult import SEX, load_adult, network, train  # type: ignore[import-not-found]  # beside this file
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import balanced_accuracy_score
from tqdm.auto import tqdm

from fairtrim import (
    AdversarialFineTuning,
    BiasGradientDescent,
    InputError,
    LayerwiseOptimization,
    ParityFineTuning,
    PostProcessor,
    RandomPerturbation,
    Repair,
    ThresholdSelection,
)
from fairtrim_adapters.fairlearn import RepairedClassifier
from fairtrim_adapters.plots.styles import network_styles

BOUNDS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.35)

METHODS: dict[str, Callable[..., PostProcessor]] = {
    "threshold alone": ThresholdSelection,
    "random perturbation": RandomPerturbation,
    "layer-wise optimisation": LayerwiseOptimization,
    "adversarial fine-tuning": lambda **settings: AdversarialFineTuning(epochs=8, **settings),  # published: 32
    "bias gradient descent": BiasGradientDescent,
    "parity, output layer": ParityFineTuning,
    "parity, all layers": lambda **settings: ParityFineTuning(layers="all", **settings),
}

Labels = npt.NDArray[np.int64]


def curve(repair: Repair, x: torch.Tensor, y: Labels, sex: Labels) -> list[tuple[float, float]]:
    """Balanced accuracy against demographic parity difference on test people, one point a bound.

    Args:
        repair: With a network for each bound.
        x: Inputs.
        y: Labels.
        sex: Sensitive feature.

    Returns:
        Pairs of (difference, balanced accuracy).
    """
    points = []
    for bound in BOUNDS:
        try:
            with torch.no_grad():
                labels = repair.model_at(bound)(x).argmax(1).numpy()
        except InputError:  # nothing is within the bound
            continue
        gap = demographic_parity_difference(y, labels, sensitive_features=sex)
        points.append((gap, balanced_accuracy_score(y, labels)))
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="weights, order and splits (default 0)")
    parser.add_argument("--epochs", type=int, default=10, help="of training (default 10)")
    parser.add_argument("--epsilon", type=float, default=0.05, help="bound on the parity difference (default 0.05)")
    parser.add_argument("--picture", type=Path, default=Path("repair_adult.png"), help="where to save it")
    arguments = parser.parse_args()
    if not 0.02 <= arguments.epsilon < 1:
        parser.error(f"--epsilon {arguments.epsilon}: expected a bound between 0.02 and 1")

    adult = load_adult()
    x, y, sensitive = adult.train
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(arguments.seed))
    learned, held = order[: len(x) * 2 // 3], order[len(x) * 2 // 3 :]
    torch.manual_seed(arguments.seed)
    model = network(x.shape[1])
    train(model, (x[learned], y[learned]), epochs=arguments.epochs, seed=arguments.seed)

    names = np.array(SEX)
    validation_sex, test_sex = names[sensitive[held, 0]], names[adult.test[2][:, 0]]
    test_x, test_y = adult.test[0], adult.test[1].numpy()
    tuned = RepairedClassifier(model, ThresholdSelection(epsilon=1.0, margin=0.0), prefit=True)
    tuned.fit(x[held], y[held], sensitive_features=validation_sex)
    with torch.no_grad():
        decisions = {"as trained": model(test_x).argmax(1).numpy(), "best threshold": tuned.predict(test_x)}
    curves = {}
    for name, method in tqdm(METHODS.items(), desc="repairing", leave=False):
        repaired = RepairedClassifier(
            model, method(epsilon=arguments.epsilon, random_state=arguments.seed), prefit=True
        )
        repaired.fit(x[held], y[held], sensitive_features=validation_sex)
        decisions[name] = repaired.predict(test_x)  # nobody's sex is asked for
        curves[name] = curve(repaired.repair_, test_x, test_y, test_sex)
        tqdm.write(f"{name}\n{repaired.repair_}\n")

    optimizer = ThresholdOptimizer(
        estimator=FrozenEstimator(tuned), constraints="demographic_parity", objective="balanced_accuracy_score",
        prefit=True, predict_method="predict_proba",
    )  # fmt: skip
    optimizer.fit(x[held].numpy(), y[held].numpy(), sensitive_features=validation_sex)
    rival = "ThresholdOptimizer (sees the sex)"
    decisions[rival] = optimizer.predict(test_x.numpy(), sensitive_features=test_sex, random_state=arguments.seed)

    header = "balanced accuracy  parity difference  selected: women    men   true positives: women    men"
    print(f"{'test people':<36}{header}")
    rows = {}
    for name, labels in decisions.items():
        frame = MetricFrame(
            metrics={"selected": selection_rate, "found": true_positive_rate},
            y_true=test_y, y_pred=labels, sensitive_features=test_sex,
        )  # fmt: skip
        gap = demographic_parity_difference(test_y, labels, sensitive_features=test_sex)
        rows[name] = (gap, balanced_accuracy_score(test_y, labels))
        selected, found = frame.by_group["selected"], frame.by_group["found"]
        print(
            f"{name:<36}{rows[name][1]:17.3f}{gap:19.3f}{selected['Female']:17.3f}{selected['Male']:7.3f}"
            f"{found['Female']:23.3f}{found['Male']:7.3f}"
        )

    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9.5, 5), layout="constrained")
    styles = network_styles(curves)
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), ".-", color=styles[name].colour, alpha=0.8)
        axes.plot(*rows[name], label=name, **styles[name].marks(9))
    axes.plot(*rows["best threshold"], "kx", markersize=9, label="not repaired, best threshold")
    axes.plot(*rows[rival], "k*", markerfacecolor="none", markersize=14, label=rival)
    axes.axvline(arguments.epsilon, color="grey", linestyle=":", linewidth=1)
    axes.annotate("bound", (arguments.epsilon, axes.get_ylim()[0]), (4, 4), textcoords="offset points", color="grey")
    axes.set_xlabel("demographic parity difference between women and men (less is better ←)")
    axes.set_ylabel("balanced accuracy (higher is better ↑)")
    within = {name: rows[name] for name in curves if rows[name][0] <= max(rows[rival][0], arguments.epsilon)}
    best = max(within, key=lambda name: within[name][1], default="")
    told = f"{best} keeps {within[best][1]:.3f} at {within[best][0]:.3f}; " if best else ""
    figure.suptitle(f"Adult: {told}{rival} {rows[rival][1]:.3f} at {rows[rival][0]:.3f} (large: the bound)",
                    fontsize=10.5)  # fmt: skip
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(arguments.picture, dpi=120)
    print(f"\npicture: {arguments.picture}")


if __name__ == "__main__":
    main()
