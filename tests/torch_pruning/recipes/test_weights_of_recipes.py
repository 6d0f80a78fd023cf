"""DCWP with a gate for each weight, and how often a recipe's fine-tuning shows the mined samples."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim.mining.contrastive_objective import ContrastiveObjective
from fairtrim.mining.contrastive_weight_masks import learn_weight_masks, masked_network
from fairtrim.network.fine_tuning import fine_tune
from fairtrim_adapters.torch_pruning.recipes import sparse_run
from tests.networks import CASES
from tests.recipe_cases import FLAGS, SMALL, N, mlp, run_recipe

LOADER: DataLoader[Any] = DataLoader(TensorDataset(*CASES["residual"].batch(N)), batch_size=16, shuffle=True)


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_dcwp_masks_exactly_the_closed_gates_of_weights(batchnorm: Any) -> None:
    """As published: π < 0, the masked network fine-tuned with its masks."""
    model, loader = CASES["residual"].model(), LOADER
    gates: dict[str, Any] = {"iterations": 15, "cost_weight": 0.3}
    options: dict[str, Any] = {"level": "weight", "pruning_ratio": None, "batchnorm": batchnorm, "upweight": 9.0}
    whole: Any = run_recipe(
        "dcwp", model, loader, random_state=3, **options, **gates, gate_learning_rate=0.2, epochs=1, learning_rate=0.01
    )
    objective = ContrastiveObjective(conflicting=FLAGS, upweight=9.0)
    logits = learn_weight_masks(
        model, loader, objective, random_state=3, batchnorm=batchnorm, learning_rate=0.2, progress=False, **gates
    )
    expected: Any = masked_network(model, logits)
    fine_tune(
        expected,
        loader,
        sample_weights=whole.mined.sample_weights(FLAGS),
        conflicting=FLAGS,
        contrastive_weight=0.05,
        learning_rate=0.01,
        random_state=torch.Generator().manual_seed(3),
        progress=False,
    )
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, whole.model.state_dict()[name]), name
    closed = torch.cat([pi.flatten() < 0 for pi in logits.values()]).double().mean().item()
    assert 0 < closed < 1 and whole.history["level"].tolist() == pytest.approx([0, closed, closed])


def test_dcwp_masks_a_share_of_the_weights() -> None:
    result: Any = run_recipe("dcwp", mlp(), level="weight", pruning_ratio=0.25)
    masks = [layer.weight_mask for layer in result.model if isinstance(layer, nn.Linear)]
    n_weights = 2 * 16 + 16 * 12 + 12 * 2
    assert sum(int((mask == 0).sum()) for mask in masks) == round(0.25 * n_weights)
    copy.deepcopy(result.model)
    for layer in result.model[::2]:
        assert torch.equal(layer.weight == 0, layer.weight_mask == 0)


@pytest.mark.parametrize(("weight", "expected"), [(3.0, 3.0), ("published", 10.0)])
@pytest.mark.parametrize("recipe", SMALL)
def test_weight_of_the_mined_samples(
    recipe: str, weight: Any, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def noting(*args: Any, **options: Any) -> Any:
        seen.append(options["sample_weights"])
        return fine_tune(*args, **options)

    monkeypatch.setattr(sparse_run, "fine_tune", noting)
    run_recipe(recipe, mlp(), mined_weight=weight)
    for weights in seen:
        torch.testing.assert_close(weights, torch.where(FLAGS, expected, 1.0).double())
    assert seen
