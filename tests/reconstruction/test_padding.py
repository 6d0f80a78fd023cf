"""What fills sentences up to one length is none of what a layer is refitted on, nor of the moments it is chosen by."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim import ChannelGroup, ChannelPlace
from fairtrim.damage.input_moments import input_moments
from fairtrim.data.padding import real_tokens
from fairtrim.reconstruction import Reader, Reconstruction, reconstruct
from fairtrim.reconstruction import passes as passes_module

FILLER, WIDTH = 9, 8
KEPT = [0, 2, 3, 5, 7]


class _Tokens(nn.Module):
    """Two layers on each token, a residual sum and a head over many words; the filler's numbers are enormous."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 3)
        self.up, self.down = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3)
        self.up2, self.down2 = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3, bias=False)
        self.head = nn.Linear(3, 1000)
        self.n_heads_run = 0
        with torch.no_grad():
            self.words.weight[FILLER] = 1e3

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.words(input_ids)
        x = x + self.down(self.up(x).tanh())
        x = x + self.down2(self.up2(x).tanh())
        self.n_heads_run += 1
        scores: Tensor = self.head(x)
        return scores


def _networks() -> tuple[_Tokens, _Tokens, list[Reader]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = _Tokens().double().eval()
    pruned = copy.deepcopy(dense)
    for up, down in ((pruned.up, pruned.down), (pruned.up2, pruned.down2)):
        up.weight.data, up.bias.data = up.weight.data[KEPT], up.bias.data[KEPT]
        down.weight.data = down.weight.data[:, KEPT]
    return dense, pruned, [Reader("down", range(3)), Reader("down2", range(3))]


def _sentences(number: int = 40) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 7, (number,), generator=draw).tolist()
    return [torch.randint(0, FILLER, (length,), generator=draw) for length in lengths]


def _batches(sentences: list[Tensor], size: int, side: str, told_by: str) -> list[dict[str, Tensor]]:
    batches = []
    for start in range(0, len(sentences), size):
        some = sentences[start : start + size]
        longest = max(map(len, some))
        ids = torch.full((len(some), longest), FILLER)
        mask = torch.zeros(len(some), longest, dtype=torch.long)
        for row, sentence in enumerate(some):
            place = slice(longest - len(sentence), None) if side == "left" else slice(0, len(sentence))
            ids[row, place], mask[row, place] = sentence, 1
        batch = {"input_ids": ids, "labels": ids.masked_fill(mask == 0, -100)}
        batches.append({**batch, "attention_mask": mask} if told_by == "mask" else batch)
    return batches


def _refitted(loader: Any, **options: Any) -> tuple[_Tokens, Reconstruction]:
    dense, pruned, readers = _networks()
    return pruned, reconstruct(pruned, dense, loader, readers, progress=False, **options)


@pytest.mark.parametrize("told_by", ["mask", "labels"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [7, 40])
def test_padding_is_no_row(side: str, size: int, told_by: str) -> None:
    """Against the sentences one by one, with nothing filled up."""
    sentences = _sentences()
    alone, done = _refitted([(sentence[None], torch.zeros(1)) for sentence in sentences])
    padded, again = _refitted(_batches(sentences, size, side, told_by))
    assert (
        [layer.rows for layer in again.layers]
        == [layer.rows for layer in done.layers]
        == [sum(map(len, sentences))] * 2
    )
    for one, two in zip(done.layers, again.layers, strict=True):
        assert one.ridge == two.ridge and (one.before, one.after) == pytest.approx((two.before, two.after), rel=1e-5)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(padded.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_lengths_that_differ_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filled up further, so that the refit is one forward pass; else one for each layer and batch."""
    batches = _batches(_sentences(), 7, "left", "mask")
    assert len({batch["input_ids"].shape[1] for batch in batches}) > 1
    joined, _ = _refitted(batches)
    monkeypatch.setattr(passes_module, "_MAX_ACTIVATION_BYTES", 0)
    apart, _ = _refitted(batches)
    for name, value in apart.state_dict().items():
        torch.testing.assert_close(joined.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_few_positions_a_sample_are_drawn_among_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes_module, "_ROWS", 1)
    monkeypatch.setattr(passes_module, "_ROWS_A_COLUMN", 16)  # for five inputs of forty samples: two a sample
    _, done = _refitted(_batches(_sentences(), 7, "left", "mask"))
    assert [layer.rows for layer in done.layers] == [80, 80]


def test_what_comes_behind_the_last_layer_neither_runs_nor_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of all words are the largest tensor by far: with room for everything else, all runs as one batch."""
    runs: list[int] = []
    run = passes_module.Passes._run

    def counted(self: Any, *args: Any) -> None:
        runs.append(1)
        run(self, *args)

    monkeypatch.setattr(passes_module.Passes, "_run", counted)
    batches = _batches(_sentences(), 7, "right", "mask")
    monkeypatch.setattr(passes_module, "_MAX_ACTIVATION_BYTES", 4 * 40 * 6 * WIDTH * 8)
    dense, pruned, readers = _networks()
    reconstruct(pruned, dense, batches, readers, progress=False)
    assert len(runs) == 1
    looks = pruned.n_heads_run
    assert dense.n_heads_run == looks  # both are looked at before, and never get there afterwards
    monkeypatch.setattr(passes_module, "_MAX_ACTIVATION_BYTES", 0)
    dense, pruned, readers = _networks()
    reconstruct(pruned, dense, batches, readers, progress=False)
    assert len(runs) == 1 + 2 * len(batches) and pruned.n_heads_run == dense.n_heads_run == looks


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_input_of_the_moments(side: str) -> None:
    dense, _, _ = _networks()
    sentences = _sentences()
    hidden = ChannelGroup("up", WIDTH, (ChannelPlace("down", "input", range(WIDTH), range(WIDTH), channel_axis=-1),))
    with input_moments(dense, [hidden]) as alone:
        for sentence in sentences:
            dense(sentence[None])
    with input_moments(dense, [hidden]) as padded:
        for batch in _batches(sentences, 7, side, "mask"):
            dense(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    (one,), (two,) = alone.read().readers, padded.read().readers
    assert one.n_rows == two.n_rows == sum(map(len, sentences))
    torch.testing.assert_close(two.moments, one.moments)
    torch.testing.assert_close(two.mean, one.mean)


def test_what_says_nothing_of_padding() -> None:
    ids, labels = torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, -100, 1], [1, 1, 1]])
    for inputs, target in (
        (ids, labels),
        ({"input_ids": ids}, labels),  # a token in between that isn't asked for
        ({"input_ids": ids}, torch.tensor([0, 1])),
        ({"input_ids": ids, "attention_mask": torch.ones(2, 3)}, None),
        ({"attention_mask": torch.tensor([[0.0, -1e9]])}, None),  # what is added to the attention
    ):
        assert real_tokens(inputs, target) is None
