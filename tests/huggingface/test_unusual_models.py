"""Models and arguments that people come with: they work, or an error says what to do before anything has changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

from fairtrim import InputError, UnsupportedModelError
from fairtrim_adapters.huggingface import example_inputs, pruning_options
from fairtrim_adapters.torch_pruning import MeanDamageImportance, prune_to
from tests.snapshot import Snapshot
from tests.zoo_huggingface import GROUPED, LANGUAGE, Family, make_pruner, shapes_of, update

_SIZES = GROUPED["llama"].sizes
STABLELM = Family("StableLm", {k: v for k, v in _SIZES.items() if k != "head_dim"}, head="ForCausalLM")
GPTJ = Family(
    "GPTJ",
    {"vocab_size": 31, "n_embd": 24, "n_layer": 2, "n_head": 6, "rotary_dim": 4, "n_positions": 23, "n_inner": 27},
    head="ForCausalLM",
)
MASKED = Family(
    "Bert", {k: _SIZES[k] for k in ("vocab_size", "hidden_size", "num_attention_heads")}, head="ForMaskedLM"
)
EXPERTS = Family(
    "Qwen2Moe",
    {**_SIZES, "num_experts": 3, "moe_intermediate_size": 11, "shared_expert_intermediate_size": 13},
    head="ForCausalLM",
)


def _fitted(model: Any, batches: list[Any], *parts: Any, **options: Any) -> tuple[Any, Any]:
    importance = MeanDamageImportance(progress=False)
    pruner = make_pruner(model, importance, *parts, **options)
    return importance.fit(pruner, batches), pruner


def test_a_config_that_its_network_does_not_read(transformers: Any) -> None:
    """Its attention takes the size of heads from the hidden size, whatever head_dim says: the config can't tell."""
    model = STABLELM.model(transformers)
    pruner = make_pruner(model, tp.importance.GroupMagnitudeImportance(), "heads")
    pruner.step()
    state = torch.get_rng_state()
    assert "layers.0.self_attn.q_proj.weight is (8, 24) (a network built from it has (24, 24))" in update(model, pruner)
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_of_unknown_names_are_no_hidden_states(transformers: Any) -> None:
    model = GPTJ.model(transformers, attention="eager")
    pruner = make_pruner(model, tp.importance.GroupMagnitudeImportance(), "hidden")
    pruner.step()
    assert shapes_of(model)["transformer.h.0.mlp.fc_in.weight"] == (27, 16)


def test_mixtures_of_experts(transformers: Any) -> None:
    model = EXPERTS.model(transformers)
    for prune, told in ((["hidden"], "'hidden'"), (["intermediate", "hidden"], "'hidden' and 'intermediate'")):
        with pytest.raises(UnsupportedModelError, match=rf"'layers.0.mlp.experts'.*leave {told} out of prune="):
            pruning_options(model, prune)
    assert pruning_options(model, ["heads"])["prune_num_heads"]


def test_embeddings_tied_to_a_layer_that_reads_something_else(transformers: Any) -> None:
    model = MASKED.model(transformers)
    before = Snapshot(model)
    with pytest.raises(UnsupportedModelError, match=r"'cls.predictions.transform.dense' and not the hidden states"):
        pruning_options(model, ["hidden"])
    before.assert_unchanged()
    model.config.tie_word_embeddings = False
    outputs = model.get_output_embeddings()
    outputs.weight = nn.Parameter(outputs.weight.detach().clone())
    pruner = make_pruner(model, tp.importance.GroupMagnitudeImportance(), "hidden")
    pruner.step()
    assert shapes_of(model)["bert.embeddings.word_embeddings.weight"] == (31, 16)


def test_frozen_weights(transformers: Any) -> None:
    model = GROUPED["llama"].model(transformers).requires_grad_(False)
    with pytest.raises(InputError, match=r"21 parameters are, such as 'model.embed.*model.requires_grad_\(True\)"):
        _fitted(model, GROUPED["llama"].batches(), "intermediate", "heads")


def test_an_interrupt_while_the_pruner_is_made(transformers: Any) -> None:
    model = GROUPED["llama"].model(transformers)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    model.model.layers[1].mlp.register_forward_hook(interrupt)
    before = Snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        make_pruner(model, tp.importance.GroupMagnitudeImportance(), "intermediate", "heads")
    before.assert_unchanged()
    assert model.config.use_cache and not any("forward" in vars(module) for module in model.modules())


def test_everything_of_a_layer(transformers: Any) -> None:
    """Torch-Pruning takes nothing then; the report says so."""
    model = GROUPED["llama"].model(transformers)
    importance, pruner = _fitted(model, GROUPED["llama"].batches(), "intermediate", pruning_ratio=0.99)
    pruner.step()
    report = importance.report()
    assert report.layers["removed"].tolist() == [0, 0]
    assert "all channels are asked of model.layers" in report.flags[0] and "max_pruning_ratio" in report.flags[0]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_tokens_and_positions_that_there_are_not(transformers: Any, name: str) -> None:
    family = LANGUAGE[name]
    model, batches = family.model(transformers), family.batches()
    pruner = make_pruner(model, importance := MeanDamageImportance(progress=False), "intermediate")
    before = Snapshot(model)
    (inputs, labels, people), _ = batches
    unknown = [({**inputs, "input_ids": inputs["input_ids"] + 9}, labels, people)]
    with pytest.raises(InputError, match=r"have (23, )?31 rows.* whole numbers from 0 to 39, 7 in a row"):
        importance.fit(pruner, unknown)
    without = [(inputs, labels.fill_(-100), people)]
    with pytest.raises(InputError, match="no position of any sample has a label: all are -100"):
        importance.fit(pruner, without)
    before.assert_unchanged()


def test_prune_to_a_budget(transformers: Any) -> None:
    """What the network is counted on has no labels."""
    family = GROUPED["llama"]
    model, batches = family.model(transformers), family.batches()
    before, config = Snapshot(model), copy.deepcopy(model.config.to_dict())
    options = {"pruner_options": lambda network: pruning_options(network, ["intermediate"]), "progress": False}
    with pytest.warns(UserWarning, match="Config can't say|held_out gives samples"):
        found = prune_to(model, batches, example_inputs(model), parameters=0.8, held_out=batches, **options)
    before.assert_unchanged()
    assert model.config.to_dict() == config
    left = sum(parameter.numel() for parameter in found.model.parameters())
    assert 0.7 < left / sum(parameter.numel() for parameter in model.parameters()) <= 0.8
