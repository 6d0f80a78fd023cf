"""Blocks computed again in the backward pass: the same numbers, nothing counted twice, everything put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairtrim import InputError, UnsupportedModelError, activation_checkpointing, collect_damage
from fairtrim.damage.channel_costs import weight_uses
from fairtrim.damage.channel_groups import ChannelGroup, ChannelPlace
from fairtrim.damage.input_moments import input_moments
from fairtrim.damage.weight_saliency import squared_gradients
from tests.large_cases import feed_forward, llama, offload, texts


class Stack(nn.Module):
    """Three residual blocks, which count how often they run."""

    def __init__(self, *, reentrant: bool | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5)) for _ in range(3))
            self.head = nn.Linear(5, 3)
        self.double().eval()
        self.calls, self._reentrant = 0, reentrant
        for block in self.blocks:
            block.register_forward_hook(self._count)
            block[0].register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + (block(x) if self._reentrant is None else checkpoint(block, x, use_reentrant=self._reentrant))
        scores: Tensor = self.head(x)
        return scores


GROUPS = [
    ChannelGroup(f"blocks.{k}.0", 7, (ChannelPlace(f"blocks.{k}.2", "input", range(7), range(7), channel_axis=-1),))
    for k in range(3)
]


def _people() -> list[Any]:
    x = torch.randn(11, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    return [
        (x[a:b], torch.arange(a, b) % 3, ["a", "b"] * ((b - a) // 2) + ["a"] * ((b - a) % 2))
        for a, b in ((0, 6), (6, 11))
    ]


def _collected(model: nn.Module) -> tuple[Any, Any, dict[str, float]]:
    with weight_uses(model) as uses, input_moments(model, GROUPS) as moments:
        table = collect_damage(model, _people(), GROUPS, curvature="exact", interactions=True, progress=False)
    return table, moments.read(), uses.per_sample(11)


@pytest.mark.parametrize("how", ["context", "names", "own", "nested", "inside"])
def test_same_numbers_and_nothing_counted_twice(how: str) -> None:
    plain, model = Stack(), Stack(reentrant=False if how == "own" else None)
    expected, moments, uses = _collected(plain)
    if how == "own":
        table, again, used = _collected(model)
    else:
        inner = {"nested": None, "inside": ["blocks.0.1", "blocks.1.2"]}.get(how, [])
        with (
            activation_checkpointing(model, ["blocks.0", "blocks.2"] if how == "names" else None),
            activation_checkpointing(model, inner),
        ):
            table, again, used = _collected(model)
    assert model.calls > plain.calls  # it did run again
    for name in ("loss", "slope", "curvature", "interactions", "standard_error"):
        assert torch.equal(getattr(table, name), getattr(expected, name)), name
    assert used == uses
    for mine, other in zip(again.readers, moments.readers, strict=True):
        assert mine.n_rows == other.n_rows and torch.equal(mine.moments, other.moments)
    assert not any("forward" in vars(module) for module in model.modules())


def test_saliency() -> None:
    """Closed forms take their notes in the forward pass alone."""
    plain, model = Stack(), Stack()
    _, expected = squared_gradients(plain, _people(), progress=False)
    with activation_checkpointing(model):
        _, squares = squared_gradients(model, _people(), progress=False)
    for name, square in squares.items():
        torch.testing.assert_close(square, expected[name], rtol=1e-12, atol=1e-15)


def test_reentrant_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"make checkpoints with use_reentrant=False"):
        collect_damage(Stack(reentrant=True), _people(), GROUPS, progress=False)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_language_model(transformers: Any, attention: str) -> None:
    """Its own switch does nothing in eval mode; here caches are off inside of blocks, and would grow otherwise."""
    model = llama(transformers, attn_implementation=attention)
    model.train()
    switch = "activation_checkpointing_enable" if hasattr(model, "activation_checkpointing_enable") else ""
    getattr(model, switch or "gradient_checkpointing_enable")()
    groups, calls = feed_forward(model), []
    model.model.layers[0].mlp.act_fn.register_forward_hook(lambda *_: calls.append(1))
    expected = collect_damage(model, texts(), groups, progress=False)
    assert len(calls) == 3 and model.config.use_cache
    with activation_checkpointing(model):
        table = collect_damage(model, texts(), groups, progress=False)
    assert len(calls) > 6
    assert torch.equal(table.slope, expected.slope) and torch.equal(table.curvature, expected.curvature)


def test_offloaded() -> None:
    """What brings weights in does so again in the backward pass, and gets its forward functions back."""
    model = offload(Stack())
    forwards = [vars(module).get("forward") for module in model.modules()]
    with activation_checkpointing(model):
        table = collect_damage(model, _people(), GROUPS, progress=False)
    assert torch.equal(table.slope, collect_damage(Stack(), _people(), GROUPS, progress=False).slope)
    assert [vars(module).get("forward") for module in model.modules()] == forwards
    with activation_checkpointing(model, ["blocks.0.0"]):
        assert model.blocks[0][0].forward is not forwards[3]
    assert [vars(module).get("forward") for module in model.modules()] == forwards


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("blocks.0", r"blocks is the string 'blocks.0'; expected a list"),
        (["block.0"], r"'block.0', which is no module of the network \(did you mean 'blocks.0'\?\)"),
        (["blocks.0", "blocks.0.2"], r"'blocks.0.2' lies inside of 'blocks.0'"),
    ],
)
def test_refused(blocks: Any, message: str) -> None:
    model = Stack()
    with pytest.raises(InputError, match=message), activation_checkpointing(model, blocks):
        pass
    assert not any("forward" in vars(module) for module in model.modules())


def test_without_a_list() -> None:
    with (
        pytest.raises(InputError, match=r"no nn\.ModuleList of blocks; name them"),
        activation_checkpointing(nn.Tanh()),
    ):
        pass
