"""Dicts, labels at many positions, and losses of several labels, against loops over samples, positions and labels."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim import (
    ChannelGroup,
    ChannelPlace,
    DamageTable,
    FairtrimError,
    InputError,
    ParameterPlace,
    ParityFineTuning,
    UnsupportedModelError,
    ValidationSet,
    collect_damage,
    fine_tune,
    predict,
)
from fairtrim.damage.loss_expansion import expand_outputs
from fairtrim.damage.weight_saliency import collect_weight_saliency, squared_gradients
from fairtrim.mining import LossMiner
from fairtrim.network.sample_loss import SampleLoss
from fairtrim.oracle import explicit_gates
from tests.snapshot import Snapshot

NONE = -100


class Tagger(nn.Module):
    """Masked attention over tokens; scores for each token, or for each sample from the mean of its real tokens."""

    def __init__(self, n_classes: int = 3, *, pooled: bool = False, as_dict: bool = False) -> None:
        super().__init__()
        self.embed, self.query, self.value = nn.Embedding(11, 6), nn.Linear(6, 4), nn.Linear(6, 5)
        self.norm, self.up, self.head = nn.LayerNorm(5), nn.Linear(5, 7), nn.Linear(7, n_classes)
        self.pooled, self.as_dict = pooled, as_dict

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.embed(input_ids)
        query = self.query(x)
        weights = (query @ query.transpose(1, 2)).masked_fill(mask[:, None, :] == 0, -torch.inf).softmax(-1)
        x = self.up(self.norm(weights @ self.value(x))).tanh()
        if self.pooled:
            kept = mask.to(x.dtype).unsqueeze(2)
            x = (x * kept).sum(1) / kept.sum(1)
        logits = self.head(x)
        return {"logits": logits} if self.as_dict else logits


VALUES = range(5)
HIDDEN = range(7)
GROUPS = [
    ChannelGroup(
        "up",
        7,
        (ChannelPlace("head", "input", HIDDEN, HIDDEN, -1),),
        (
            ParameterPlace("up.weight", 0, HIDDEN, HIDDEN),
            ParameterPlace("up.bias", 0, HIDDEN, HIDDEN),
            ParameterPlace("head.weight", 1, HIDDEN, HIDDEN),
        ),
    ),
    ChannelGroup(
        "value",
        5,
        (ChannelPlace("norm", "input", VALUES, VALUES, -1),),
        (ParameterPlace("value.weight", 0, VALUES, VALUES), ParameterPlace("norm.weight", 0, VALUES, VALUES)),
    ),
]


def _tagger(n_classes: int = 3, **options: bool) -> Tagger:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Tagger(n_classes, **options).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
    return model


LENGTHS = (4, 2, 6, 1, 5)
"""Real tokens of each sample; its labels are at every other one, none in the fourth sample."""


def _sentences(n_positions: int = 6) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(1, 11, (len(LENGTHS), n_positions), generator=generator)
    mask = (torch.arange(n_positions) < torch.tensor(LENGTHS)[:, None]).long()
    labels = torch.randint(0, 3, ids.shape, generator=generator)
    labels[(mask == 0) | (torch.arange(n_positions) % 2 == 1)] = NONE
    labels[3] = NONE
    labels[2, 1] = 2
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels, "sensitive_features": list("abaab")}


def _part(batch: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    return {key: value[start:stop] for key, value in batch.items()}


Draws = Callable[[Tensor, Tensor], list[tuple[float, Tensor]]]
"""Scores and target of one sample -> [(weight, a function of the scores whose squared gate gradient is to count)]."""


def _oracle(
    model: nn.Module,
    samples: Sequence[tuple[dict[str, Tensor], Tensor, str]],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    draws: Draws,
) -> dict[str, dict[str, Tensor]]:
    """Loss, slope and interactions of each sensitive group by a loop with explicit gates."""
    sums: dict[str, dict[str, Tensor]] = {}
    for inputs, target, name in samples:
        gates = {group.name: torch.ones(group.size, dtype=torch.float64, requires_grad=True) for group in GROUPS}
        with explicit_gates(model, GROUPS, gates):
            scores = model(**inputs)[0]

        def slope_of(value: Tensor, gates: dict[str, Tensor] = gates) -> Tensor:
            return torch.cat(torch.autograd.grad(value, list(gates.values()), retain_graph=True))

        loss = loss_of(scores, target)
        outer = torch.zeros(12, 12, dtype=torch.float64)
        for weight, value in draws(scores, target):
            drawn = slope_of(value)
            outer += weight * torch.outer(drawn, drawn)
        entry = sums.setdefault(name, {})
        for key, value in {
            "loss": loss.detach(),
            "slope": slope_of(loss),
            "interactions": outer,
            "counts": 1.0,
        }.items():
            entry[key] = entry.get(key, torch.zeros((), dtype=torch.float64)) + value
    return {
        name: {key: value / entry["counts"] if key != "counts" else value for key, value in entry.items()}
        for name, entry in sums.items()
    }


def _assert_equals(table: DamageTable, oracle: Mapping[str, Mapping[str, Tensor]]) -> None:
    assert table.sensitive_groups == tuple(sorted(oracle))
    for g, name in enumerate(table.sensitive_groups):
        for key, value in oracle[name].items():
            torch.testing.assert_close(getattr(table, key)[g], value, rtol=1e-9, atol=1e-14, msg=f"{name} {key}")
        curvature = oracle[name]["interactions"].diagonal()
        torch.testing.assert_close(table.curvature[g], curvature, rtol=1e-9, atol=1e-14)


def _labelled(target: Tensor) -> list[int]:
    return [t for t in range(len(target)) if int(target[t]) != NONE]


def _mean_over_labelled(scores: Tensor, target: Tensor) -> Tensor:
    terms = [-torch.log_softmax(scores[t], 0)[target[t]] for t in _labelled(target)]
    return torch.stack(terms).mean() if terms else 0 * scores.sum()


def _exact_draws(scores: Tensor, target: Tensor) -> list[tuple[float, Tensor]]:
    """Each labelled position's label drawn from p; the mean over T positions has 1/T of their mean curvature."""
    places = _labelled(target)
    return [
        (float(torch.softmax(scores[t].detach(), 0)[y]) / len(places), -torch.log_softmax(scores[t], 0)[y])
        for t in places
        for y in range(scores.shape[1])
    ]


def _empirical_draws(scores: Tensor, target: Tensor) -> list[tuple[float, Tensor]]:
    return [(float(max(1, len(_labelled(target)))), _mean_over_labelled(scores, target))]


def _samples(batch: Mapping[str, Any]) -> list[tuple[dict[str, Tensor], Tensor, str]]:
    return [
        (
            {key: batch[key][n : n + 1] for key in ("input_ids", "attention_mask")},
            batch["labels"][n],
            batch["sensitive_features"][n],
        )
        for n in range(len(batch["labels"]))
    ]


@pytest.mark.parametrize("split", [(0, 5), (0, 1, 5), (0, 3, 4, 5), (0, 1, 2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("curvature", ["exact", "empirical"])
def test_labels_at_positions_equal_a_loop(curvature: Any, split: tuple[int, ...]) -> None:
    """Uneven numbers of labels, none in one sample, which counts as a person all the same; batches of one."""
    model, batch = _tagger(as_dict=True), _sentences()
    batches = [_part(batch, a, b) for a, b in pairwise(split)]
    table = collect_damage(model, batches, GROUPS, curvature=curvature, interactions=True, progress=False)
    plain = _tagger()
    draws = _exact_draws if curvature == "exact" else _empirical_draws
    _assert_equals(table, _oracle(plain, _samples(batch), _mean_over_labelled, draws))
    assert table.counts.tolist() == [3, 2] and table.features == ("sensitive",)


def test_every_position_labelled_and_one_position_is_a_plain_classifier() -> None:
    model, batch = _tagger(), _sentences()
    one = {"input_ids": batch["input_ids"][:, :1], "labels": torch.tensor([[0], [2], [1], [1], [0]])}
    for curvature in ("exact", "empirical"):
        options: dict[str, Any] = {"curvature": curvature, "interactions": True, "progress": False}
        tokens = collect_damage(model, [one], GROUPS, **options)
        plain = collect_damage(
            model,
            [{**one, "labels": one["labels"][:, 0]}],
            GROUPS,
            output_transform=lambda scores: scores[:, 0],
            **options,
        )
        for name in ("loss", "slope", "curvature", "interactions"):
            torch.testing.assert_close(getattr(tokens, name), getattr(plain, name), rtol=1e-10, atol=1e-15)


def test_automatic_curvature_counts_the_scores_of_all_positions() -> None:
    model, batch = _tagger(), _sentences()
    tables = {
        kind: collect_damage(model, [batch], GROUPS, curvature=kind, progress=False).curvature
        for kind in ("auto", "exact", "empirical")
    }
    assert torch.equal(tables["auto"], tables["exact"])  # 6 · 3 scores
    assert not torch.allclose(tables["exact"], tables["empirical"], rtol=0.1)
    longer = {**batch, "labels": F.pad(batch["labels"], (0, 1), value=NONE)}
    longer |= {key: F.pad(batch[key], (0, 1)) for key in ("input_ids", "attention_mask")}
    table = collect_damage(model, [longer], GROUPS, progress=False)  # 21 scores
    torch.testing.assert_close(table.curvature, tables["empirical"])


@pytest.mark.parametrize("pooled", [False, True], ids=["tokens", "sentences"])
@pytest.mark.parametrize("level", ["channel", "weight"])
@pytest.mark.parametrize("curvature", ["exact", "empirical"])
def test_padding_changes_nothing(level: str, curvature: str, pooled: bool) -> None:
    """Tokens that attention masks and that have no label, whatever their ids are."""
    model, batch = _tagger(pooled=pooled), _sentences()
    if pooled:
        batch["labels"] = torch.tensor([0, 2, 1, 1, 0])
    padded = {**batch, "attention_mask": F.pad(batch["attention_mask"], (0, 3))}
    padded["input_ids"] = F.pad(batch["input_ids"], (0, 3), value=7)
    if not pooled:
        padded["labels"] = F.pad(batch["labels"], (0, 3), value=NONE)
    collect: Any = collect_weight_saliency if level == "weight" else collect_damage
    options: dict[str, Any] = {"curvature": curvature, "progress": False}
    if level == "channel":
        options["interactions"] = True
    tables = [collect(model, [entry], GROUPS, **options) for entry in (batch, padded)]
    assert float(tables[0].curvature.min(1).values.max()) > 0
    for name in ("counts", "loss", "slope", "curvature", *(["interactions"] if level == "channel" else [])):
        torch.testing.assert_close(getattr(tables[1], name), getattr(tables[0], name), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("curvature", ["exact", "empirical"])
def test_squared_gradients_of_tokens_equal_a_loop(curvature: Any) -> None:
    """Every parameter, closed forms and vmap; the batch holds a sample without a label and groups of one."""
    model, batch = _tagger(), _sentences()
    batch["sensitive_features"] = ["x", "y", "y", "z", "x"]
    batches = [_part(batch, 0, 2), _part(batch, 2, 3), _part(batch, 3, 5)]
    table, squares = squared_gradients(model, batches, curvature=curvature, progress=False)
    draws = _exact_draws if curvature == "exact" else _empirical_draws
    parameters = dict(model.named_parameters())
    expected = {name: torch.zeros(3, *p.shape, dtype=torch.float64) for name, p in parameters.items()}
    for inputs, target, name in _samples(batch):
        g = "xyz".index(name)
        scores = model(**inputs)[0]
        for weight, value in draws(scores, target):
            gradients = torch.autograd.grad(value, list(parameters.values()), retain_graph=True)
            for key, gradient in zip(parameters, gradients, strict=True):
                expected[key][g] += weight * gradient**2 / [2, 2, 1][g]
    assert table.sensitive_groups == ("x", "y", "z")
    assert squares.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(squares[key], value, rtol=1e-9, atol=1e-14, msg=key)


LOSSES: dict[str, Any] = {
    "module": nn.CrossEntropyLoss(),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "no reduction argument": lambda scores, target: F.cross_entropy(scores, target),
    "another value for none": nn.CrossEntropyLoss(ignore_index=-1),
    # refuses a label that is none, where cross-entropy leaves it out
    "strict": nn.MultiMarginLoss(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_any_loss_leaves_out_what_has_no_label(name: str) -> None:
    model, batch = _tagger(), _sentences()
    options: dict[str, Any] = {"curvature": "empirical" if name == "strict" else "exact", "interactions": True}
    expected = collect_damage(model, [batch], GROUPS, progress=False, **options)
    if name == "another value for none":
        batch["labels"] = batch["labels"].clamp_min(-1)
    table = collect_damage(model, [batch], GROUPS, loss_fn=LOSSES[name], progress=False, **options)
    if name == "strict":
        losses = [_mean_margin(model(**inputs)[0], target) for inputs, target, _ in _samples(batch)]
        by_name = {g: [loss for loss, s in zip(losses, "abaab", strict=True) if s == g] for g in "ab"}
        means = torch.stack([torch.stack(by_name[g]).mean() for g in "ab"])
        torch.testing.assert_close(table.loss, means.detach())
        return
    for field in ("loss", "slope", "curvature", "interactions"):
        torch.testing.assert_close(getattr(table, field), getattr(expected, field), rtol=1e-9, atol=1e-14)


def _mean_margin(scores: Tensor, target: Tensor) -> Tensor:
    terms = [F.multi_margin_loss(scores[t : t + 1], target[t : t + 1]) for t in _labelled(target)]
    return torch.stack(terms).mean() if terms else torch.zeros((), dtype=torch.float64)


# Several labels a sample ----------------------------------------------------------------------------------


def _binary_draws(scores: Tensor, target: Tensor) -> list[tuple[float, Tensor]]:
    """Labels are independent: the mean of K of them has 1/K of their mean curvature."""
    p = torch.sigmoid(scores.detach())
    return [
        (
            float(p[k] if y else 1 - p[k]) / len(scores),
            F.binary_cross_entropy_with_logits(scores[k], torch.tensor(y).double()),
        )
        for k in range(len(scores))
        for y in (0, 1)
    ]


def _number_draws(scores: Tensor, target: Tensor) -> list[tuple[float, Tensor]]:
    """(f − t)² has curvature 2 in each score: of a mean over K scores, 2/K."""
    return [(2 / len(scores), score) for score in scores]


def _binary(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randint(0, 2, shape, generator=generator)


SEVERAL: dict[str, tuple[int, Any, Any, Draws]] = {
    "single logit": (
        1,
        F.binary_cross_entropy_with_logits,
        lambda g: torch.randint(0, 2, (5,), generator=g),
        _binary_draws,
    ),
    "single logit, bool": (
        1,
        nn.BCEWithLogitsLoss(),
        lambda generator: _binary(5)(generator).bool(),
        _binary_draws,
    ),
    "multi-label": (4, nn.BCEWithLogitsLoss(), _binary(5, 4), _binary_draws),
    "regression": (1, F.mse_loss, lambda g: torch.randn(5, generator=g), _number_draws),
    "several numbers": (3, nn.MSELoss(), lambda g: torch.randn(5, 3, generator=g), _number_draws),
}


@pytest.mark.parametrize("curvature", ["exact", "empirical"])
@pytest.mark.parametrize("kind", SEVERAL)
def test_losses_of_one_or_several_targets_equal_a_loop(kind: str, curvature: Any) -> None:
    n_scores, loss_fn, make_target, draws = SEVERAL[kind]
    model, batch = _tagger(n_scores, pooled=True), _sentences()
    target = make_target(torch.Generator().manual_seed(8))
    batch["labels"] = target
    table = collect_damage(
        model, [_part(batch, 0, 4), _part(batch, 4, 5)], GROUPS, loss_fn=loss_fn, curvature=curvature,
        interactions=True, progress=False,
    )  # fmt: skip

    def loss_of(scores: Tensor, target: Tensor) -> Tensor:
        wanted = target.to(scores.dtype).reshape(scores.shape)
        return loss_fn(scores, wanted)

    def empirical(scores: Tensor, target: Tensor) -> list[tuple[float, Tensor]]:
        return [(float(n_scores), loss_of(scores, target))]

    chosen = draws if curvature == "exact" else empirical
    _assert_equals(table, _oracle(model, _samples(batch), loss_of, chosen))


def test_empirical_curvature_of_labels_drawn_from_the_network_is_the_exact_one() -> None:
    """Why the square of the slope is taken times the number of terms: on average it is the exact curvature then."""
    generator = torch.Generator().manual_seed(0)
    n_samples = 20_000
    scores = torch.tensor([[0.3, -0.7, 1.1]]).double().expand(n_samples, 3)
    bce = SampleLoss(F.binary_cross_entropy_with_logits)
    drawn = torch.bernoulli(torch.sigmoid(scores), generator=generator)
    positions = scores.view(n_samples // 2, 2, 3).contiguous()
    tokens = torch.multinomial(scores.softmax(1), 1, generator=generator).view(n_samples // 2, 2)
    grid = scores.view(n_samples // 2, 2, 3)
    cases = [
        (scores, drawn, bce),
        (positions, tokens, SampleLoss()),
        (grid, drawn.view(n_samples // 2, 2, 3), bce),  # a label for every score at every position
    ]
    for f, y, loss in cases:
        means = []
        for kind in ("exact", "empirical"):
            stacked = torch.stack(expand_outputs(f, y, loss, kind).factor_directions(), 1).flatten(2)  # (N, R, scores)
            means.append(stacked.square().sum(1).mean(0))
        exact, empirical = means
        if loss is not bce:  # softmax shifts are free: compare differences of two scores, those of the classes but one
            exact, empirical = (m.view(2, 3)[:, :2].flatten() for m in means)
            continue
        torch.testing.assert_close(empirical, exact, rtol=0.06, atol=0)


# Forms of a batch -----------------------------------------------------------------------------------------


def test_dicts_of_every_kind_give_the_same_table() -> None:
    """A dict, transformers' BatchEncoding (a UserDict), ``label``, ``sensitive``, and a pair of inputs and target."""
    model, batch = _tagger(pooled=True), _sentences()
    labels = torch.tensor([0, 2, 1, 1, 0])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    names = ["a", "b", "a", "a", "b"]
    forms: list[Any] = [
        {**inputs, "labels": labels, "sensitive_features": names},
        UserDict({**inputs, "labels": labels, "sensitive_features": {"group": names}}),
        UserDict({**inputs, "label": labels.tolist(), "sensitive": np.array(names)}),
        {**inputs, "label": labels, "sensitive": names},
        (inputs, labels, names),
        [UserDict(inputs), labels, names],
    ]
    tables = [collect_damage(model, [form], GROUPS, interactions=True, progress=False) for form in forms]
    for table in tables[1:]:
        assert table.sensitive_groups == ("a", "b")
        assert torch.equal(table.interactions, tables[0].interactions) and torch.equal(table.slope, tables[0].slope)
    assert tables[1].features == ("group",)
    without = collect_damage(model, [{**inputs, "labels": labels}], GROUPS, progress=False)
    assert without.sensitive_groups == ("everyone",)


class Seen(nn.Module):
    """Notes the names of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.names = nn.Linear(2, 4), nn.Linear(4, 2), set[str]()

    def forward(self, **inputs: Tensor) -> Tensor:
        self.names |= inputs.keys()
        return self.head(self.body(inputs["x"]).relu())


def test_neither_target_nor_sensitive_features_reach_the_network() -> None:
    model = Seen()
    groups = [ChannelGroup("body", 4, (ChannelPlace("head", "input", range(4), range(4), -1),))]
    entry = {"x": torch.randn(3, 2), "labels": torch.tensor([0, 1, 1]), "sensitive_features": [1, 0, 1], "extra": None}
    collect_damage(model, [entry], groups, progress=False)
    predict(model, [entry], progress=False)
    assert model.names == {"x", "extra"}


FORMS: dict[str, tuple[Any, type[Exception], str]] = {
    "no labels": ({"input_ids": torch.ones(2, 3).long()}, InputError, r"dict of \['input_ids'\].*under 'labels'"),
    "labels that are None": ({"x": torch.ones(2), "labels": None}, InputError, "expected the target under 'labels'"),
    "text": ("ab", InputError, "is a str of 2; expected"),
    "no axis": ({"x": torch.ones(2), "labels": torch.tensor(1)}, InputError, "no sample axis"),
    "words": ({"x": torch.ones(2), "labels": ["yes", "no"]}, InputError, "makes no tensor"),
}


@pytest.mark.parametrize("form", FORMS)
def test_malformed_dicts(form: str) -> None:
    entry, error, message = FORMS[form]
    model = _tagger()
    before = Snapshot(model)
    for collect in (collect_damage, collect_weight_saliency):
        with pytest.raises(error, match=message):
            collect(model, [entry], GROUPS, progress=False)
    with pytest.raises(error, match=message):
        predict(model, [entry], progress=False)
    before.assert_unchanged()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([[0, 1, 3]]), "labels reach from 0 to 3; expected 0 to 2"),
        (torch.tensor([[0, -1, 2]]), "labels reach from -1 to 2"),
        (torch.tensor([[0.5, 1.0, 2.0]]), "expects integer labels"),
        (torch.tensor([[0, 1]]), r"scores of shape \(1, 3, 3\) for a target of shape \(1, 2\)"),
        (torch.tensor([0]), r"expected \(N, K\), or \(N, T, K\) for labels \(N, T\)"),
    ],
)
def test_labels_that_do_not_fit_the_positions(labels: Tensor, message: str) -> None:
    model = _tagger()
    before = Snapshot(model)
    entry = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": labels}
    with pytest.raises((InputError, UnsupportedModelError), match=message):
        collect_damage(model, [entry], GROUPS, progress=False)
    before.assert_unchanged()


def test_methods_of_one_label_a_sample_say_so() -> None:
    model, batch = _tagger(), _sentences()
    entry = {"input_ids": batch["input_ids"], "labels": batch["labels"].clamp_min(0)}
    rows = [{key: value[n] for key, value in entry.items()} for n in range(5)]
    loader: Any = torch.utils.data.DataLoader(rows, batch_size=2)
    before = Snapshot(model)
    with pytest.raises(InputError, match="label"):
        ValidationSet.from_loader([{**entry, "sensitive_features": batch["sensitive_features"]}])
    people = ValidationSet(
        {"input_ids": entry["input_ids"]}, torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 1, 0, 0, 1]), ("a", "b")
    )
    with pytest.raises(FairtrimError, match=r"one label a sample|integer labels|scores of shape"):
        ParityFineTuning().repair(model, people, progress=False)
    with pytest.raises(InputError, match=r"expected integer labels \(N,\)"):
        LossMiner().mine(model, loader, progress=False)
    with pytest.raises(InputError, match=r"expected integer labels \(N,\)"):
        fine_tune(model, loader, progress=False)
    before.assert_unchanged()


# Predictions ----------------------------------------------------------------------------------------------


def test_predictions_of_tokens_are_rows_with_the_features_of_their_sample() -> None:
    model, batch = _tagger(as_dict=True), _sentences()
    batch["sensitive_features"] = {"g": list("abaab"), "h": torch.tensor([0, 1, 1, 0, 1])}
    parts = [
        {**_part({k: v for k, v in batch.items() if k != "sensitive_features"}, a, b)}
        | {"sensitive_features": {name: column[a:b] for name, column in batch["sensitive_features"].items()}}
        for a, b in ((0, 2), (2, 3), (3, 5))
    ]
    found = predict({"one": model, "two": _tagger()}, parts, progress=False)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    scores = model(**inputs)["logits"].detach()
    rows = [(n, t) for n in range(5) for t in _labelled(batch["labels"][n])]
    assert found.target.tolist() == [int(batch["labels"][n, t]) for n, t in rows]
    np.testing.assert_allclose(found.scores["one"], np.stack([scores[n, t].numpy() for n, t in rows]), rtol=1e-9)
    assert found.label["one"].tolist() == found.scores["one"].argmax(1).tolist()
    assert np.array_equal(found.scores["one"], found.scores["two"])
    assert found.sensitive["g"].tolist() == ["abaab"[n] for n, _ in rows]
    assert found.sensitive["h"].tolist() == [str(int(batch["sensitive_features"]["h"][n])) for n, _ in rows]


def test_predictions_without_any_label() -> None:
    batch = _sentences()
    batch["labels"] = torch.full_like(batch["labels"], NONE)
    with pytest.raises(InputError, match="label"):
        predict(_tagger(), [batch], progress=False)


# Precision and compilation --------------------------------------------------------------------------------


def _gates_only(model: nn.Module, **options: Any) -> DamageTable:
    return collect_damage(
        model, [_sentences()], GROUPS, interactions=True, curvature="exact", progress=False, **options
    )


@pytest.mark.parametrize("how", ["autocast by the caller", "autocast in forward_fn", "bfloat16"])
def test_low_precision_is_close(how: str) -> None:
    reference = _gates_only(_tagger())
    model = _tagger().float()
    if how == "bfloat16":
        table = _gates_only(model.bfloat16())
    elif how == "autocast in forward_fn":

        def forward(network: nn.Module, inputs: dict[str, Tensor]) -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return network(**inputs)

        table = _gates_only(model, forward_fn=forward)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            table = _gates_only(model)
            weights = collect_weight_saliency(model, [_sentences()], GROUPS, progress=False)
        exact = collect_weight_saliency(_tagger(), [_sentences()], GROUPS, progress=False)
        assert float((weights.curvature - exact.curvature).abs().max() / exact.curvature.max()) < 0.1
    assert table.interactions is not None and reference.interactions is not None
    for name in ("loss", "slope", "curvature", "interactions"):
        found, expected = getattr(table, name), getattr(reference, name)
        assert found.dtype == torch.float64
        error = float((found - expected).abs().max() / expected.abs().max())
        assert 1e-8 < error < 0.1, name  # it did run in low precision


class Compiled(nn.Module):
    """What ``torch.compile`` puts around a network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._orig_mod(*args, **kwargs)


def _renamed(prefix: str) -> list[ChannelGroup]:
    return [
        ChannelGroup(
            g.name,
            g.size,
            tuple(replace(place, module=prefix + place.module) for place in g.places),
            tuple(replace(place, parameter=prefix + place.parameter) for place in g.parameters),
        )
        for g in GROUPS
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler about torch's own code
@pytest.mark.parametrize("collect", [collect_damage, collect_weight_saliency])
@pytest.mark.parametrize("how", ["the network", "a layer", "the like"])
def test_compiled_networks_are_refused(how: str, collect: Any) -> None:
    model: Any = _tagger()
    groups = _renamed("_orig_mod.")
    if how == "the network":
        model = torch.compile(model)  # compiles nothing before the first call
    elif how == "a layer":
        model.query, groups = torch.compile(model.query), GROUPS
    else:
        model = Compiled(model)
    with pytest.raises(UnsupportedModelError, match=r"compiled by torch\.compile; expected the network itself"):
        collect(model, [_sentences()], groups, progress=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("collect", [collect_damage, collect_weight_saliency])
@pytest.mark.parametrize("part", [False, True])
def test_networks_compiled_in_place_are_refused(collect: Any, part: bool) -> None:
    """Once it has been called, hooks that come later are passed over: weights would look worthless."""
    model, batch = _tagger(), _sentences()
    (model.query if part else model).compile(backend="eager")
    before = Snapshot(model)
    with pytest.raises(UnsupportedModelError, match=r"compiled in place.*copy\.deepcopy"):
        collect(model, [batch], GROUPS, progress=False)
    before.assert_unchanged()
    again = collect(copy.deepcopy(model), [batch], GROUPS, progress=False)
    assert torch.equal(again.curvature, collect(_tagger(), [batch], GROUPS, progress=False).curvature)
