"""Causal language models: what is collected over texts padded on either side is what each text gives alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim import ParityFineTuning, ThresholdSelection, ValidationSet, collect_damage, predict, recalibrate_output
from fairtrim.damage.measured_change import measured_change
from fairtrim.damage.weight_saliency import squared_gradients
from fairtrim_adapters.huggingface import compare_language_models, next_token_labels, text_loader
from fairtrim_adapters.torch_pruning.graph.plan import plan_of_pruner
from tests.zoo_huggingface import FAMILIES, Family, make_pruner

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop because:UserWarning")

TEXTS = [[5, 9, 4], [7, 6, 20, 11, 8], [30, 12], [13, 4, 4, 9], [21, 5, 6, 17, 10, 9]]
PEOPLE = [0, 1, 1, 0, 1]
CASES = [
    pytest.param(name, side, marks=[] if (name, side) == ("llama", "left") else pytest.mark.slow)
    for name in ("gpt2", "llama")
    for side in ("left", "right")
]
HEADS = {"gpt2": "LMHeadModel", "llama": "ForCausalLM"}


def _model(transformers: Any, name: str) -> Any:
    family = FAMILIES[name]
    return Family(family.name, family.sizes, head=HEADS[name]).model(transformers)


def _batch(texts: list[list[int]], side: str, extra: int = 2) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Padded, with positions counted from the first token for models that have learned ones."""
    length = max(map(len, texts)) + extra
    ids, mask = torch.full((len(texts), length), 1), torch.zeros(len(texts), length).long()
    for row, text in enumerate(texts):
        places = slice(length - len(text), length) if side == "left" else slice(0, len(text))
        ids[row, places], mask[row, places] = torch.tensor(text), 1
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
    people = [PEOPLE[TEXTS.index(text)] for text in texts]
    return inputs, next_token_labels(ids, mask), torch.tensor(people)


def _alone() -> list[Any]:
    return [_batch([text], "right", extra=0) for text in TEXTS]


@pytest.mark.parametrize(("name", "side"), CASES)
def test_damage_and_its_measured_change(transformers: Any, name: str, side: str) -> None:
    model = _model(transformers, name)
    groups = plan_of_pruner(make_pruner(model, None, "intermediate")).groups
    padded = [_batch(TEXTS, side)]
    found, wanted = (
        collect_damage(model, loader, groups, interactions=True, progress=False) for loader in (padded, _alone())
    )
    with torch.no_grad():
        losses = [float(model(**inputs, labels=inputs["input_ids"]).loss) for inputs, _, _ in _alone()]
    assert found.sample_losses is not None
    assert found.sample_losses.tolist() == pytest.approx(losses, rel=1e-5)  # theirs are computed in single precision
    tolerance = 1e-6  # of rotary angles in single precision
    for field in ("loss", "damage", "slope", "interactions"):
        values, expected = getattr(found, field), getattr(wanted, field)
        scale = float(expected.abs().max())
        torch.testing.assert_close(values, expected, rtol=tolerance, atol=tolerance * scale)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 0.9
    changes = [measured_change(model, loader, found, progress=False).change for loader in (padded, _alone())]
    torch.testing.assert_close(changes[0], changes[1], rtol=1e-5, atol=1e-6)
    assert bool((changes[0].abs() > 1e-3).all())


@pytest.mark.parametrize(("name", "side"), CASES)
def test_squared_gradients_of_weights(transformers: Any, name: str, side: str) -> None:
    model = _model(transformers, name)
    tables = [
        squared_gradients(model, loader, curvature="empirical", progress=False)[1]
        for loader in ([_batch(TEXTS, side)], _alone())
    ]
    for key, expected in tables[1].items():
        tolerance = 1e-5 * float(expected.max())
        torch.testing.assert_close(
            tables[0][key], expected, rtol=0, atol=tolerance, msg=lambda told, k=key: f"{k}: {told}"
        )


@pytest.mark.parametrize("side", ["left", "right"])
def test_predictions_and_perplexity(transformers: Any, side: str) -> None:
    model = _model(transformers, "gpt2")
    padded, alone = [_batch(TEXTS, side)], _alone()
    rows = [predict(model, loader, progress=False) for loader in (padded, alone)]
    assert rows[0].target.tolist() == rows[1].target.tolist() == [token for text in TEXTS for token in text[1:]]
    torch.testing.assert_close(*(torch.from_numpy(found.scores["model"]) for found in rows), rtol=1e-6, atol=1e-6)
    tables = [compare_language_models({"a": model}, loader, progress=False) for loader in (padded, alone)]
    torch.testing.assert_close(*(torch.tensor(found.texts_by_group["perplexity"].tolist()) for found in tables))


def test_texts_of_the_loader_are_the_same_texts(transformers: Any) -> None:
    model = _model(transformers, "llama")

    def letters(texts: list[str]) -> Any:
        return {"input_ids": [list(map(int, text.split())) for text in texts]}

    loader = text_loader([" ".join(map(str, text)) for text in TEXTS], letters, PEOPLE, batch_size=2)
    found, wanted = (compare_language_models({"a": model}, batches, progress=False) for batches in (loader, _alone()))
    torch.testing.assert_close(
        torch.tensor(found.overall["perplexity"].tolist()), torch.tensor(wanted.overall["perplexity"].tolist())
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_post_processors_of_a_head_whose_last_token_counts(transformers: Any, name: str) -> None:
    """Texts are padded, so that the place differs from text to text; the features are those that gave the scores."""
    model = FAMILIES[name].model(transformers, num_labels=2)
    model.score.bias = nn.Parameter(torch.zeros(2).double())
    draw = torch.Generator().manual_seed(5)
    mask = (torch.arange(7) < torch.randint(3, 8, (60, 1), generator=draw)).long()
    ids = torch.randint(4, 31, (60, 7), generator=draw) * mask + (1 - mask)
    target, people = torch.arange(60) % 2, ["a" if n % 3 else "b" for n in range(60)]
    loader = [({"input_ids": ids, "attention_mask": mask}, target, people)]
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    features = hidden[torch.arange(60), mask.sum(1) - 1]
    validation = ValidationSet.from_loader(loader, progress=False)
    for method in (ParityFineTuning(layers="output", random_state=0), ThresholdSelection()):
        repaired = method.repair(model, validation, progress=False).model
        with torch.no_grad():
            scores = repaired(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(scores, features @ repaired.score.weight.T + repaired.score.bias)
    before = nn.functional.cross_entropy(model(input_ids=ids, attention_mask=mask).logits, target)
    refitted = recalibrate_output(model, loader, progress=False)
    after = nn.functional.cross_entropy(refitted(input_ids=ids, attention_mask=mask).logits, target)
    assert float(after.detach()) < float(before.detach())
