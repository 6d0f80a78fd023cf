"""Networks in half precision: sums and losses in single precision, tables within what the type's rounding gives."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim import ChannelGroup, ChannelPlace, SentencePairs, collect_damage, pair_differences
from fairtrim.damage.measured_change import measured_change
from fairtrim.damage.weight_saliency import collect_weight_saliency
from fairtrim.reconstruction import Reader, reconstruct
from fairtrim_adapters.torch_pruning import WorstGroupImportance, reconstructed
from tests.large_cases import feed_forward, llama, texts
from tests.zoo_huggingface import FAMILIES, make_pruner, update

HALVES = (torch.bfloat16, torch.float16)
ROUNDINGS = 8
"""How many roundings, of the size of the type's, the weights, activations and gradients of two layers add up to."""


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_tables(transformers: Any, dtype: torch.dtype) -> None:
    """Of more classes than half precision could count, at tokens and at pairs; no sum is in half precision."""
    model, half = (llama(transformers, of, vocab_size=4999, tie_word_embeddings=True) for of in (torch.float32, dtype))
    half.load_state_dict({name: tensor.to(dtype) for name, tensor in model.state_dict().items()})
    groups, bound = feed_forward(model), ROUNDINGS * torch.finfo(dtype).eps
    pairs = SentencePairs.of_tokens([[3, 5, 7, 9], [4, 8, 2, 6]], [[3, 6, 7, 9], [4, 1, 2, 6]]).loader()
    of_pairs = {"loss_fn": F.mse_loss, "forward_fn": pair_differences}
    for loader, options in ((texts(), {}), (pairs, of_pairs)):
        expected, table = (collect_damage(m, loader, groups, progress=False, **options) for m in (model, half))
        assert table.slope.dtype == torch.float64
        assert _distance(table.slope, expected.slope) < bound
        assert _distance(table.curvature, expected.curvature) < 2 * bound
        assert not measured_change(half, loader, table, progress=False, **options).change.any()
    expected, saliency = (collect_weight_saliency(m, texts(), groups, progress=False) for m in (model, half))
    assert _distance(saliency.curvature, expected.curvature) < 2 * bound
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}


def test_losses_are_those_of_the_scores_in_single_precision(transformers: Any) -> None:
    model, loader = llama(transformers, torch.bfloat16), texts()
    table = collect_damage(model, [batch[:2] for batch in loader], feed_forward(model), progress=False)
    expected = []
    for inputs, labels, _ in loader:
        with torch.no_grad():
            scores = model(**inputs).logits.double()
        expected += [F.cross_entropy(s, y).item() for s, y in zip(scores, labels, strict=True)]
    torch.testing.assert_close(table.sample_losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def _scaled(scores: Tensor, target: Tensor, *, factor: float, reduction: str = "mean") -> Tensor:
    return factor * F.cross_entropy(scores, target, reduction=reduction)


def test_small_slopes_in_float16(transformers: Any) -> None:
    """A loss a million times smaller gives a table a million times smaller: float16 itself ends at 6e-8."""
    model, factor = llama(transformers, torch.float16), 2.0**-20
    groups, options = feed_forward(model), {"curvature": "empirical", "progress": False}
    table = collect_damage(model, texts(), groups, **options)
    small = collect_damage(model, texts(), groups, loss_fn=partial(_scaled, factor=factor), **options)
    torch.testing.assert_close(small.slope / factor, table.slope, rtol=1e-6, atol=1e-12)


def test_slopes_that_single_precision_hardly_holds_in_float16() -> None:
    """Scores 95 apart: the loss's gradient is some 1e-41, which no power of two of single precision brings to 1."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).half()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.25)
        model[1].bias.copy_(torch.tensor([95.0, 0.0]))
    hidden = ChannelGroup("0", 3, (ChannelPlace("1", "input", range(3), range(3), channel_axis=-1),))
    people = [(torch.ones(4, 2).half(), torch.zeros(4, dtype=torch.long))]
    table = collect_damage(model, people, [hidden], curvature="empirical", progress=False)
    assert bool(table.slope.isfinite().all()) and float(table.slope.abs().max()) < 1e-30


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_refit(dtype: torch.dtype) -> None:
    """The solution is that of the same weights in double precision, rounded once; its sums are no sums of halves."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 4, generator=draw).to(dtype)
    weights = torch.randn(3, 5, generator=draw).to(dtype)
    solved = []
    for of in (torch.float64, dtype):
        dense, pruned = nn.Linear(5, 3, bias=False), nn.Linear(4, 3, bias=False)
        dense.weight.data, pruned.weight.data = weights.to(of), weights[:, :4].to(of)
        done = reconstruct(
            pruned,
            dense,
            [(x.to(of), torch.zeros(3000))],
            [Reader("", [0, 1, 2])],
            forward_fn=_with_a_sum,
            progress=False,
        )
        assert pruned.weight.dtype == of and done.layers[0].after < 0.1 * done.layers[0].before
        solved.append(pruned.weight.detach().double())
    assert _distance(solved[1], solved[0]) < 2 * torch.finfo(dtype).eps


def _with_a_sum(network: nn.Module, x: Tensor) -> Any:
    """Of five inputs the last is half the sum of the others; the pruned network doesn't read it."""
    return network(torch.cat([x, x.sum(1, keepdim=True) / 2], 1)[:, : network.get_parameter("weight").shape[1]])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_pruned_and_refitted(transformers: Any, dtype: torch.dtype) -> None:
    """Scored, selected, pruned, refitted and measured, in the network's own type from first to last."""
    family = FAMILIES["llama"]
    model, batches = family.model(transformers).to(dtype), family.batches()
    importance = WorstGroupImportance(compensated=True, progress=False)
    pruner = make_pruner(model, importance, "intermediate", global_pruning=True)
    importance.fit(pruner, batches)
    with reconstructed(pruner, batches, progress=False) as refit:
        pruner.step()
    update(model, pruner)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert refit.reconstruction is not None and refit.measured is not None
    assert all(layer.after <= layer.before for layer in refit.reconstruction.layers)
    whole = family.model(transformers)
    with torch.no_grad():
        scores = torch.cat([whole(**inputs).logits for inputs, _, _ in batches])
    loss = F.cross_entropy(scores, torch.cat([y for _, y, _ in batches])).item()
    everybody = refit.measured.set_index("sensitive_group").loc["everybody"]
    assert everybody["loss dense"] == pytest.approx(loss, rel=16 * torch.finfo(dtype).eps)
    assert everybody["loss pruned"] == pytest.approx(loss, rel=0.5)
