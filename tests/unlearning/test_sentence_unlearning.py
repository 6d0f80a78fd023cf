"""Unlearning from pairs of sentences, against finite differences, dense matrices and plain loops in float64."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim import CounterfactualUnlearning, InputError, SentencePairs, UnsupportedModelError, pair_differences
from fairtrim.network.late_blocks import LateBlocks
from fairtrim.network.pair_differences import next_token_scores, shared_log_likelihoods
from fairtrim.unlearning import influence_of_sentences
from fairtrim.unlearning.linearised_pairs import LinearisedPairs
from fairtrim.unlearning.unlearned import was_unlearned
from tests.snapshot import Snapshot

VOCABULARY = 11


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.up, self.down = nn.Linear(3, 3), nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        past = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        x = x + self.mix(past).tanh()
        return x + self.down(self.up(x).tanh())  # type: ignore[no-any-return]


class _Tokens(nn.Module):
    """A causal language model of three blocks, whose head is tied to its embeddings."""

    def __init__(self, skip: bool = False) -> None:
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(VOCABULARY, 3), nn.ModuleList(_Block() for _ in range(3))
        self.norm, self.head, self.skip = nn.LayerNorm(3), nn.Linear(3, VOCABULARY, bias=False), skip
        self.head.weight = self.embedding.weight
        self.double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for number, block in enumerate(self.blocks):
            seen = x
            x = block(x)
            if self.skip and number < 2:  # what blocks give is not all that the next one takes
                x = x + 0.5 * seen
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def _pairs(number: int) -> SentencePairs:
    """Names 1 and 2, or 1 and (2, 3); the same words behind them, and a token before them."""
    generator = torch.Generator().manual_seed(3)
    first, second, shared = [], [], []
    for row in range(number):
        words = torch.randint(4, VOCABULARY, (3 + row % 4,), generator=generator).tolist()
        name = [2, 3] if row % 3 == 0 else [2]
        first.append([0, 1, *words])
        second.append([0, *name, *words])
        shared.append(([1, 0] + [1] * len(words), [1] + [0] * len(name) + [1] * len(words)))
    return SentencePairs.of_tokens(first, second, shared=shared)


def _texts(*, left: bool = False) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    batches = []
    for length in (5, 7):
        ids = torch.randint(0, VOCABULARY, (6, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 3:], mask[4, 4:] = 0, 0
        if left:
            for row in (1, 4):
                shift = int(length - mask[row].sum())
                ids[row], mask[row] = ids[row].roll(shift), mask[row].roll(shift)
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


@pytest.fixture
def model() -> _Tokens:
    torch.manual_seed(5)
    network = _Tokens()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    return network.eval()


def _repair(model: nn.Module, pairs: SentencePairs | None = None, **settings: Any) -> Any:
    n_blocks = None if settings.get("layers") == "all" else 2
    method = CounterfactualUnlearning(**{"n_blocks": n_blocks, "max_perplexity_rise": 0.3, **settings})
    return method.repair(model, pairs or _pairs(20), texts=_texts(), progress=False)


NAMES = ["blocks.1.down", "blocks.2.down"]


def _linearised(model: nn.Module, n_signs: int = 1) -> tuple[LinearisedPairs, dict[str, Tensor]]:
    """One batch of texts and one of pairs, as the repair adds them."""
    model.requires_grad_(False)
    text, pairs, generator = _texts()[0], next(iter(_pairs(6).loader()))[0], torch.Generator().manual_seed(6)
    ids, mask = text["input_ids"], text["attention_mask"]
    late = LateBlocks(model, NAMES, 2, lambda: next_token_scores(model, ids, mask))
    problem = LinearisedPairs(NAMES)
    with late.noted() as notes:
        scores = next_token_scores(model, ids, mask)
        problem.add_text(scores, nn.functional.pad(mask[:, 1:].bool(), (0, 1)), notes, generator)
    with late.noted() as notes:
        problem.add_pairs(shared_log_likelihoods(model, pairs), pairs["shared"].bool(), notes, generator, n_signs)
    return problem, pairs


def _hessian(model: nn.Module, damping: float, text: dict[str, Tensor] | None = None) -> Tensor:
    """(G + d) ⊗ (A + d) of both layers on the diagonal, one token at a time, drawn by the same uniform numbers."""
    text, generator = text or _texts()[0], torch.Generator().manual_seed(6)
    ids, mask = text["input_ids"], text["attention_mask"]
    inputs: dict[str, Tensor] = {}
    zeros = {name: torch.zeros(*ids.shape, 3, dtype=torch.float64, requires_grad=True) for name in NAMES}
    handles = []
    for name in NAMES:

        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor, name: str = name) -> Tensor:
            inputs[name] = args[0].detach()
            return output + zeros[name]

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    log_probabilities = model(ids, mask).log_softmax(2)
    for handle in handles:
        handle.remove()
    places = [(n, t) for n in range(len(ids)) for t in range(ids.shape[1] - 1) if mask[n, t + 1]]
    drawn = torch.rand(len(places), 1, generator=generator)[:, 0].tolist()
    total = torch.zeros((), dtype=torch.float64)
    for (n, t), uniform in zip(places, drawn, strict=True):
        masses = itertools.accumulate(log_probabilities[n, t].exp().tolist())
        token = next(token for token, mass in enumerate(masses) if mass >= uniform)
        total = total + log_probabilities[n, t, token]
    parts = []
    for name, gradient in zip(NAMES, torch.autograd.grad(total, list(zeros.values())), strict=True):
        a, g = torch.zeros(5, 5, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
        for n, t in places:
            a += torch.outer(inputs[name][n, t], inputs[name][n, t]) / len(places)
        for n in range(len(ids)):
            for t in range(ids.shape[1]):
                g += torch.outer(gradient[n, t], gradient[n, t]) / len(places)
        a += damping * a.diagonal().mean() * torch.eye(5)
        g += damping * g.diagonal().mean() * torch.eye(3)
        parts.append(torch.kron(g, a))
    return torch.block_diag(*parts)


def _slopes(model: nn.Module, figure: Any) -> Tensor:
    """Derivative of figures (M,) by the weights of both layers, by central differences, (M, 30)."""
    columns, step = [], 1e-6
    for name in NAMES:
        weight = model.get_submodule(name).weight
        for entry in range(weight.numel()):
            sides = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight.view(-1)[entry] += sign * step
                    sides.append(figure())
                    weight.view(-1)[entry] -= sign * step
            columns.append((sides[0] - sides[1]) / (2 * step))
    return torch.stack(columns, 1)


def test_the_published_step_is_a_solve_with_the_slope_of_the_bias(model: nn.Module) -> None:
    problem, pairs = _linearised(model)
    edits, whole = problem.published(0.2)
    slope = _slopes(model, lambda: pair_differences(model, pairs).abs().mean().view(1))[0]
    solved = torch.linalg.solve(_hessian(model, 0.2), slope)
    step = torch.cat([edits(0.7)[name].flatten() for name in NAMES])
    torch.testing.assert_close(step, -0.7 * solved, rtol=1e-6, atol=1e-8)
    assert whole == pytest.approx(float(pair_differences(model, pairs).abs().mean() / (slope @ solved)), rel=1e-6)


@pytest.mark.parametrize("strength", [0.3, 40.0])
def test_consistency_is_the_minimum_of_the_dense_quadratic(model: nn.Module, strength: float) -> None:
    problem, pairs = _linearised(model)
    given = pair_differences(model, pairs)[:, 0]
    slopes = _slopes(model, lambda: pair_differences(model, pairs)[:, 0])
    weight = strength / len(given) / given.square().mean()
    minimum = torch.linalg.solve(_hessian(model, 0.1) + weight * slopes.T @ slopes, -weight * slopes.T @ given)
    found = torch.cat([problem.consistent(0.1)(strength)[name].flatten() for name in NAMES])
    torch.testing.assert_close(found, minimum, rtol=1e-5, atol=1e-8)


def test_signs_keep_tokens_from_cancelling(model: nn.Module) -> None:
    """Rows with signs are sums of the differences of shared tokens, each with the sign that both of its sides have."""
    problem, pairs = _linearised(model, n_signs=3)
    likelihoods, mask = shared_log_likelihoods(model, pairs), pairs["shared"].bool()
    rows = problem._stacked_values().view(3, -1)
    torch.testing.assert_close(rows[0], pair_differences(model, pairs)[:, 0])
    for pair in range(len(mask)):
        parts = (likelihoods[pair, 0][mask[pair, 0]] - likelihoods[pair, 1][mask[pair, 1]]).tolist()
        sums = {round(0.0 + s, 9) for s in _signed_sums(parts)}
        assert all(round(float(row), 9) in sums for row in rows[:, pair])
    assert not torch.allclose(rows[1].abs(), rows[0].abs())


def _signed_sums(parts: list[float]) -> list[float]:
    sums = [0.0]
    for part in parts:
        sums = [total + sign * part for total in sums for sign in (1, -1)]
    return sums


@pytest.mark.parametrize("skip", [False, True])
def test_late_blocks_run_from_what_was_kept(skip: bool) -> None:
    torch.manual_seed(7)
    model = _Tokens(skip).eval().requires_grad_(False)
    batches = [batch["input_ids"] for batch in _texts()]
    calls = [0]
    model.blocks[0].register_forward_hook(lambda module, args, output: calls.__setitem__(0, calls[0] + 1))
    late = LateBlocks(model, ["blocks.2.down"], 1, lambda: model(batches[0], None))
    kept: list[dict[str, Any]] = [{}, {}]
    for turn in range(2):
        for ids, own in zip(batches, kept, strict=True):
            with torch.no_grad():
                late.weight("blocks.2.down").mul_(1.1)
            wanted = copy.deepcopy(model)(ids, None)
            torch.testing.assert_close(late.scores(lambda ids=ids: model(ids, None), own), wanted)
        assert bool(kept[1]) is not skip, turn
    assert "forward" not in vars(model.blocks[0])


def test_layers_of_transformers(transformers: Any) -> None:
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=1
        )
    )
    for model, name in ((llama, "model.layers.1.mlp.down_proj"), (gpt2, "transformer.h.1.mlp.c_proj")):
        before = Snapshot(model)
        repair = _repair(model, n_blocks=1, max_perplexity_rise=1.0)
        before.assert_unchanged()
        assert repair.edited_layers == (name,)
        assert repair.bias < repair.bias_before or repair.flags
        changed = [k for k, v in repair.model.named_parameters() if not torch.equal(v, before.tensors[k])]
        assert changed == ([f"{name}.weight"] if repair.candidate else [])


FORMS: dict[str, dict[str, Any]] = {
    "consistency": {},
    "published": {"form": "published"},
    "all": {"layers": "all", "epochs": 2, "learning_rate": 3e-3, "strengths": (1.0,)},
    "late": {"layers": "all", "n_blocks": 2, "epochs": 2, "learning_rate": 3e-3, "strengths": (1.0,)},
}


def _plain(model: nn.Module, pairs: SentencePairs, texts: list[Tensor]) -> tuple[list[float], float]:
    """ΔLL of each pair and the perplexity of texts, one sentence at a time."""

    def tokens(ids: Tensor) -> list[float]:
        with torch.no_grad():
            scores = model(ids[None], torch.ones_like(ids[None]))[0].log_softmax(1)
        return [0.0] + [float(scores[t - 1, ids[t]]) for t in range(1, len(ids))]

    change = []
    for pair in range(len(pairs)):
        sides = []
        for side in (0, 1):
            ids = pairs.input_ids[pair, side][pairs.attention_mask[pair, side].bool()]
            sides.append(sum(p for p, s in zip(tokens(ids), pairs.shared[pair, side].tolist(), strict=False) if s))
        change.append(sides[0] - sides[1])
    losses = [-p for ids in texts for p in tokens(ids)[1:]]
    return change, math.exp(sum(losses) / max(1, len(losses)))


@pytest.mark.parametrize("form", FORMS)
def test_figures_are_those_of_the_repaired_model(form: str, model: nn.Module) -> None:
    pairs = _pairs(20)
    before = Snapshot(model)
    repair = _repair(model, pairs, random_state=2, **FORMS[form])
    before.assert_unchanged()
    held = pairs.take(repair.selection_rows)
    assert len(held) == 6 and sorted([*repair.edit_rows.tolist(), *repair.selection_rows.tolist()]) == list(range(20))
    for network, figures in ((model, repair.before), (repair.model, repair.after)):
        change, _ = _plain(network, held, [])
        assert sorted(change) == pytest.approx(sorted(figures.differences.tolist()), abs=1e-9)
        assert figures.bias == pytest.approx(sum(map(abs, change)) / 6)
        assert figures.rms == pytest.approx(math.sqrt(sum(d * d for d in change) / 6))
        assert figures.preferred == pytest.approx(sum(d > 0 for d in change) / 6)
    chosen = repair.history[repair.candidate]
    assert chosen["bias"] == repair.bias and chosen["perplexity"] == repair.perplexity
    allowed = [h for h in repair.history[1:] if h["perplexity"] <= 1.3 * repair.perplexity_before]
    allowed = [h for h in allowed if h["relative"] < repair.before.relative and h["bias"] < repair.bias_before]
    assert repair.candidate and repair.bias == min(h["bias"] for h in allowed)
    falls = [abs(b) - abs(a) for a, b in zip(repair.before.differences, repair.after.differences, strict=True)]
    mean = float(sum(falls) / 6)
    half = 1.96 * math.sqrt(sum((float(f) - mean) ** 2 for f in falls) / 6) / math.sqrt(6)
    assert any("within its error on 6 held-out pairs" in flag for flag in repair.flags) == (mean + half >= 0)
    assert was_unlearned(repair.model) and not was_unlearned(model)
    assert max(map(len, str(repair).splitlines())) <= 100


def _plain_texts(seed: int) -> list[Tensor]:
    """The held-out half, by the draws of the repair."""
    generator = torch.Generator().manual_seed(seed)
    torch.randperm(20, generator=generator)
    rows = [ids[mask.bool()] for b in _texts() for ids, mask in zip(b["input_ids"], b["attention_mask"], strict=True)]
    return [rows[int(row)] for row in torch.randperm(12, generator=generator)[6:]]


def test_perplexity_is_of_held_out_texts_and_no_padding_counts(model: nn.Module) -> None:
    repair = _repair(model, random_state=2)
    assert repair.perplexity_before == pytest.approx(_plain(model, _pairs(1), _plain_texts(2))[1])
    left = CounterfactualUnlearning(n_blocks=2, max_perplexity_rise=0.3, random_state=2).repair(
        model, _pairs(20), texts=_texts(left=True), progress=False
    )
    assert left.history == repair.history


def test_batches_of_one_and_another_state(model: nn.Module) -> None:
    repair, single = _repair(model, form="published"), _repair(model, form="published", batch_size=1)
    again = _repair(model, form="published", random_state=torch.Generator().manual_seed(0))
    assert repair.history == again.history
    assert single.history[0]["bias"] == pytest.approx(repair.bias_before)
    assert not torch.equal(_repair(model, random_state=1).edit_rows, repair.edit_rows)


@pytest.mark.parametrize(("n_blocks", "skip"), [(1, False), (2, False), (2, True), (3, False)])
def test_late_blocks_are_fine_tuned_as_by_a_plain_loop(model: nn.Module, n_blocks: int, skip: bool) -> None:
    """One epoch of Adam on the last blocks, everything run from the beginning; all other weights as they were."""
    model.skip = skip  # type: ignore[assignment]
    model.blocks[-1].up.bias.requires_grad_(False)  # type: ignore[union-attr,index]
    before, pairs, rate = Snapshot(model), _pairs(9), 1e-3
    options: dict[str, Any] = {"layers": "all", "epochs": 1, "learning_rate": rate, "strengths": (0.7,)}
    options |= {"training_batch_size": 3, "n_blocks": n_blocks, "max_perplexity_rise": 9.0}
    method = CounterfactualUnlearning(random_state=2, **options)
    repair = method.repair(model, pairs, texts=_texts(), selection_loader=pairs, progress=False)
    before.assert_unchanged()
    assert repair.candidate == 1 and repair.edited_layers == tuple(f"blocks.{k}" for k in range(3 - n_blocks, 3))
    assert [p.requires_grad for p in repair.model.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in repair.model.parameters())

    generator = torch.Generator().manual_seed(2)
    edited = torch.randperm(9, generator=generator)
    sentences = [ids[m.bool()] for b in _texts() for ids, m in zip(b["input_ids"], b["attention_mask"], strict=True)]
    texts = sorted([sentences[int(row)] for row in torch.randperm(12, generator=generator)[:6]], key=len)
    parts = torch.split(edited[pairs.attention_mask[edited].sum((1, 2)).argsort(stable=True)], 3)

    def penalty(rows: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for row in rows:
            sides = []
            for ids, kept, own in zip(pairs.input_ids[row], pairs.shared[row], pairs.attention_mask[row], strict=True):
                scores = copied(ids[own.bool()][None], None)[0].log_softmax(1)
                places = [t for t in range(1, int(own.sum())) if kept[t]]
                sides.append(torch.stack([scores[t - 1, ids[t]] for t in places]))
            total = total + (sides[0] - sides[1]).square().sum()
        return total / len(rows)

    copied = copy.deepcopy(model)
    wanted = {
        name: p
        for name, p in copied.named_parameters()
        if any(name.startswith(block + ".") for block in repair.edited_layers) and p.requires_grad
    }
    optimizer, scale = torch.optim.Adam(wanted.values(), lr=rate), float(penalty(edited).detach())
    torch.randperm(1, generator=generator)  # six texts make one part
    for part in torch.randperm(3, generator=generator).tolist():
        divergences = []
        for ids in texts:
            now, own = (network(ids[None], None)[0, :-1].log_softmax(1) for network in (copied, model))
            divergences.append((own.detach().exp() * (own.detach() - now)).sum(1))
        optimizer.zero_grad()
        (torch.cat(divergences).mean() + 0.7 * penalty(parts[part]) / scale).backward()
        optimizer.step()
    for name, value in repair.model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(value, wanted[name], rtol=1e-6, atol=1e-9)
            assert not torch.equal(value, before.tensors[name])
        else:
            assert torch.equal(value, before.tensors[name])


def test_defaults_of_late_blocks(model: nn.Module) -> None:
    repair = _repair(model, layers="all", n_blocks=1)
    assert [(entry["strength"], entry["epoch"]) for entry in repair.history[1:]] == [(1.0, 0), (1.0, 1), (1.0, 2)]


def test_pairs_of_their_own_select_and_the_model_is_written_in_place(model: nn.Module) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pairs = _pairs(20)
    method = CounterfactualUnlearning(n_blocks=1, max_perplexity_rise=0.3)
    options = {"texts": _texts(), "selection_loader": pairs.take(range(9, 20)), "progress": False}
    repair = method.repair(model, pairs.take(range(9)), inplace=True, **options)
    assert repair.model is model and len(repair.after.differences) == 11 and repair.selection_rows.tolist() == []
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["blocks.2.down.weight"] and repair.edited_layers == ("blocks.2.down",)


def test_what_is_no_better_comes_back_as_it_was_given(model: nn.Module) -> None:
    repair = _repair(model, strengths=[0.0])
    assert repair.candidate == 0 and repair.bias == repair.bias_before
    assert repair.flags[0].startswith("the network is returned as it was given: the others had a mean |ΔLL| of no less")
    torch.testing.assert_close(repair.model.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert not was_unlearned(repair.model)
    far = _repair(model, strengths=[1e30], form="published")  # a norm bounds whatever comes
    assert far.candidate == 0 and far.flags
    strict = _repair(model, max_perplexity_rise=0.0)
    assert strict.perplexity <= strict.perplexity_before


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = {
    "measure": ({"measure": "counterfactual_bias"}, {}, InputError, "measure='counterfactual_bias' would have no eff"),
    "epsilon": ({"epsilon": 0.1}, {}, InputError, "epsilon=0.1 would have no effect"),
    "flip": ({"counterfactual": torch.neg}, {}, InputError, "counterfactual=.* would have no effect"),
    "limits": ({"max_cross_entropy_rise": 0.1}, {}, InputError, "max_cross_entropy_rise=0.1 would have no effect"),
    "performance": ({"performance": "accuracy"}, {}, InputError, "performance='accuracy' would have no effect"),
    "forward": ({}, {"forward_fn": print}, InputError, r"\['forward_fn'\] with SentencePairs"),
    "no texts": ({}, {"texts": None}, InputError, "texts is None; expected texts=, a loader"),
    "strange texts": ({}, {"texts": [torch.ones(2)]}, InputError, "batch 0 of texts is a Tensor; expected"),
    "short": (
        {},
        {"texts": [{"input_ids": torch.ones(3, 1), "attention_mask": torch.ones(3, 1)}]},
        InputError,
        "0 sen",
    ),
    "one pair": ({}, {"loader": _pairs(1)}, InputError, "there is one pair; expected at least two"),
    "who selects": (
        {},
        {"selection_loader": _texts()},
        InputError,
        "selection_loader is a list; expected SentencePairs",
    ),
    "twice": (
        {"selection_share": 0.4},
        {"selection_loader": _pairs(3)},
        InputError,
        "selection_share=0.4 would have no",
    ),
    "tied": ({"edited_layers": ["head"]}, {}, InputError, "the weight of 'head' is used elsewhere as well"),
    "unknown": (
        {"edited_layers": ["blocks.9"]},
        {},
        InputError,
        "edited_layers has 'blocks.9'; expected linear layers",
    ),
    "bound": ({"max_perplexity_rise": -0.1}, {}, InputError, r"max_perplexity_rise=-0\.1; expected at least 0"),
    "blocks": ({"n_blocks": 0}, {}, InputError, "n_blocks=0; expected at least 1"),
    "more": (
        {"layers": "all", "n_blocks": 4},
        {},
        InputError,
        "n_blocks=4, of a network of 3 blocks; expected at most",
    ),
    "more written": ({"n_blocks": 4}, {}, InputError, "n_blocks=4, of a network of 3 blocks; expected at most as many"),
    "idle": ({"layers": "all", "damping": 0.3}, {}, InputError, r"damping=0\.3 would have no effect"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, model: nn.Module) -> None:
    settings, options, error, message = REFUSED[case]
    before = Snapshot(model)
    options = {"loader": _pairs(4), "texts": _texts(), **options}
    with pytest.raises(error, match=message):
        CounterfactualUnlearning(**settings).repair(model, options.pop("loader"), progress=False, **options)
    before.assert_unchanged()


def test_refused_of_people_and_of_networks(model: nn.Module) -> None:
    people = [(torch.randn(9, 2), torch.arange(9) % 2)]
    with pytest.raises(InputError, match="texts= with a list; expected it with SentencePairs only"):
        CounterfactualUnlearning(counterfactual=torch.neg).repair(nn.Linear(2, 2), people, texts=_texts())
    with pytest.raises(InputError, match=r"max_perplexity_rise=0\.1 would have no effect: expected SentencePairs"):
        CounterfactualUnlearning(counterfactual=torch.neg, max_perplexity_rise=0.1).repair(nn.Linear(2, 2), people)
    with pytest.raises(UnsupportedModelError, match="every parameter is frozen"):
        _repair(copy.deepcopy(model).requires_grad_(False), layers="all")
    bare = nn.Sequential(nn.Embedding(VOCABULARY, 3), nn.Linear(3, VOCABULARY))
    bare.forward = lambda input_ids, attention_mask: bare[1](bare[0](input_ids))  # type: ignore[method-assign]
    for settings in ({}, {"layers": "all", "n_blocks": 1}):
        with pytest.raises(UnsupportedModelError, match="the network holds no list of blocks"):
            _repair(bare, **settings)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.norm.weight[0] = math.nan  # type: ignore[union-attr,operator,index]
    with pytest.raises(InputError, match="log-likelihoods of the pairs or the texts are not finite"):
        _repair(broken)
    nothing = SentencePairs.of_tokens([[4, 5, 1], [6, 7, 1]], [[4, 5, 2], [6, 7, 2]])
    with pytest.raises(InputError, match="same log-likelihood on both sides"):
        _repair(model, nothing)


class _RowsBlock(_Block):
    """The same, with all tokens as rows, (N · T, D)."""

    def forward(self, x: Tensor) -> Tensor:
        past = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        x = x + self.mix(past).tanh()
        return x + self.down(self.up(x).tanh().flatten(0, 1)).view_as(x)  # type: ignore[no-any-return]


def test_influence_through_layers_that_see_all_tokens_as_rows(model: _Tokens) -> None:
    rows = copy.deepcopy(model)
    for block in rows.blocks:
        block.__class__ = _RowsBlock
    given, other = (influence_of_sentences(m, _texts(), _pairs(7), progress=False).scores for m in (model, rows))
    torch.testing.assert_close(other, given)


def test_influence_is_that_of_a_small_step_on_each_sentence(model: nn.Module) -> None:
    """Against the dense matrix, and against B after a step that gives a sentence a little more weight."""
    text, pairs = _texts()[0], _pairs(6)
    inputs = next(iter(pairs.loader()))[0]
    before = Snapshot(model)
    order = torch.tensor([1, 4, 0, 2, 3, 5])  # from short to long, as texts are drawn for H
    shuffled = {name: value[order] for name, value in text.items()}
    influence = influence_of_sentences(
        model, [shuffled], pairs, n_blocks=2, damping=0.2, random_state=6, progress=False
    )
    before.assert_unchanged()
    hessian = _hessian(model, 0.2, shuffled)

    def losses() -> Tensor:
        found = []
        for ids, mask in zip(shuffled["input_ids"], shuffled["attention_mask"], strict=True):
            own = ids[mask.bool()][None]
            scores = model(own, None)[0, :-1]
            found.append(nn.functional.cross_entropy(scores, own[0, 1:]))
        return torch.stack(found)

    def bias() -> float:
        with torch.no_grad():
            return float(pair_differences(model, inputs).abs().mean())

    model.requires_grad_(False)
    gradients = _slopes(model, losses)
    slope = _slopes(model, lambda: pair_differences(model, inputs).abs().mean().view(1))[0]
    torch.testing.assert_close(influence.scores, -gradients @ torch.linalg.solve(hessian, slope), rtol=1e-5, atol=1e-7)
    assert influence.bias == pytest.approx(bias())
    for sentence in range(6):
        step = -1e-5 * torch.linalg.solve(hessian, gradients[sentence])
        moved = copy.deepcopy(model)
        for name, part in zip(NAMES, step.split(15), strict=True):
            moved.get_submodule(name).weight.data += part.view(3, 5)  # type: ignore[operator]
        with torch.no_grad():
            change = float(pair_differences(moved, inputs).abs().mean()) - bias()
        assert change / 1e-5 == pytest.approx(float(influence.scores[sentence]), rel=1e-2, abs=1e-3)


def test_influence_refuses_sentences_without_a_loss(model: nn.Module) -> None:
    text = {"input_ids": torch.ones(3, 4).long(), "attention_mask": torch.ones(3, 4).long()}
    text["attention_mask"][1, 1:] = 0
    with pytest.raises(InputError, match="sentence 1 of the texts has 1 tokens; expected at least two"):
        influence_of_sentences(model, [text], _pairs(3))
    with pytest.raises(InputError, match="pairs is a list; expected SentencePairs"):
        influence_of_sentences(model, [text], [])  # type: ignore[arg-type]
