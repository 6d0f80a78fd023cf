"""Unlearning on a device: equal to the CPU, wherever inputs lie, and waiting for it no more often than counted here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import ColumnErasure, ColumnFlip, CounterfactualUnlearning, SentencePairs, ValidationSet
from fairtrim.unlearning import biased_attributes, influence_of_sentences, influence_on_bias, unlearn_samples
from tests.pretend_accelerator import Accelerator, PretendAccelerator

CPU = torch.device("cpu")
FLIP = ColumnFlip(one_hot=[3, 4], interactions={5: [0, 4]})
N = 37


def _table() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs with an attribute in columns 3 and 4, labels that lean on it, and groups."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 6, generator=generator)
    x[:, 4] = (x[:, 3] > 0).float()
    x[:, 3] = 1 - x[:, 4]
    x[:, 5] = x[:, 0] * x[:, 4]
    target = (x[:, 0] + x[:, 1] + 0.7 * x[:, 4] > 0.3).long()
    return x, target, (x[:, 2] > 0).long()


TABLE = _table()


def _network(n_outputs: int = 2) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, n_outputs))


def _loader(device: torch.device, where: str = "on the CPU") -> DataLoader[Any]:
    columns = [column.to(device) if where == "there" else column for column in TABLE]
    pin = where == "pinned" and device.type != "cpu"
    return DataLoader(TensorDataset(*columns), batch_size=16, pin_memory=pin)


def _people(device: torch.device, *, there: bool = False) -> ValidationSet:
    x, target, group = (column.to(device) if there else column for column in TABLE)
    return ValidationSet(x, target, group, ("a", "b"), counterfactual=FLIP(x))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}


def _repaired(method: Any, device: torch.device, people: Any, n_outputs: int = 2) -> Any:
    repair = method.repair(_network(n_outputs).to(device), people, progress=False)
    history = [{key: value for key, value in entry.items() if key != "seconds"} for entry in repair.history]
    return _weights(repair.model), history, repair.flags, repair.bias, repair.bias_before


def _pairs() -> SentencePairs:
    generator = torch.Generator().manual_seed(3)
    first, second, shared = [], [], []
    for row in range(10):
        words = torch.randint(4, 11, (3 + row % 4,), generator=generator).tolist()
        name = [2, 3] if row % 3 == 0 else [2]
        first.append([0, 1, *words])
        second.append([0, *name, *words])
        shared.append(([1, 0] + [1] * len(words), [1] + [0] * len(name) + [1] * len(words)))
    return SentencePairs.of_tokens(first, second, shared=shared)


def _texts(device: torch.device = CPU) -> list[dict[str, Tensor]]:
    ids = torch.randint(0, 11, (12, 6), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[1, 3:], mask[4, 4:] = 0, 0
    parts = zip(ids.split(7), mask.split(7), strict=True)
    return [{"input_ids": i.to(device), "attention_mask": m.to(device)} for i, m in parts]


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        past = torch.ones(len(lengths), len(lengths), dtype=x.dtype, device=x.device).tril() @ x / lengths
        rows = self.up((x + past).flatten(0, 1)).tanh()  # of two axes, of which the device has the CPU's kernels
        return x + self.down(rows).view_as(x)


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(11, 3), nn.ModuleList(_Block() for _ in range(2))
        self.head = nn.Linear(3, 11)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x.flatten(0, 1)).view(*x.shape[:2], -1)  # type: ignore[no-any-return]


def _language_model() -> _Tokens:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = _Tokens()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model.eval()


def _of_sentences(device: torch.device, **settings: Any) -> Any:
    pairs, texts = _pairs(), _texts(device if settings.pop("there", False) else CPU)
    method = CounterfactualUnlearning(max_perplexity_rise=0.5, **settings)
    repair = method.repair(_language_model().to(device), pairs, texts=texts, progress=False)
    told = [repair.before.told(), repair.after.told(), repair.after.differences]
    return _weights(repair.model), list(repair.history), told, list(repair.flags)


def _unlearned(**settings: Any) -> Callable[[torch.device], Any]:
    return lambda device: _repaired(CounterfactualUnlearning(counterfactual=FLIP, **settings), device, _loader(device))


EVERYTHING: dict[str, Callable[[torch.device], Any]] = {
    "consistency": _unlearned(strengths=[1.0, 30.0]),
    "published": _unlearned(strengths=[1.0, 0.1], form="published", measure="counterfactual_bias"),
    "all layers": _unlearned(strengths=[1.0], layers="all", epochs=2, training_batch_size=7),
    "of groups": lambda device: _repaired(
        CounterfactualUnlearning(
            counterfactual=FLIP, measure="equalized_odds_difference", strengths=[1.0], min_people=1
        ),
        device,
        _loader(device, "there"),
    ),
    "column erasure": lambda device: _repaired(ColumnErasure(columns=[3, 4, 5]), device, _loader(device)),
    "biased attributes": lambda device: biased_attributes(
        _network().to(device), _people(device), {"sex": FLIP.every(), "first": lambda x: -x}, batch_size=16
    ),
    "influence": lambda device: vars(
        influence_on_bias(_network().to(device), _loader(device), _people(device), newton_steps=1, progress=False)
    ),
    "influence of groups": lambda device: vars(
        influence_on_bias(
            _network(1).to(device),
            _loader(device, "there"),
            _people(device, there=True),
            measure="equalized_odds_difference",
            newton_steps=1,
            progress=False,
        )
    ),
    "influence of all layers": lambda device: vars(
        influence_on_bias(
            _network().to(device), _loader(device), _people(device), layers="all", damping=1.0, progress=False
        )
    ),
    "samples": lambda device: _weights(
        unlearn_samples(
            _network(3).to(device),
            _loader(device),
            torch.arange(5),
            counterfactual=FLIP,
            class_weights=torch.tensor([1.0, 2.0, 3.0]).to(device),
            ridge=0.1,
            progress=False,
        )
    ),
    "samples left out": lambda device: _weights(
        unlearn_samples(
            _network().to(device), _loader(device), torch.arange(5).to(device), exact=False, ridge=0.1, progress=False
        )
    ),
    "sentences": lambda device: _of_sentences(device, n_blocks=2, strengths=[0.3]),
    "sentences published": lambda device: _of_sentences(device, form="published", there=True, strengths=[0.1]),
    "sentences all layers": lambda device: _of_sentences(
        device, layers="all", strengths=[1.0], epochs=1, training_batch_size=3
    ),
    "sentences late blocks": lambda device: _of_sentences(device, layers="all", epochs=1, n_blocks=1),
    "influence of sentences": lambda device: vars(
        influence_of_sentences(_language_model().to(device), _texts(), _pairs(), batch_size=4, progress=False)
    ),
}


@pytest.mark.parametrize("what", EVERYTHING)
def test_equal_to_the_cpu(accelerator: Accelerator, what: str) -> None:
    if isinstance(accelerator, PretendAccelerator):
        accelerator.refuses_float64 = True
    accelerator.check_same(EVERYTHING[what](accelerator.device), EVERYTHING[what](CPU))


@pytest.mark.parametrize("where", ["there", "pinned"])
def test_data_lie_anywhere(accelerator: Accelerator, where: str) -> None:
    def everything(device: torch.device) -> Any:
        people = ValidationSet.from_loader(_loader(device, where), counterfactual=FLIP, progress=False)
        network, loader = _network().to(device), _loader(device, where)
        return (
            _repaired(ColumnErasure(columns=[3, 4, 5]), device, _loader(device, where)),
            vars(influence_on_bias(network, loader, people, newton_steps=0, progress=False)),
            biased_attributes(network, people, {"sex": FLIP}),
        )

    accelerator.check_same(everything(accelerator.device), everything(CPU))


def test_generators_of_the_device_draw(accelerator: Accelerator) -> None:
    def drawn() -> Any:
        generator = torch.Generator(accelerator.device).manual_seed(6)
        method = CounterfactualUnlearning(counterfactual=FLIP, random_state=generator, strengths=[1.0])
        model = _language_model().to(accelerator.device)
        influence = influence_of_sentences(model, _texts(), _pairs(), random_state=generator, progress=False)
        return influence.scores, _repaired(method, accelerator.device, _loader(accelerator.device))

    accelerator.check_same(drawn(), drawn())


def test_next_tokens_are_drawn_under_deterministic_algorithms(accelerator: Accelerator) -> None:
    """CUDA has no cumsum that is deterministic."""
    torch.use_deterministic_algorithms(True)
    try:
        run = EVERYTHING["influence of sentences"]
        accelerator.check_same(run(accelerator.device), run(CPU))
    finally:
        torch.use_deterministic_algorithms(False)


def _of_lines(counted: Mapping[tuple[str, str], int], *files: str) -> dict[str, int]:
    """How often something was counted, by file."""
    return {file: sum(n for (_, line), n in counted.items() if f"/{file}.py" in line) for file in files}


def test_waits_of_sentences(pretend: PretendAccelerator) -> None:
    """A layer costs one wait for an edit, and a batch one wait each time that it runs."""
    _of_sentences(pretend.device, n_blocks=2, strengths=[0.1, 1.0])
    n_layers, n_pair_batches, n_text_batches, n_strengths = 2, 1, 1, 2
    counted = _of_lines(pretend.waits, "linearised_pairs", "sentence_unlearning", "sentence_batches")
    assert counted == {
        # of A, G and the Gram matrix, and of each edit; tokens of a batch, rows of a batch, and y of all
        "linearised_pairs": n_layers * (3 + n_strengths) + n_text_batches + n_pair_batches + 1,
        "sentence_unlearning": 2 * (1 + n_strengths),  # the held-out pairs and texts
        "sentence_batches": 0,
    }
    uploads = _of_lines(pretend.copies, "linearised_pairs")["linearised_pairs"]
    assert uploads == n_layers * (2 + n_strengths)  # what a batch draws goes there without a wait


def test_steps_of_fine_tuning_do_not_wait(pretend: PretendAccelerator) -> None:
    def waits(epochs: int) -> dict[str, int]:
        pretend.forget()
        _of_sentences(pretend.device, layers="all", epochs=epochs, training_batch_size=3, strengths=[1.0])
        return _of_lines(pretend.waits, "sentence_unlearning", "sentence_batches")

    one, two = waits(1), waits(2)
    assert one["sentence_batches"] == two["sentence_batches"] == 1 + 3 + 1  # all pairs, their parts, and texts
    assert two["sentence_unlearning"] == one["sentence_unlearning"] + 2  # judged after each epoch


def test_steps_of_a_table_cost_their_inputs_and_one_copy(pretend: PretendAccelerator) -> None:
    def counted(epochs: int) -> tuple[int, int]:
        pretend.forget()
        method = CounterfactualUnlearning(counterfactual=FLIP, layers="all", epochs=epochs, strengths=[1.0])
        _repaired(method, pretend.device, _loader(pretend.device))
        return sum(pretend.waits.values()), sum(pretend.copies.values())

    (waits, copies), (same, more) = counted(1), counted(3)
    assert (same, more) == (waits, copies + 2 * 3)  # one step an epoch: both sides, and what is known of the people


def test_a_batch_of_features_waits_once(pretend: PretendAccelerator) -> None:
    network, loader = _network().to(pretend.device), _loader(pretend.device)
    unlearn_samples(network, loader, torch.arange(3), exact=False, ridge=0.1, progress=False)
    assert _of_lines(pretend.waits, "influence", "output_layer_problem", "labels") == {
        "influence": len(_loader(CPU)),
        "output_layer_problem": 0,
        "labels": 0,
    }


@pytest.mark.parametrize(("kept_bytes", "uploads"), [(2**20, 1), (0, 1 + 2 * 3)])
def test_a_product_of_all_layers_waits_once(
    pretend: PretendAccelerator, monkeypatch: pytest.MonkeyPatch, kept_bytes: int, uploads: int
) -> None:
    """Samples stay there if there is room for all; else inputs and labels of three batches go there each time."""
    monkeypatch.setattr("fairtrim.unlearning.influence.KEPT_BYTES", kept_bytes)

    def counted(iterations: int) -> tuple[int, int]:
        pretend.forget()
        with pytest.warns(RuntimeWarning, match="relative residual"):
            influence_on_bias(
                _network().to(pretend.device),
                _loader(pretend.device),
                _people(pretend.device),
                layers="all",
                max_iterations=iterations,
                progress=False,
            )
        return sum(pretend.waits.values()), sum(pretend.copies.values())

    (waits, copies), (later, more) = counted(1), counted(2)
    assert (later, more) == (waits + 1, copies + uploads)
