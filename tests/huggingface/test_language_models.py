"""Causal language models inside Torch-Pruning's pruner: shared keys and values, the config, and generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import InputError, UnsupportedModelError, load_pruned, save_pruned
from fairtrim.oracle import explicit_gates
from fairtrim_adapters.huggingface import Part, example_inputs, pruning_options, update_sizes
from fairtrim_adapters.torch_pruning import MeanDamageImportance, WorstGroupImportance
from tests.zoo_huggingface import GROUPED, LANGUAGE, Family, make_pruner, scores_of, shapes_of, update

# torch tells that vmap is slow for fused attention
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop because:UserWarning")

TOLERANCE = 1e-5
"""Norms compute in float32, whatever the weights are."""

QUICK = ("llama", "qwen2", "phi3")
"""Plain, with biases, and fused: the others only where slow tests run."""

_EVERY = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in GROUPED]


def _close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE)


def _scores(model: nn.Module, family: Family) -> Tensor:
    with torch.no_grad():
        return scores_of(model, family.batches())


def _attentions(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "o_proj")]


def _rows(module: Any, kept: list[int]) -> dict[str, list[int]]:
    """Rows of the layers for queries, keys and values, and columns of o_proj, of some of the three groups of two."""
    size = module.head_dim

    def of(heads: list[int], start: int = 0) -> list[int]:
        return [start + head * size + d for head in heads for d in range(size)]

    queries = of([2 * group + k for group in kept for k in range(2)])
    fused = [*queries, *of(kept, 6 * size), *of(kept, 9 * size)]
    return {"q_proj": queries, "k_proj": of(kept), "v_proj": of(kept), "qkv_proj": fused, "o_proj": queries}


def _by_hand(family: Family, transformers: Any, dense: Any, kept: list[list[int]]) -> Any:
    """A network of fewer heads from the start, with the dense one's numbers for the groups that are kept."""
    n = len(kept[0])
    sizes = {"num_attention_heads": 2 * n, "num_key_value_heads": n, "head_dim": _attentions(dense)[0].head_dim}
    model = family.model(transformers, seed=5, **sizes)
    state = dense.state_dict()
    for name, module in dense.named_modules():
        if hasattr(module, "o_proj"):
            groups = kept[module.layer_idx]
            for layer, rows in _rows(module, groups).items():
                for key in (f"{name}.{layer}.weight", f"{name}.{layer}.bias"):
                    if key in state and not (layer == "o_proj" and key.endswith("bias")):
                        state[key] = state[key][:, rows] if layer == "o_proj" else state[key][rows]
    model.load_state_dict(state)
    return model


def _generates(model: Any) -> None:
    """With and without a cache the tokens are those that full passes give."""
    ids = torch.randint(4, 31, (2, 5), generator=torch.Generator().manual_seed(2))
    for use_cache in (True, False):
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=4,
            do_sample=False,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
        with torch.no_grad():
            full = model(input_ids=out.sequences).logits[:, 4:-1]
        going = (out.sequences[:, 5:] == 3).long().cumsum(1) == 0  # rows end with the third token
        going = torch.cat([torch.ones_like(going[:, :1]), going[:, :-1]], 1)
        _close(torch.stack(out.logits, 1)[going].double(), full[going])
        chosen = full.gather(2, out.sequences[:, 5:, None])[..., 0]
        assert bool((chosen >= full.amax(2) - TOLERANCE * (1 + full.amax(2).abs()))[going].all())


def _saved(family: Family, transformers: Any, model: Any, folder: Path, *, config_says_all: bool) -> None:
    """Both ways of saving give the same network back."""
    scores = _scores(model, family)
    save_pruned(folder / "pruned.safetensors", model)
    fresh = load_pruned(folder / "pruned.safetensors", family.model(transformers, seed=9)).eval()
    update(fresh)
    _close(_scores(fresh, family), scores)
    _generates(fresh)
    if config_says_all:
        model.save_pretrained(folder)
        other = type(model).from_pretrained(folder, dtype=torch.float64).eval()
        _close(_scores(other, family), scores)


@pytest.mark.parametrize("name", _EVERY)
def test_keys_and_values_go_with_all_their_queries(transformers: Any, name: str) -> None:
    """Closed gates, removed channels and a network cut by hand are one; the config says all of it."""
    family = GROUPED[name]
    model, dense, batches = family.model(transformers), family.model(transformers), family.batches()
    model.config.use_cache = name != "llama"
    importance = MeanDamageImportance(progress=False)
    pruner = make_pruner(model, importance, "heads", head_pruning_ratio=0.3)
    assert model.config.use_cache == (name != "llama")
    importance.fit(pruner, batches)
    plan = importance.plan_
    assert plan is not None and not plan.unscored and [group.size for group in plan.groups] == [3, 3]
    pruner.step()
    assert update(model, pruner) == ""
    report = importance.report()
    assert report.skipped == [] and report.layers["removed"].tolist() == [1, 1]
    order, kept = importance.selection_.order.tolist(), []
    gates = {group.name: torch.ones(3, dtype=torch.float64) for group in plan.groups}
    for k, group in enumerate(plan.groups):  # named by o_proj, in whatever order they were found
        first = next(column for column in order if column // 3 == k) % 3
        gates[group.name][first] = 0
        layer = dense.get_submodule(group.name.removesuffix(".o_proj (input)"))
        kept.append((layer.layer_idx, [g for g in range(3) if g != first]))
    with torch.no_grad(), explicit_gates(dense, plan.groups, gates):
        closed = scores_of(dense, batches)
    scores = _scores(model, family)
    _close(scores, closed)
    assert float((_scores(dense, family) - closed).abs().max()) > 1000 * TOLERANCE
    by_hand = _by_hand(family, transformers, dense, [groups for _, groups in sorted(kept)])
    assert shapes_of(by_hand) == shapes_of(model)
    _close(scores, _scores(by_hand, family))
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (4, 2)


PARTS: tuple[tuple[Part, ...], ...] = ("intermediate", "heads"), ("intermediate", "heads", "hidden")


@pytest.mark.slow
@pytest.mark.parametrize("parts", PARTS, ids=len)
@pytest.mark.parametrize("name", LANGUAGE)
def test_pruned_networks_generate_and_come_back(
    transformers: Any, name: str, parts: tuple[Part, ...], tmp_path: Path
) -> None:
    """Sizes in the config, ties, generation, and both ways of saving."""
    family = LANGUAGE[name]
    model = family.model(transformers)
    tied = model.config.tie_word_embeddings
    importance = WorstGroupImportance(model=model, loader=family.batches(), progress=False)
    pruner = make_pruner(model, importance, *parts)
    pruner.step()
    unsaid = update(model, pruner)
    assert importance.report().skipped == []
    hidden = family.sizes.get("hidden_size", 20)
    left = int(hidden * 0.7) if "hidden" in parts else hidden
    config = model.config
    assert config.num_attention_heads == 2
    assert config.hidden_size == model.get_input_embeddings().weight.shape[1] == left
    assert getattr(config, family.intermediate) == 18
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    scaled = name == "gemma" and "hidden" in parts
    assert ("embeddings are multiplied by 4.9" in unsaid) == scaled
    assert ("heads have 5 dimensions" in unsaid) == (name not in GROUPED)
    _generates(model)
    _saved(family, transformers, model, tmp_path, config_says_all=not unsaid)


def _removed(model: nn.Module, pruned: nn.Module) -> list[set[int]]:
    """Which of the three groups each layer has lost, by what is left of the keys."""
    found = []
    for whole, part in zip(_attentions(model), _attentions(pruned), strict=True):
        rows = whole.o_proj.weight.T.reshape(3, -1, whole.o_proj.weight.shape[0])
        left = part.o_proj.weight.T.reshape(-1, *rows.shape[1:])
        found.append({g for g in range(3) if not any(torch.equal(rows[g], other) for other in left)})
    return found


@pytest.mark.parametrize("name", ["phi3", pytest.param("qwen2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [tp.importance.GroupMagnitudeImportance, tp.importance.GroupTaylorImportance])
def test_criteria_of_torch_pruning_see_the_groups(transformers: Any, name: str, make: Any) -> None:
    """The group goes whose rows of queries, keys and values and columns of o_proj score lowest together."""
    family = GROUPED[name]
    model, dense = family.model(transformers), family.model(transformers)
    inputs, y, _ = family.batches()[0]
    for network in (model, dense):
        scores = network(**inputs).logits
        nn.functional.cross_entropy(scores.transpose(1, 2), y, ignore_index=-100).backward()
    expected = []
    for module in _attentions(dense):
        sums = torch.zeros(3, dtype=torch.float64)
        for layer, child in module.named_children():
            for parameter in child.parameters() if layer.endswith("_proj") else ():
                taylor = make is tp.importance.GroupTaylorImportance
                if parameter.ndim == 1 and (layer == "o_proj" or not taylor):
                    continue
                score = (parameter * parameter.grad).detach().abs() if taylor else parameter.detach().square()
                for group in range(3):
                    rows = _rows(module, [group])[layer]
                    sums[group] += float((score[:, rows] if layer == "o_proj" else score[rows]).sum())
        expected.append({int(sums.argmin())})
    pruner = make_pruner(model, make(), "heads", head_pruning_ratio=0.3)
    pruner.step()
    assert update(model, pruner) == ""
    assert _removed(dense, model) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "phi3"])
@pytest.mark.parametrize("global_pruning", [False, True])
def test_steps(transformers: Any, name: str, global_pruning: bool) -> None:
    """Two steps, of all layers together or each by itself; layers of different sizes run."""
    family = GROUPED[name]
    model = family.model(transformers)
    importance = WorstGroupImportance(model=model, loader=family.batches(), progress=False)
    pruner = make_pruner(
        model,
        importance,
        "intermediate",
        "heads",
        head_pruning_ratio=0.66,
        iterative_steps=2,
        global_pruning=global_pruning,
    )
    for left in (2, 1):
        pruner.step()
        unsaid = update(model, pruner)
        assert importance.report().skipped == []
        keys = [module.o_proj.in_features // module.head_dim // 2 for module in _attentions(model)]
        assert sum(keys) == 2 * left
        assert [module.num_key_value_groups for module in _attentions(model)] == [2, 2]
        assert ("num_attention_heads is" in unsaid) == (len(set(keys)) > 1)
    _generates(model)


@pytest.mark.parametrize("name", ["llama", pytest.param("gemma", marks=pytest.mark.slow)])
def test_query_heads_go_evenly(transformers: Any, name: str) -> None:
    """Of three query heads of each key the least goes; keys and values stay, also where there is but one of them."""
    n_keys = 1 if name == "gemma" else 2
    sizes = {"num_attention_heads": 3 * n_keys, "num_key_value_heads": n_keys}
    family = GROUPED[name]
    model, dense = (family.model(transformers, **sizes) for _ in range(2))
    importance = MeanDamageImportance(selection="single", progress=False)
    pruner = make_pruner(model, importance, "query_heads", head_pruning_ratio=0.3)
    importance.fit(pruner, family.batches())
    plan, scores = importance.plan_, importance.selection_.scores.view(2, n_keys, 3)
    assert plan is not None and not plan.unscored
    pruner.step()
    assert update(model, pruner) == ""
    assert importance.report().layers["removed"].tolist() == [n_keys, n_keys]
    gates = {group.name: torch.ones(n_keys, 3, dtype=torch.float64) for group in plan.groups}
    size = _attentions(dense)[0].head_dim
    for group, of_group in zip(plan.groups, scores, strict=True):
        least = of_group.argmin(1)
        gates[group.name][torch.arange(n_keys), least] = 0
        path = group.name.removesuffix(".o_proj (input)")
        whole, part = dense.get_submodule(path), model.get_submodule(path)
        rows = gates[group.name].bool().flatten().repeat_interleave(size)
        assert torch.equal(part.q_proj.weight, whole.q_proj.weight[rows])
        assert torch.equal(part.o_proj.weight, whole.o_proj.weight[:, rows])
        assert torch.equal(part.k_proj.weight, whole.k_proj.weight)
        assert torch.equal(part.v_proj.weight, whole.v_proj.weight)
        assert part.num_key_value_groups == 2
    with torch.no_grad(), explicit_gates(dense, plan.groups, {name: gate.flatten() for name, gate in gates.items()}):
        closed = scores_of(dense, family.batches())
    _close(_scores(model, family), closed)
    assert float((_scores(dense, family) - closed).abs().max()) > 1000 * TOLERANCE
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2 * n_keys, n_keys)


@pytest.mark.slow
def test_query_heads_in_steps(transformers: Any, tmp_path: Path) -> None:
    """Down to one query head for each key, with feed-forward channels; magnitude takes the same number from each."""
    family = GROUPED["qwen3"]
    sizes = {"num_attention_heads": 6, "num_key_value_heads": 2}
    model, other = (family.model(transformers, **sizes) for _ in range(2))
    importance = WorstGroupImportance(model=model, loader=family.batches(), progress=False)
    pruner = make_pruner(
        model, importance, "query_heads", "intermediate", head_pruning_ratio=0.6, iterative_steps=2, round_to=2
    )
    for left in (2, 1):
        pruner.step()
        assert update(model, pruner) == ""
        assert importance.report().skipped == []
        assert [module.num_key_value_groups for module in _attentions(model)] == [left, left]
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 2)
    _generates(model)
    _saved(family, transformers, model, tmp_path, config_says_all=True)
    make_pruner(other, tp.importance.GroupMagnitudeImportance(), "query_heads", head_pruning_ratio=0.3).step()
    assert update(other) == "" and other.config.num_attention_heads == 4


def test_layers_that_keep_different_numbers(transformers: Any, tmp_path: Path) -> None:
    """Phi-3 takes its heads from the config, which says one number: each layer that differs gets one of its own."""
    family = GROUPED["phi3"]
    model = family.model(transformers)
    options = pruning_options(model, ["heads"])
    options["ignored_layers"].append(model.model.layers[1].self_attn.qkv_proj)
    pruner = make_pruner(
        model,
        tp.importance.GroupMagnitudeImportance(),
        "heads",
        head_pruning_ratio=0.3,
        ignored_layers=options["ignored_layers"],
    )
    pruner.step()
    unsaid = update(model, pruner)
    assert "num_attention_heads is 4, 6 in its layers (it stays at 6)" in unsaid
    assert [module.config.num_attention_heads for module in _attentions(model)] == [4, 6]
    assert model.config.num_attention_heads == 6
    _saved(family, transformers, model, tmp_path, config_says_all=False)


# Refusals ------------------------------------------------------------------------------------------------------------


def test_one_head_of_keys_for_all(transformers: Any) -> None:
    family = GROUPED["gemma"]
    model = family.model(transformers, num_key_value_heads=1)
    with pytest.raises(UnsupportedModelError, match="use 'query_heads' in place of 'heads'"):
        pruning_options(model, ["heads"])
    assert not pruning_options(model)["prune_num_heads"]  # by default what can go


def test_query_heads_by_themselves(transformers: Any) -> None:
    llama = GROUPED["llama"]
    with pytest.raises(InputError, match="names two ways to remove heads"):
        pruning_options(llama.model(transformers), ["heads", "query_heads"])
    with pytest.raises(UnsupportedModelError, match=r"layers.0.self_attn come from one layer with keys and values"):
        pruning_options(GROUPED["phi3"].model(transformers), ["query_heads"])
    with pytest.raises(UnsupportedModelError, match=r"layers.0.self_attn share no keys and values; use 'heads'"):
        pruning_options(llama.model(transformers, num_key_value_heads=6), ["query_heads"])
    importance = MeanDamageImportance(progress=False)
    pruner = make_pruner(
        llama.model(transformers),
        importance,
        "query_heads",
        "intermediate",
        global_pruning=True,
        head_pruning_ratio=0.3,
    )
    with pytest.warns(UserWarning, match="takes other query heads than those that rank last"):
        importance.fit(pruner, llama.batches())


def test_heads_without_a_ratio_for_channels(transformers: Any) -> None:
    family, importance = GROUPED["llama"], MeanDamageImportance(progress=False)
    model = family.model(transformers)
    pruner = make_pruner(model, importance, "heads", pruning_ratio=0, head_pruning_ratio=0.3)
    with pytest.raises(UnsupportedModelError, match="removes no heads where pruning_ratio is 0"):
        importance.fit(pruner, family.batches())
    pruner.importance = tp.importance.GroupMagnitudeImportance()
    pruner.step()
    assert _attentions(model)[0].o_proj.in_features == 48  # so it is


def test_forward_functions_of_the_instance_come_back(transformers: Any) -> None:
    """As accelerate's hooks put them on modules; the trace has its own while it runs."""
    model = GROUPED["llama"].model(transformers)
    module, calls = _attentions(model)[0], []
    own = module.forward

    def hooked(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    module.forward = hooked
    make_pruner(model, None, "heads")
    assert vars(module)["forward"] is hooked and not calls
    assert not any("forward" in vars(other) for other in _attentions(model)[1:])


def test_norms_over_all_heads(transformers: Any) -> None:
    model = GROUPED["qwen3"].model(transformers)
    module = _attentions(model)[1]
    module.q_norm = type(module.q_norm)(24)
    with pytest.raises(UnsupportedModelError, match=r"layers.1.self_attn.q_norm takes its statistics over all heads"):
        pruning_options(model, ["intermediate", "heads"])


class Linear4bit(nn.Linear):
    """Named as that of bitsandbytes."""


class LoraLinear(nn.Module):
    """Shaped as PEFT's layers."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.lora_A, self.lora_B = base_layer, nn.ModuleDict(), nn.ModuleDict()


def _with(model: Any, change: str) -> Any:
    mlp = model.model.layers[1].mlp
    if change == "adapter":
        mlp.up_proj = LoraLinear(mlp.up_proj)
    elif change == "4 bits":
        mlp.up_proj = Linear4bit(24, 27, bias=False)
    elif change == "packed":
        mlp.up_proj.register_buffer("qweight", torch.zeros(3, 4, dtype=torch.int32))
    elif change == "integers":
        mlp.up_proj.weight = nn.Parameter(torch.zeros(27, 24, dtype=torch.int8), requires_grad=False)
    else:
        model.hf_quantizer = type("AwqQuantizer", (), {"quantization_config": {"quant_method": "awq"}})()
    return model


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("adapter", "model.layers.1.mlp.up_proj.*model = model.merge_and_unload()"),
        ("4 bits", "model.layers.1.mlp.up_proj' is a Linear4bit.*model.dequantize()"),
        ("packed", "model.layers.1.mlp.up_proj.qweight' is a packed weight"),
        ("integers", r"model.layers.1.mlp.up_proj.weight' holds torch.int8"),
        ("reader", "was read by AwqQuantizer"),
    ],
    ids=["adapter", "4 bits", "packed", "integers", "reader"],
)
def test_weights_that_are_not_what_is_computed_with(transformers: Any, change: str, match: str) -> None:
    model = _with(GROUPED["llama"].model(transformers), change)
    for function in (pruning_options, example_inputs, update_sizes):
        with pytest.raises(UnsupportedModelError, match=match):
            function(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_of_peft(transformers: Any) -> None:
    peft = pytest.importorskip("peft")
    family = GROUPED["llama"]
    plain = family.model(transformers)
    wrapped = peft.get_peft_model(plain, peft.LoraConfig(target_modules=["q_proj", "up_proj"], r=2))
    with pytest.raises(UnsupportedModelError, match="merge_and_unload"):
        pruning_options(wrapped)
    model = wrapped.merge_and_unload()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    pruner = make_pruner(model, tp.importance.GroupMagnitudeImportance(), "intermediate", "heads")
    pruner.step()
    update(model, pruner)
    assert bool(torch.isfinite(_scores(model, family)).all())


def test_read_from_gguf(transformers: Any) -> None:
    """Plain numbers can be pruned; what save_pretrained will object to is said."""
    model = GROUPED["llama"].model(transformers)
    model.config.quantization_config = {"quant_method": "gguf"}
    pruning_options(model)
    with pytest.warns(UserWarning, match="del model.config.quantization_config, model.hf_quantizer"):
        update_sizes(model)
