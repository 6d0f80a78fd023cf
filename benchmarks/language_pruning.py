"""Feed-forward channels of SmolLM2, a real language model, without training: perplexity as pruned, and refitted.

    see examples/language_model.py for what to install
    python -m benchmarks.language_pruning            # about 20 CPU minutes a seed
    python -m benchmarks.language_pruning --quick    # one seed, few tokens, a quarter of the channels

Sentences of Wikipedia about people of many professions, in an order of each seed, joined and cut into rows of 128
tokens: 64 rows (8,192 tokens) score the channels and are what is refitted on, 32 others are measured. Perplexity over
the dense model's on the same tokens. Rivals take the same share of every layer: the norm of a channel's weights, and
that norm times the root mean square of what it carries (Wanda's, Sun and others, ICLR 2024, summed over a channel).
Ours is ``MeanDamageImportance(compensated=True)`` over all layers, as a user gets it; so it chooses a tenth of the
heads of keys and values, each with the query heads that share it.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import pandas as pd
import torch
import torch_pruning as tp
from benchmarks.tables import INTERVAL, add_rows, save_rows, with_intervals
from examples.language_model import installed, smollm2, wikipedia
from torch import Tensor, nn

from fairtrim.measures.log_likelihood import token_log_likelihoods
from fairtrim_adapters.huggingface import example_inputs, next_token_labels, pruning_options, update_sizes
from fairtrim_adapters.torch_pruning import MeanDamageImportance, reconstructed

LENGTH, BATCH, HEAD_RATIO = 128, 4, 0.1
OURS, HEADS = "mean damage, compensated", "heads of keys and values"
Scores = Mapping[str, Tensor]
"""What each channel of each layer that reads them is worth, by the layer's name."""


class GivenScores(tp.importance.Importance):  # type: ignore[misc]
    """Scores that are known before: of the layer that reads the channels of a group."""

    def __init__(self, model: nn.Module, scores: Scores) -> None:
        self.scores = {model.get_submodule(name): of_layer for name, of_layer in scores.items()}

    def __call__(self, group: Any) -> Tensor | None:
        modules = [dependency.target.module for dependency, _ in group]
        return next((self.scores[module] for module in modules if module in self.scores), None)


def rows_of(tokenizer: Any, seed: int) -> Tensor:
    """Token ids, (N, 128).

    Args:
        tokenizer: The model's.
        seed: Of the order of the sentences.

    Returns:
        All rows.
    """
    sentences = [sentence.strip() for texts in wikipedia("profession").values() for sentence in texts]
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(seed)).tolist()
    ids = torch.tensor([token for place in order for token in tokenizer(sentences[place])["input_ids"]])
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def batches_of(rows: Tensor) -> list[dict[str, Tensor]]:
    """What fairtrim reads: tokens, and the next one at each position.

    Args:
        rows: (N, T).

    Returns:
        Batches.
    """
    return [{"input_ids": part, "labels": next_token_labels(part)} for part in torch.split(rows, BATCH)]


@torch.no_grad()
def loss_of(model: nn.Module, rows: Tensor) -> float:
    """Mean −log p of a token, in nats.

    Args:
        model: The language model.
        rows: (N, T).

    Returns:
        The loss; its exponential is the perplexity.
    """
    parts = [token_log_likelihoods(model(input_ids=part).logits, part)[:, 1:] for part in torch.split(rows, BATCH)]
    return -float(torch.cat(parts).double().mean())


def readers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that read feed-forward channels, by name."""
    return {name: layer for name, layer in model.named_modules() if name.endswith("mlp.down_proj")}


@torch.no_grad()
def root_mean_squares(model: nn.Module, rows: Tensor) -> Scores:
    """Root mean square of every feed-forward channel.

    Args:
        model: The language model.
        rows: (N, T).

    Returns:
        By layer.
    """
    sums = {name: torch.zeros(layer.in_features) for name, layer in readers(model).items()}

    def add(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sums[name] += inputs[0].square().sum((0, 1))

    handles = [layer.register_forward_pre_hook(partial(add, name)) for name, layer in readers(model).items()]
    for part in torch.split(rows, BATCH):
        model(input_ids=part)
    for handle in handles:
        handle.remove()
    return {name: total.div(rows.numel()).sqrt() for name, total in sums.items()}


def pruner_of(model: nn.Module, importance: Any, ratio: float, *, together: bool) -> Any:
    """A pruner of feed-forward channels, of all layers together or the same share of each."""
    options = pruning_options(model, prune=["intermediate"])
    return tp.pruner.BasePruner(
        model,
        example_inputs(model),
        importance=importance,
        pruning_ratio=ratio,
        global_pruning=together,
        **options,
    )


def our_scores(model: nn.Module, scoring: list[dict[str, Tensor]], ratio: float) -> Scores:
    """The places in the order in which our importance removes channels.

    Args:
        model: The language model.
        scoring: Batches.
        ratio: The largest share of them that goes.

    Returns:
        By layer.
    """
    importance = MeanDamageImportance(compensated=True)
    start = time.process_time()
    pruner = pruner_of(model, importance, ratio, together=True)
    importance.fit(pruner, scoring)
    print(f"scored and chosen in {time.process_time() - start:.0f} CPU s", flush=True)
    columns, found = importance.plan_.columns, {}
    for name in columns.sizes:
        layer = f"{name.rpartition('.')[0]}.down_proj"
        found[layer] = importance.selection_.scores[columns.section(name)]
    return found


def pruned(
    dense: nn.Module, scores: Scores, ratio: float, scoring: list[dict[str, Tensor]], *, together: bool, refit: bool
) -> nn.Module:
    """A copy without the channels that are worth least.

    Args:
        dense: The language model.
        scores: What channels are worth.
        ratio: Share that goes.
        scoring: What is refitted on.
        together: Whether layers are ranked together.
        refit: Whether what reads the channels is refitted.

    Returns:
        The copy.
    """
    model = copy.deepcopy(dense)
    pruner = pruner_of(model, GivenScores(model, scores), ratio, together=together)
    start = time.process_time()
    with reconstructed(pruner, scoring, measure=False) if refit else nullcontext() as done:
        pruner.step()
    update_sizes(model, pruner)
    if done is not None:
        print(f"{done}\nrefitted in {time.process_time() - start:.0f} CPU s", flush=True)
    return model


def without_heads(dense: nn.Module, scoring: list[dict[str, Tensor]], *, refit: bool) -> nn.Module:
    """A copy without the tenth of its heads of keys and values that is worth least over all layers.

    Args:
        dense: The language model.
        scoring: What scores them, and is refitted on.
        refit: Whether what reads them is refitted.

    Returns:
        The copy.
    """
    model, importance = copy.deepcopy(dense), MeanDamageImportance(compensated=True)
    options: Any = pruning_options(model, prune=["heads"])
    pruner = tp.pruner.BasePruner(
        model,
        example_inputs(model),
        importance=importance,
        pruning_ratio=HEAD_RATIO,
        head_pruning_ratio=HEAD_RATIO,
        global_pruning=True,
        **options,
    )
    importance.fit(pruner, scoring)
    with reconstructed(pruner, scoring, measure=False) if refit else nullcontext():
        pruner.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # layers keep different numbers, which the config can't say
        update_sizes(model, pruner)
    return model


def run(seed: int, ratios: list[float], n_scoring: int, n_test: int, ways: list[str]) -> list[dict[str, Any]]:
    """Prune in every way.

    Args:
        seed: Of the order of the sentences.
        ratios: Shares of the channels that go.
        n_scoring: Rows that score.
        n_test: Rows that are measured.
        ways: Names of the criteria.

    Returns:
        A row for each way and share.
    """
    dense, tokenizer = smollm2()
    rows = rows_of(tokenizer, seed)
    known, test = rows[:n_scoring], rows[n_scoring : n_scoring + n_test]
    scoring, before = batches_of(known), loss_of(dense, test)
    print(f"seed {seed}: dense perplexity {math.exp(before):.1f}", flush=True)

    def norms() -> Scores:
        return {name: layer.weight.detach().norm(dim=0) for name, layer in readers(dense).items()}

    def wanda() -> Scores:
        carried = root_mean_squares(dense, known)
        return {name: norm * carried[name] for name, norm in norms().items()}

    criteria: dict[str, Callable[[], Scores]] = {
        "magnitude": norms,
        "weights times input rms": wanda,
        OURS: lambda: our_scores(dense, scoring, max(ratios)),
    }
    found = []
    for refit in (False, True) if HEADS in ways else ():
        model = without_heads(dense, scoring, refit=refit)
        kept = [layer.out_features // 64 for name, layer in model.named_modules() if name.endswith("k_proj")]
        cell = {"removed": f"{HEAD_RATIO:.0%}", "way": HEADS, "refit": "refitted" if refit else "as pruned"}
        share = math.exp(loss_of(model, test) - before)
        found.append({"seed": seed, **cell, "perplexity": share, "least kept": min(kept)})
        print(f"{HEADS}, {cell['refit']}: {share:.3f} times dense, kept {kept}", flush=True)
    for way in ways:
        if way == HEADS:
            continue
        scores = criteria[way]()
        for ratio in ratios:
            for refit in (False, True):
                model = pruned(dense, scores, ratio, scoring, together=way == OURS, refit=refit)
                kept = [layer.in_features for layer in readers(model).values()]
                share = math.exp(loss_of(model, test) - before)
                cell = {"removed": f"{ratio:.0%}", "way": way, "refit": "refitted" if refit else "as pruned"}
                found.append({"seed": seed, **cell, "perplexity": share, "least kept": min(kept)})
                print(f"{way}, {ratio:.0%}, {cell['refit']}: {share:.3f} times dense, kept {kept}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pruning-ratios", type=float, nargs="+", default=[0.1, 0.25])
    parser.add_argument("--ways", nargs="+", default=["magnitude", "weights times input rms", OURS, HEADS])
    parser.add_argument("--quick", action="store_true", help="one seed, 16 rows that score, 8 that are measured")
    add_rows(parser)
    arguments = parser.parse_args()
    if not installed():
        raise SystemExit("needs SmolLM2 and the texts; see examples/language_model.py")
    sizes = (16, 8) if arguments.quick else (64, 32)
    seeds, ratios = ([0], [0.25]) if arguments.quick else (arguments.seeds, arguments.pruning_ratios)
    frame = pd.DataFrame([row for seed in seeds for row in run(seed, ratios, *sizes, arguments.ways)])
    save_rows(frame, arguments.rows)
    print(f"\nPerplexity over the dense model's, {len(seeds)} seeds, {INTERVAL}")
    print(with_intervals(frame.drop(columns="seed"), ["removed", "way", "refit"]).to_string())


if __name__ == "__main__":
    main()
