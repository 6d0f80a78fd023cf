"""Pair damage on a language model: which removed channels lower |ΔLL| of pairs of sentences, at equal perplexity.

    pip install -e '.[huggingface]'  # and the packages that examples/language_model.py names
    python -m benchmarks.pair_damage --splits 0 1 2   # about eight CPU minutes a split
    python -m benchmarks.pair_damage --starts         # five, the dense network

SmolLM2-135M, all 46,080 feed-forward channels and 270 query heads, chosen by one half of CrowS-Pairs' pairs on gender
and 100 sentences of Wikipedia; every method closes as many of its order as 50 other sentences allow at a
perplexity of at most +5 %, and is measured on the other half and on StereoSet's pairs on gender, which nothing was
chosen by. ``halves`` is the correlation of the channels' first-order gains between two halves of the pairs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from examples.language_model import smollm2, wikipedia
from torch import Tensor

from fairtrim import ChannelGroup, ChannelPlace, DamageTable, SentencePairs, collect_damage, pair_differences
from fairtrim.criteria import PairDamage
from fairtrim.damage import side_by_side
from fairtrim.damage.gates import explicit_gates
from fairtrim.selection import Pool, joint_selection
from fairtrim_adapters.huggingface import crows_pairs, sentence_pairs, stereo_set, text_loader

BOUND = 0.05
MOST = 600  # channels that are ordered
FOLDS = 8
PROTECTED = 0.5  # share of the heads that FASP's rule leaves alone


def channels_of(model: Any) -> list[ChannelGroup]:
    """Feed-forward channels and query heads of a network of Llama's kind, where they are consumed."""
    size, n_heads = model.config.intermediate_size, model.config.num_attention_heads
    width = model.config.hidden_size
    heads = [k // (width // n_heads) for k in range(width)]
    groups = []
    for k in range(model.config.num_hidden_layers):
        name = f"model.layers.{k}"
        place = ChannelPlace(f"{name}.mlp.down_proj", "input", range(size), range(size), channel_axis=-1)
        groups.append(ChannelGroup(f"{name}.mlp", size, (place,)))
    for k in range(model.config.num_hidden_layers):
        name = f"model.layers.{k}.self_attn"
        place = ChannelPlace(f"{name}.o_proj", "input", range(width), heads, channel_axis=-1)
        groups.append(ChannelGroup(name, n_heads, (place,)))
    return groups


class Measured:
    """A model, its channels closed or not."""

    def __init__(self, model: Any, groups: list[ChannelGroup]) -> None:
        self.model, self.groups = model, groups

    @contextmanager
    def closed(self, columns: Sequence[int]) -> Iterator[None]:
        gates = torch.ones(sum(group.size for group in self.groups))
        gates[list(columns)] = 0
        parts = gates.split([group.size for group in self.groups])  # type: ignore[no-untyped-call]
        names = [group.name for group in self.groups]
        with explicit_gates(self.model, self.groups, dict(zip(names, parts, strict=True))), torch.no_grad():
            yield

    def log_perplexity(self, texts: Any, columns: Sequence[int] = (), scale: float = 1.0) -> float:
        total, n_tokens = 0.0, 0
        with self.closed(columns):
            for inputs, labels in texts:
                scores = self.model(**inputs, use_cache=False).logits * scale
                total += float(F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum"))
                n_tokens += int((labels != -100).sum())
        return total / n_tokens

    def differences(self, pairs: SentencePairs, columns: Sequence[int] = (), scale: float = 1.0) -> Tensor:
        def scaled(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            scores: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
            return scores * scale

        order = pairs.attention_mask.sum(2).amax(1).argsort()
        found = torch.zeros(len(pairs))
        with self.closed(columns):
            for rows in order.split(8):  # type: ignore[no-untyped-call]
                batch, _, _ = next(iter(pairs.take(rows).loader(8)))
                found[rows] = pair_differences(scaled, batch)[:, 0]  # type: ignore[arg-type]
        return found


def activation_gaps(model: Any, pairs: SentencePairs) -> Tensor:
    """Mean |a(x) − a(x̄)| of every feed-forward channel, a the mean over the shared tokens."""
    seen: dict[int, Tensor] = {}
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args, k=k: seen.__setitem__(k, args[0]))
        for k, layer in enumerate(model.model.layers)
    ]
    total: Any = 0.0
    with torch.no_grad():
        for rows in pairs.attention_mask.sum(2).amax(1).argsort().split(8):  # type: ignore[no-untyped-call]
            part = pairs.take(rows)
            model.model(part.input_ids.flatten(0, 1), part.attention_mask.flatten(0, 1), use_cache=False)
            weight = (part.shared.bool() & part.attention_mask.bool()).flatten(0, 1).float().unsqueeze(2)
            means = [(seen[k] * weight).sum(1) / weight.sum(1) for k in range(len(seen))]
            sides = torch.cat(means, 1).unflatten(0, (-1, 2))  # type: ignore[no-untyped-call]
            total = total + (sides[:, 0] - sides[:, 1]).abs().sum(0)
    for handle in handles:
        handle.remove()
    return total / len(pairs)  # type: ignore[no-any-return]


def largest_within(network: Measured, judges: Any, order: list[int], before: float) -> tuple[int, float]:
    """The largest first part of an order within the bound, as far as four halvings find it, and its rise in nats."""
    rises = {0: 0.0}

    def allowed(size: int) -> bool:
        rises[size] = network.log_perplexity(judges, order[:size]) - before
        return rises[size] <= math.log1p(BOUND)

    low, high = 0, min(32, len(order))
    while high > low and allowed(high):
        low, high = high, min(len(order), 4 * high)
    for _ in range(4 if low else 5):
        middle = (low + high) // 2
        if middle == low:
            break
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low, rises[low]


def orders(pairs: DamageTable, texts: DamageTable, gaps: Tensor, seed: int) -> Iterator[tuple[str, list[int]]]:
    """Each method's order of removal."""
    n_heads = sum(size for name, size in pairs.sizes.items() if name.endswith("self_attn"))
    n_columns = pairs.slope.shape[1]
    heads = torch.arange(n_columns - n_heads, n_columns)
    joined = side_by_side({"pairs": pairs, "texts": texts.without_first_order()})
    pools = [Pool(tuple(pairs.sizes), quota=MOST)]

    def gaining(table: DamageTable, agreeing: float) -> list[int]:
        found = joint_selection(table, PairDamage(BOUND, agreeing), pools=pools)
        order = found.order.tolist()[:MOST]
        return order[: next((k for k, c in enumerate(order) if found.change[c] >= 0), MOST)]

    yield "pair damage, 3/4 of the folds", gaining(joined, 0.75)
    pooled_pairs = pairs.pooled([range(FOLDS)], ["all"])
    pooled = side_by_side({"pairs": pooled_pairs, "texts": texts.without_first_order()})
    yield "pair damage, mean of all pairs", gaining(pooled, 0.5)
    cost = texts.without_first_order().damage[0]
    free = heads[cost[heads].argsort()[: int(len(heads) * (1 - PROTECTED))]]
    yield "FASP's rule, heads", free[pooled_pairs.damage[0][free].argsort()].tolist()
    yield "neurons of the largest gap", gaps.argsort(descending=True).tolist()[:MOST]
    random = torch.Generator().manual_seed(seed)
    yield "random channels", torch.randperm(n_columns - n_heads, generator=random).tolist()[:MOST]


def agreement(pairs: DamageTable) -> tuple[float, float]:
    """Correlation of first-order gains, scaled by their size, between two halves of the folds: channels, heads."""
    scale = pairs.curvature.mean(0).sqrt().clamp_min(1e-12)
    halves = torch.stack([pairs.slope[::2].mean(0), pairs.slope[1::2].mean(0)]) / scale
    n_heads = sum(size for name, size in pairs.sizes.items() if name.endswith("self_attn"))
    channels, heads = (float(torch.corrcoef(part)[0, 1]) for part in (halves[:, :-n_heads], halves[:, -n_heads:]))
    return channels, heads


def tell_starts(model: Any, tokenizer: Any, groups: list[ChannelGroup]) -> None:
    """What a token before both sentences changes: ΔLL of all pairs, and how far halves of them agree."""
    for name in (None, "<|im_start|>", "<|endoftext|>"):
        start = None if name is None else tokenizer.convert_tokens_to_ids(name)
        pairs = sentence_pairs(crows_pairs(categories=["gender"]), tokenizer, start=start)
        found = Measured(model, groups).differences(pairs)
        table = pair_table(model, pairs, groups)
        line = f"{name or 'no start':15} rms ΔLL {float(found.square().mean().sqrt()):.2f}, preferred "
        line += f"{100 * float((found > 0).float().mean()):.1f} %, halves "
        print(line + "{:+.3f}, heads {:+.3f}".format(*agreement(table)), flush=True)


def pair_table(model: Any, pairs: SentencePairs, groups: list[ChannelGroup]) -> DamageTable:
    """The quadratic of ΔLL in folds."""
    loader = pairs.in_folds(FOLDS).loader(8)
    calling: Any = {"forward_fn": pair_differences, "loss_fn": F.mse_loss, "interactions": True, "progress": False}
    return collect_damage(model, loader, groups, **calling)


def told(name: str, size: str, rise: float, found: Sequence[Tensor], dense: Sequence[Tensor]) -> str:
    line = f"{name:36}{size:>8}{100 * math.expm1(rise):>+8.1f} %"
    for now, before in zip(found, dense, strict=True):
        ratio = float(now.square().mean().sqrt() / before.square().mean().sqrt())
        error = 100 * float((now > 0).float().std() / len(now) ** 0.5)
        line += f"{100 * (ratio - 1):>+8.1f} %{100 * float((now > 0).float().mean()):>7.1f} ±{1.96 * error:4.1f}"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, nargs="+", default=[0], help="which splits; default 0")
    parser.add_argument("--starts", action="store_true", help="only the dense network, by what starts sentences")
    arguments = parser.parse_args()
    model, tokenizer = smollm2()
    model.requires_grad_(False)
    groups = channels_of(model)
    if arguments.starts:
        tell_starts(model, tokenizer, groups)
        return
    network = Measured(model, groups)
    crows = sentence_pairs(crows_pairs(categories=["gender"]), tokenizer)
    stereo = sentence_pairs(stereo_set(categories=["gender"]), tokenizer)
    sentences = [text for texts in wikipedia("gender").values() for text in texts]
    print(f"{'':54}{'CrowS-Pairs':>23}{'StereoSet':>23}")
    figures = f"{'rms ΔLL':>10}{'preferred':>13}"
    print(f"{'split, method':36}{'closed':>8}{'perpl.':>10}{figures}{figures}")
    for split in arguments.splits:
        draws = torch.Generator().manual_seed(split)
        rows = torch.randperm(len(crows), generator=draws)
        scoring, test = crows.take(rows[: len(rows) // 2]), crows.take(rows[len(rows) // 2 :])
        other = stereo.take(torch.randperm(len(stereo), generator=draws)[:100])
        drawn = [sentences[k] for k in torch.randperm(len(sentences), generator=draws)[:150].tolist()]
        scoring_texts, judges = (
            text_loader(some, tokenizer, batch_size=8, max_length=48) for some in (drawn[:100], drawn[100:])
        )
        pairs = pair_table(model, scoring, groups)
        texts = collect_damage(model, scoring_texts, groups, interactions=True, progress=False)
        before = network.log_perplexity(judges)
        dense = [network.differences(some) for some in (test, other)]
        rms = [float(found.square().mean().sqrt()) for found in dense]
        print(f"{split}: perplexity {math.exp(before):.1f}, rms ΔLL {rms[0]:.2f} and {rms[1]:.2f}, ", end="")
        print("halves {:+.3f}, heads {:+.3f}".format(*agreement(pairs)), flush=True)
        print(told(f"{split} dense", "0", 0.0, dense, dense), flush=True)
        scale = 0.8  # a softer output alone, for comparison
        rise = network.log_perplexity(judges, scale=scale) - before
        found = [network.differences(some, scale=scale) for some in (test, other)]
        print(told(f"{split} logits times {scale}, nothing closed", "0", rise, found, dense), flush=True)
        for name, order in orders(pairs, texts, activation_gaps(model, scoring), split):
            size, rise = largest_within(network, judges, order, before)
            found = [network.differences(some, order[:size]) for some in (test, other)]
            print(told(f"{split} {name}", str(size), rise, found, dense), flush=True)


if __name__ == "__main__":
    main()
