"""Transformers of Hugging Face inside Torch-Pruning's pruner."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import InputError, UnsupportedModelError, collect_damage, load_pruned, save_pruned
from fairtrim.damage.weight_saliency import squared_gradients
from fairtrim.oracle import explicit_gates
from fairtrim_adapters.huggingface import Part, example_inputs, next_token_labels, pruning_options, update_sizes
from fairtrim_adapters.torch_pruning import (
    GroupSaliencyImportance,
    MeanDamageImportance,
    WorstGroupImportance,
    describe_layer,
    forget_layer,
)
from fairtrim_adapters.torch_pruning.graph.corrections import correct_graph, correct_pruner
from fairtrim_adapters.torch_pruning.graph.layers import description_of
from fairtrim_adapters.torch_pruning.graph.plan import plan_of_pruner
from tests.zoo_huggingface import FAMILIES, SINGLE_PRECISION, Family, make_pruner, scores_of, shapes_of, update

# torch tells that vmap is slow for fused attention
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop because:UserWarning")

ROOT = Path(__file__).parents[2]
_LINEAR = ("in_features", "out_features")
PARTS: tuple[Part, ...] = ("intermediate", "heads", "head_dims", "hidden")
CRITERIA: dict[str, Callable[[], Any]] = {
    "worst group": lambda: WorstGroupImportance(progress=False),
    "group saliency, weights": lambda: GroupSaliencyImportance(0, level="weight", selection="single", progress=False),
}


def _of_the_host(family: Family) -> Any:
    """A criterion of Torch-Pruning's that sees all layers: its others pass over those with a customised pruner."""
    return tp.importance.RandomImportance() if family.name == "GPT2" else tp.importance.GroupMagnitudeImportance()


def _prunes(family: str, part: Part) -> bool:
    return part != "head_dims" or family != "llama"


SMOKE = {("bert", "heads"), ("gpt2", "heads"), ("llama", "hidden"), ("vit", "hidden")}
"""Of these one case is quick enough to run always."""

CASES = [
    pytest.param(
        FAMILIES[family],
        part,
        global_pruning,
        make,
        id=f"{family}-{part}-{'global' if global_pruning else 'local'}-{criterion}",
        marks=[] if (family, part) in SMOKE and not global_pruning and criterion == "worst group" else pytest.mark.slow,
    )
    for family in FAMILIES
    for part in PARTS
    if _prunes(family, part)
    for global_pruning in (False, True)
    for criterion, make in CRITERIA.items()
]


def _attentions(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "scaling") and hasattr(module, "config")]


@pytest.mark.parametrize(("family", "part", "global_pruning", "make"), CASES)
def test_prunes_what_the_host_prunes(
    transformers: Any, family: Family, part: Part, global_pruning: bool, make: Callable[[], Any], tmp_path: Path
) -> None:
    """From fitting to a network that was loaded: sizes, config, scores and gradients."""
    batches = family.batches()
    model, theirs = family.model(transformers), family.model(transformers)
    original = model.config.to_dict()
    importance = make()
    pruner = make_pruner(model, importance, part, global_pruning=global_pruning)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    importance.fit(pruner, batches)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for module in model.modules():
        assert module.training and "forward" not in vars(module)
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert model.config.to_dict() == original
    model.eval()
    assert bool(torch.isfinite(importance.selection_.scores).all())

    pruner.step()
    report = importance.report()
    assert report.skipped == [] and report.layers["removed"].sum() > 0
    assert report.layers["asked"].tolist() == report.layers["removed"].tolist()
    unsaid = update(model, pruner)
    if not global_pruning:
        assert part != "hidden" or model.config.hidden_size == 14
        make_pruner(theirs, _of_the_host(family), part).step()
        assert shapes_of(theirs) == shapes_of(model)

    scores = scores_of(model, batches)
    nn.functional.cross_entropy(scores, torch.cat([y for _, y, _ in batches])).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)

    _check_sizes(family, model, part, unsaid)
    save_pruned(tmp_path / "pruned.safetensors", model)
    fresh = load_pruned(tmp_path / "pruned.safetensors", family.model(transformers, seed=9)).eval()
    torch.testing.assert_close(scores_of(fresh, batches), scores, rtol=1e-12, atol=1e-12)
    update(fresh)
    assert fresh.config.to_dict() == model.config.to_dict()
    assert [vars(m).get(family.heads) for m in _attentions(fresh)] == [
        vars(m).get(family.heads) for m in _attentions(model)
    ]


def _check_sizes(family: Family, model: Any, part: Part, unsaid: str) -> None:
    """The config says what is there, or a warning says that it doesn't."""
    config, attentions = model.config, _attentions(model)
    outputs = [
        next(layer for name, layer in module.named_children() if name in ("query", "q_proj", "q_lin", "c_attn"))
        for module in attentions
    ]
    inner = [layer.weight.shape[1] // 3 if hasattr(layer, "nf") else layer.weight.shape[0] for layer in outputs]
    sizes = [getattr(module, "attention_head_size", getattr(module, "head_dim", None)) for module in attentions]
    heads = [width // size for width, size in zip(inner, sizes, strict=True)]
    dense = 6 if family.own_head_size else 5
    if part != "head_dims":
        assert sizes == [dense, dense]
    assert sum(heads) == (4 if part == "heads" else 8)  # ceil(0.4 · 4) = 2 of each four, or 4 of eight
    for module, count, size in zip(attentions, heads, sizes, strict=True):
        assert vars(module).get(family.heads, count) == count
        assert module.scaling == pytest.approx(dense**-0.5)
        for name in ("all_head_size", "split_size"):
            assert vars(module).get(name, count * size) == count * size
    hidden = model.get_input_embeddings().weight.shape[1] if family.name != "ViT" else config.hidden_size
    assert config.hidden_size == hidden and (hidden < 20 if part == "hidden" else hidden == 20)
    for module in model.base_model.modules():
        assert {vars(module).get(name, hidden) for name in ("hidden_size", "embed_dim", "dim")} == {hidden}
        if hasattr(module, "up_proj"):
            assert module.intermediate_size == module.up_proj.out_features
    pooler = getattr(model.base_model, "pooler", None)
    if pooler is not None:
        assert ("its pooler gives" in unsaid) == (pooler.dense.out_features != hidden)
    if len(set(heads)) == 1:
        assert config.num_attention_heads == heads[0] and "num_attention_heads is" not in unsaid
    else:
        assert config.num_attention_heads == 4 and f"num_attention_heads is {heads[0]}, {heads[1]}" in unsaid
    assert ("scales its scores" in unsaid) == (part == "head_dims")
    assert ("it refuses them" in unsaid) == (
        family.own_head_size and config.hidden_size % config.num_attention_heads > 0
    )
    if not family.own_head_size:
        assert ("heads have" in unsaid) == (part != "intermediate")
    elif part == "heads" and len(set(heads)) == 1:
        assert unsaid == "" and config.head_dim == 6 and config.num_key_value_heads == heads[0]
    names = "intermediate.dense", "mlp.fc1", "ffn.lin1", "mlp.c_fc", "mlp.up_proj"
    widths = [
        layer.weight.shape[1] if hasattr(layer, "nf") else layer.weight.shape[0]
        for name, layer in model.named_modules()
        if name.endswith(names)
    ]
    assert len(widths) == 2
    if len(set(widths)) == 1:
        assert getattr(config, family.intermediate) == widths[0] == (18 if part == "intermediate" else 27)
    else:
        assert getattr(config, family.intermediate) == 27
        assert f"{family.intermediate} is {widths[0]}, {widths[1]} in its layers (it stays at 27)" in unsaid


@pytest.mark.slow
@pytest.mark.parametrize(("name", "part"), [(n, p) for n in FAMILIES for p in PARTS if _prunes(n, p)])
def test_closed_gates_are_removed_channels(transformers: Any, name: str, part: Part) -> None:
    """What Torch-Pruning removes is what the gates close, and the listed slices of parameters are what disappears."""
    family = FAMILIES[name]
    model, batches = family.model(transformers), family.batches()
    importance = MeanDamageImportance(progress=False)
    pruner = make_pruner(model, importance, part)
    plan = plan_of_pruner(pruner)
    importance.fit(pruner, batches)
    gates = {group.name: torch.ones(group.size, dtype=torch.float64) for group in plan.groups}
    groups = list(pruner.step(interactive=True))
    assert len(groups) == len(plan.groups)
    for group in groups:
        root = next(n for n, r in plan.roots.items() if r.module is group[0].dep.target.module)
        gates[root][plan.roots[root].units[group[0].idxs]] = 0
    with torch.no_grad(), explicit_gates(model, plan.groups, gates):
        expected = scores_of(model, batches)
    dense = scores_of(model, batches)
    shapes = {key: list(shape) for key, shape in shapes_of(model).items()}
    for of_gates in plan.groups:
        for place in of_gates.parameters:
            removed = [c for c in place.group_channels if gates[of_gates.name][c] == 0]
            shapes[place.parameter][place.axis] -= len(removed)
    for group in groups:
        group.prune()
    update(model, pruner)
    assert {key: tuple(shape) for key, shape in shapes.items()} == shapes_of(model)
    if part != "hidden":  # norms take their statistics over the channels that are left
        tolerance = SINGLE_PRECISION.get(name, 1e-11)
        torch.testing.assert_close(scores_of(model, batches), expected, rtol=tolerance, atol=tolerance)
        assert float((expected - dense).detach().abs().max()) > 100 * tolerance


@pytest.mark.slow
@pytest.mark.parametrize("part", ["intermediate", "heads", "hidden"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "vit"])
def test_padding_contributes_nothing(transformers: Any, name: str, part: Part) -> None:
    family = FAMILIES[name]
    model = family.model(transformers)
    groups = plan_of_pruner(make_pruner(model, None, part)).groups
    short, long = (
        collect_damage(model, family.batches(padding), groups, interactions=True, progress=False) for padding in (0, 6)
    )
    tolerance = SINGLE_PRECISION.get(name, 1e-9)
    torch.testing.assert_close(short.damage, long.damage, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(short.interactions, long.interactions, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_squared_gradients_of_all_parameters(transformers: Any, name: str) -> None:
    """Embeddings, Conv1D and RMSNorm too, against a loop over samples."""
    family = FAMILIES[name]
    model, batches = family.model(transformers), family.batches()
    table, fast = squared_gradients(model, batches, curvature="empirical", progress=False)
    expected = {key: torch.zeros(3, *p.shape, dtype=torch.float64) for key, p in model.named_parameters()}
    for inputs, y, people in batches:
        for n in range(len(y)):
            scores = model(**{key: value[n : n + 1] for key, value in inputs.items()}).logits
            loss = nn.functional.cross_entropy(scores, y[n : n + 1])
            found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
            for key, gradient in zip(expected, found, strict=True):
                if gradient is not None:
                    expected[key][people[n]] += gradient.square() / table.counts[people[n]]
    largest = max(float(value.max()) for value in expected.values())
    for key, value in expected.items():
        tolerance = SINGLE_PRECISION.get(name, 1e-9) * max(float(value.max()), 1e-9 * largest)
        torch.testing.assert_close(fast[key], value, rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_eager_and_fused_attention_give_the_same_groups(transformers: Any, name: str) -> None:
    family = FAMILIES[name]
    parts = tuple(part for part in PARTS if _prunes(name, part))
    eager, fused = (
        plan_of_pruner(make_pruner(family.model(transformers, attention=a), None, *parts)).groups
        for a in ("eager", "sdpa")
    )
    assert {g.name: g for g in eager} == {g.name: g for g in fused}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_everything_at_once_in_steps(transformers: Any, name: str) -> None:
    """Every part, two steps with sizes updated in between, by an importance that fits itself."""
    family = FAMILIES[name]
    model, theirs = family.model(transformers), family.model(transformers)
    parts = tuple(part for part in PARTS if _prunes(name, part))
    importance = WorstGroupImportance(model=model, loader=family.batches(), progress=False)
    pruners = [
        make_pruner(model, importance, *parts, iterative_steps=2),
        make_pruner(theirs, _of_the_host(family), *parts, iterative_steps=2),
    ]
    for _ in range(2):
        for network, pruner in zip((model, theirs), pruners, strict=True):
            correct_graph(pruner.DG)  # or Torch-Pruning maps the split of GPT-2 as it was before the first step
            correct_pruner(pruner)  # or it counts heads from those that are left
            pruner.step()
            update(network, pruner)
    assert shapes_of(model) == shapes_of(theirs)
    assert bool(torch.isfinite(scores_of(model, family.batches())).all())


@pytest.mark.slow
def test_attention_stays_without_a_head_ratio(transformers: Any, tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    model = family.model(transformers)
    importance = WorstGroupImportance(model=model, loader=family.batches(), progress=False)
    pruner = tp.pruner.BasePruner(
        model, example_inputs(model), importance=importance, pruning_ratio=0.3, **pruning_options(model)
    )
    shared = inspect.signature(tp.pruner.BasePruner).parameters["out_channel_groups"].default
    assert not set(shared) & set(model.modules())  # which all pruners of Torch-Pruning would see
    pruner.step()
    update_sizes(model, pruner)  # the config can say all of it
    assert importance.report().skipped == []
    assert (model.config.num_attention_heads, model.config.intermediate_size) == (4, 18)
    model.save_pretrained(tmp_path)
    other = type(model).from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(scores_of(other, family.batches()), scores_of(model, family.batches()))


@pytest.mark.slow
def test_config_that_says_how_large_a_head_is(transformers: Any) -> None:
    family = FAMILIES["vit"]
    model = family.model(transformers, head_dim=6)
    pruner = make_pruner(model, tp.importance.GroupMagnitudeImportance(), "head_dims")
    pruner.step()
    assert "scales its scores by 0.408, for 6 dimensions a head" in update(model, pruner)
    assert (model.config.head_dim, model.config.num_attention_heads, model.config.hidden_size) == (4, 4, 20)
    scores_of(model, family.batches())


@pytest.mark.slow
def test_heads_of_a_layer_that_the_host_skipped(transformers: Any) -> None:
    """It counts all heads away, then skips the layer because none would be left."""
    family = FAMILIES["bert"]
    model = family.model(transformers)
    pruner = make_pruner(model, tp.importance.GroupMagnitudeImportance(), "heads", head_pruning_ratio=0.9)
    pruner.step()
    assert set(pruner.num_heads.values()) == {0}
    update_sizes(model, pruner)
    assert set(pruner.num_heads.values()) == {4} and model.config.num_attention_heads == 4
    scores_of(model, family.batches())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GPT2", "Llama"])
def test_language_models_keep_their_ties(transformers: Any, name: str, tmp_path: Path) -> None:
    family = FAMILIES[name.lower()]
    language = Family(name, family.sizes, head="LMHeadModel" if name == "GPT2" else "ForCausalLM")
    model = language.model(transformers, tie_word_embeddings=True)
    parts: tuple[Part, ...] = ("intermediate", "heads", "hidden")
    pruner = make_pruner(model, tp.importance.GroupMagnitudeImportance(), *parts)
    pruner.step()
    update(model, pruner)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.lm_head.weight.shape == (31, 14)
    save_pruned(tmp_path / "pruned.safetensors", model)
    fresh = load_pruned(tmp_path / "pruned.safetensors", language.model(transformers, tie_word_embeddings=True, seed=9))
    inputs = example_inputs(model)
    torch.testing.assert_close(fresh.eval()(**inputs).logits, model(**inputs).logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["GPT2", "Llama"])
def test_labels_of_the_next_token(transformers: Any, name: str) -> None:
    """The losses of the damage table are those that the model computes from labels that it moves itself."""
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    model = Family(name, FAMILIES[name.lower()].sizes, head=head).model(transformers)
    groups = plan_of_pruner(make_pruner(model, None, "intermediate")).groups
    ids = torch.randint(4, 31, (6, 7), generator=torch.Generator().manual_seed(3))
    loader = [({"input_ids": ids}, next_token_labels(ids), torch.arange(6) % 2)]
    table = collect_damage(model, loader, groups, progress=False)
    expected = [float(model(input_ids=rows, labels=rows).loss.detach()) for rows in (ids[::2], ids[1::2])]
    assert table.loss.tolist() == pytest.approx(expected, rel=1e-5)  # theirs is computed in float32
    for wrong in (ids[0], ids.double()):
        with pytest.raises(InputError, match=r"expected integers \(N, T\)"):
            next_token_labels(wrong)


class MeanPooled(nn.Module):
    """A classifier around a bare encoder, as sentence embeddings are used."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.hidden_size, 3, dtype=encoder.dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states)
        return self.head((states * mask).sum(1) / mask.sum(1))


@pytest.mark.slow
def test_encoder_in_a_network_of_the_users(transformers: Any, tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    bare = Family("Bert", family.sizes, head="Model")

    def make(seed: int = 0) -> MeanPooled:
        encoder = bare.model(transformers, seed=seed)
        encoder.pooler = None
        return MeanPooled(encoder)

    model = make()
    parts: tuple[Part, ...] = ("intermediate", "heads", "hidden")
    importance = WorstGroupImportance(model=model, loader=family.batches(), progress=False)
    pruner = make_pruner(model, importance, *parts)
    pruner.step()
    update(model, pruner)
    assert (model.head.in_features, model.head.out_features, model.encoder.config.hidden_size) == (14, 3, 14)
    groups = plan_of_pruner(make_pruner(model, None, *parts)).groups
    short, long = (collect_damage(model, family.batches(padding), groups, progress=False).damage for padding in (0, 6))
    torch.testing.assert_close(short, long, rtol=1e-9, atol=1e-12)
    save_pruned(tmp_path / "pruned.safetensors", model)
    fresh = load_pruned(tmp_path / "pruned.safetensors", make(seed=9)).eval()
    torch.testing.assert_close(
        scores_of(fresh, family.batches()), scores_of(model, family.batches()), rtol=1e-9, atol=1e-12
    )


class Pooled(nn.Module):
    """A classifier of what an encoder's pooler gives."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.pooler_output_size, 3, dtype=encoder.dtype)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.encoder(pixel_values).pooler_output)


@pytest.mark.slow
def test_pooler_of_another_size(transformers: Any) -> None:
    family = FAMILIES["vit"]
    model = Pooled(Family("ViT", family.sizes, head="Model").model(transformers, pooler_output_size=13))
    pruner = make_pruner(model, WorstGroupImportance(model=model, loader=family.batches(), progress=False), "hidden")
    pruner.step()
    update(model, pruner)
    assert model.encoder.config.pooler_output_size == model.head.in_features == 9
    assert model.encoder.config.hidden_size == 14
    scores_of(model, family.batches())


def test_nothing_is_said_for_good(transformers: Any) -> None:
    """The class of other networks' layers stays as it is, and so does what the user said about it."""
    model = FAMILIES["gpt2"].model(transformers)
    layer = model.transformer.h[0].attn.c_attn
    before, spoken = dict(vars(type(layer))), {"weight": 1}
    try:
        describe_layer(type(layer), output_parameters=spoken)
        own = description_of(layer)
        make_pruner(model, tp.importance.RandomImportance(), "heads", "hidden").step()
        assert description_of(layer) is own
    finally:
        forget_layer(type(layer))
    assert dict(vars(type(layer))) == before
    assert layer.out_features == layer.nf == layer.weight.shape[1] == 30  # 2 of 4 heads of 5, three times
    pruning_options(model)
    assert description_of(layer) is not None


def test_stages_keep_their_hidden_sizes(transformers: Any) -> None:
    """Each stage of Swin has a hidden size of its own: the config's stays, and what can't be pruned is refused."""
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 4], window_size=4, num_labels=3
    )
    model = transformers.SwinForImageClassification(config).eval()
    before, attributes = config.to_dict(), [dict(vars(module)) for module in model.modules()]
    update_sizes(model)  # nothing to say of a dense network
    with pytest.raises(UnsupportedModelError, match="take 8, 16 hidden channels and its config says 16"):
        pruning_options(model, ["hidden"])
    with pytest.raises(UnsupportedModelError, match=r"relative_position_bias_table holds numbers for every head"):
        pruning_options(model, ["heads"])
    pruner = make_pruner(model, tp.importance.GroupMagnitudeImportance(), "intermediate", pruning_ratio=0.25)
    pruner.step()
    assert "feed-forward layers have 24, 48 channels" in update(model, pruner)
    assert config.to_dict() == before and config.hidden_size == 16
    for module, was in zip(model.modules(), attributes, strict=True):
        sizes = {name: value for name, value in was.items() if type(value) is int and name not in _LINEAR}
        assert {name: vars(module)[name] for name in sizes} == sizes
    assert model(**example_inputs(model)).logits.shape == (2, 3)


# Refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_refusals(transformers: Any) -> None:
    bert, llama = FAMILIES["bert"], FAMILIES["llama"]
    model = bert.model(transformers)
    for wrong in ("heads", ("head",), ()):
        with pytest.raises(InputError, match=r"expected a collection of some of \('intermediate', 'heads'"):
            pruning_options(model, wrong)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="use 'heads' in place of 'head_dims'"):
        pruning_options(llama.model(transformers), ["head_dims"])
    bare = Family("Bert", bert.sizes, head="Model").model(transformers)
    with pytest.raises(UnsupportedModelError, match="leave 'hidden' out of prune="):
        pruning_options(bare, ["hidden"])
    with pytest.raises(UnsupportedModelError, match="cross attention is not supported"):
        pruning_options(bert.model(transformers, is_decoder=True, add_cross_attention=True))
    with pytest.raises(InputError, match="without any transformer"):
        update_sizes(nn.Linear(2, 2))

    pooled = MeanPooled(bare)
    pruner = make_pruner(pooled, tp.importance.GroupMagnitudeImportance(), "hidden")
    pruner.step()
    with pytest.raises(UnsupportedModelError, match="expects 20 hidden channels and 14 are left"):
        update_sizes(pooled, pruner)

    model.bert.encoder.layer[0].attention.self.query = nn.Linear(20, 13)
    with pytest.raises(UnsupportedModelError, match=r"query, key and value have \[13, 20, 20\] outputs"):
        update_sizes(model)


class Renamed(nn.Module):
    """Looks like a network of Hugging Face, with layers of other names."""

    base_model_prefix, main_input_name = "body", "input_values"

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=4, vocab_size=7)
        for name, child in children.items():
            self.add_module(name, child)

    @property
    def base_model(self) -> nn.Module:
        return self


def test_networks_of_other_names() -> None:
    with pytest.raises(UnsupportedModelError, match="pass num_heads and ignored_layers to the pruner by hand"):
        pruning_options(Renamed(wq=nn.Linear(4, 4)))
    attention = Renamed(query=nn.Linear(4, 4), key=nn.Linear(4, 4), value=nn.Linear(4, 4))
    with pytest.raises(UnsupportedModelError, match="leave 'intermediate' out of prune="):
        pruning_options(attention)
    with pytest.raises(InputError, match="takes 'input_values'; expected input_ids or pixel_values"):
        example_inputs(attention)


# Fused projections, and norms over channels of images ------------------------------------------------------------


def _phi(transformers: Any) -> Any:
    config = transformers.Phi3Config(
        vocab_size=31,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=26,
        max_position_embeddings=23,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
        num_labels=3,
    )
    model = transformers.Phi3ForSequenceClassification(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


@pytest.mark.parametrize("parts", [None, ("intermediate", "hidden")])
def test_fused_gate_and_up_projection(transformers: Any, parts: Any) -> None:
    """Phi-3: the same channels go from the gate and from what it multiplies, and the heads stay."""
    torch.manual_seed(0)
    model = _phi(transformers)
    ids = torch.randint(4, 31, (8, 6))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    importance = WorstGroupImportance(progress=False)
    options = pruning_options(model, parts) if parts else pruning_options(model)
    assert model.config.use_cache
    pruner = tp.pruner.BasePruner(model, example_inputs(model), importance=importance, pruning_ratio=0.5, **options)
    assert model.config.use_cache  # off while it was traced
    importance.fit(pruner, [(inputs, torch.arange(8) % 3, ["a", "b"] * 4)])
    assert not importance.plan_.unscored
    pruner.step()
    update_sizes(model, pruner)
    hidden = 12 if parts else 24
    layer = model.model.layers[1]
    assert layer.mlp.gate_up_proj.weight.shape == (26, hidden) and layer.mlp.down_proj.weight.shape == (hidden, 13)
    assert layer.self_attn.qkv_proj.weight.shape == (48, hidden)
    assert (model.config.intermediate_size, model.config.hidden_size) == (13, hidden)
    for training in (False, True):
        assert model.train(training)(**inputs).logits.shape == (8, 3)
    fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh.eval()(**inputs).logits, model.eval()(**inputs).logits)


@pytest.mark.parametrize("name", ["ConvNext", "ConvNextV2"])
@pytest.mark.filterwarnings("ignore:Unwrapped parameters:UserWarning")
def test_one_class_of_norm_for_both_layouts(transformers: Any, name: str) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        num_channels=3, hidden_sizes=[8, 12], depths=[1, 2], num_stages=2, image_size=16, patch_size=2, num_labels=3
    )
    model = getattr(transformers, f"{name}ForImageClassification")(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    images = torch.randn(6, 3, 16, 16)
    importance = WorstGroupImportance(progress=False, output_transform=lambda output: output.logits)
    pruner = tp.pruner.BasePruner(
        model,
        images[:2],
        importance=importance,
        pruning_ratio=0.5,
        ignored_layers=[model.classifier],
        output_transform=lambda output: output.logits,
    )
    importance.fit(pruner, [({"pixel_values": images}, torch.arange(6) % 3, ["a", "b"] * 3)])
    assert not importance.plan_.unscored
    pruner.step()
    assert importance.report().skipped == []
    assert model(images).logits.shape == (6, 3) and model.classifier.in_features == 6


@pytest.mark.parametrize("part", ["hidden", "heads", "intermediate"])
def test_compensated_choice_knows_turned_weights(transformers: Any, part: Part) -> None:
    """GPT-2's linear layers keep their weights as (inputs, outputs); all that read channels could be refitted."""
    family = FAMILIES["gpt2"]
    model = family.model(transformers)
    importance = WorstGroupImportance(compensated=True, per="macs", progress=False)
    pruner = make_pruner(model, importance, part, global_pruning=True)
    importance.fit(pruner, family.batches())
    assert importance.selection_.shares is not None
    assert bool((importance.selection_.shares < 1).all())  # something makes up for a part of every channel
    pruner.step()
    assert importance.report().skipped == []
    update(model, pruner)
    assert bool(torch.isfinite(scores_of(model, family.batches())).all())
