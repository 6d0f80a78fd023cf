"""Layers that lost inputs are refitted to the outputs they had."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairtrim.reconstruction import LayerRefit, Reader, Reconstruction, reconstruct
from fairtrim.reconstruction import least_squares as least_squares_module
from fairtrim.reconstruction import passes as passes_module
from fairtrim.reconstruction import refit as refit_module
from fairtrim.reconstruction.least_squares import Ridge
from tests.reconstruction.cases import CASES, KEPT, LayerCase
from tests.snapshot import Snapshot


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ridge for want of rows."""
    monkeypatch.setattr(least_squares_module, "_OF_FEW_ROWS", 0.0)


def _loader(x: Tensor, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.zeros(len(part))) for part in x.split(size)]


def _refit(model: nn.Module, dense: nn.Module, x: Tensor, readers: Iterable[Reader], **options: Any) -> Reconstruction:
    return reconstruct(model, dense, _loader(x), list(readers), progress=False, **options)


def _error(model: nn.Module, dense: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - dense(x)).square().mean() / dense(x).var())


def _least_squares(pruned: nn.Sequential, dense: nn.Sequential, x: Tensor) -> list[Tensor]:
    """The slow way: the output is linear in the parameters, so one forward pass for each of them makes the design."""
    layer = copy.deepcopy(pruned)[1]
    inputs, columns = pruned[0](x), []
    parameters = list(layer.parameters())
    with torch.no_grad():
        for one in parameters:
            for entry in range(one.numel()):
                for parameter in parameters:
                    parameter.zero_()
                one.view(-1)[entry] = 1
                columns.append(layer(inputs).flatten())
        solution = torch.linalg.lstsq(torch.stack(columns, 1), dense(x).flatten()[:, None], driver="gelsd").solution
    return [
        s.view_as(p) for s, p in zip(solution[:, 0].split([p.numel() for p in parameters]), parameters, strict=True)
    ]


@pytest.mark.usefixtures("exact")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_layer_is_fitted_by_least_squares(case: LayerCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit_module, "RIDGES", [Ridge(1e-12, "mean")])
    torch.manual_seed(3)
    dense, pruned = case.networks(KEPT)
    assert isinstance(dense, nn.Sequential) and isinstance(pruned, nn.Sequential)
    x = case.inputs(60)
    expected = _least_squares(pruned, dense, x)
    outputs = range(dense(x).shape[case.axis])
    done = _refit(pruned, dense, x, [Reader("1", outputs, case.input_axis)])
    assert not done.layers[0].why
    for parameter, value in zip(pruned[1].parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-6, atol=1e-8)


class Mixed(nn.Module):
    """Channels of which the later ones are sums of the earlier ones; a pruned network has the earlier ones alone."""

    def __init__(self, n: int, kept: int, axis: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        matrix = torch.cat([torch.eye(kept), torch.randn(n - kept, kept, generator=generator)]).double()
        self.register_buffer("mix", matrix)
        self.axis, self.n = axis, n

    def forward(self, x: Tensor) -> Tensor:
        whole = torch.tensordot(x, self.mix, dims=([self.axis], [1])).movedim(-1, self.axis)
        return whole[:, : self.n] if self.axis == 1 else whole[..., : self.n]


class Residual(nn.Module):
    """Two convolutions with BatchNorm, and a sum with what went in."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, hidden, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.relu = nn.ReLU(inplace=True)
        self.two = nn.Conv2d(hidden, width, 3, padding=1, bias=False)
        self.last = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.norm(self.one(x)))
        out = self.last(self.two(hidden))
        out += x
        return self.relu(out)


def _train_norms(model: nn.Module, x: Tensor) -> nn.Module:
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias, 0, 0.3)
    model.train()
    for _ in range(20):
        model(x)
    return model.eval()


def _without(dense: nn.Module, cuts: dict[str, tuple[list[int], list[int]]]) -> nn.Module:
    """A copy with some outputs and inputs of some layers; (outputs, inputs) by name."""
    pruned = copy.deepcopy(dense)
    for name, (outputs, inputs) in cuts.items():
        module: Any = pruned.get_submodule(name)
        keep = torch.tensor(outputs)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.weight, module.bias = (nn.Parameter(p.detach()[keep]) for p in (module.weight, module.bias))
            module.running_mean, module.running_var = module.running_mean[keep], module.running_var[keep]
            module.num_features = len(outputs)
            continue
        module.weight = nn.Parameter(module.weight.detach()[keep][:, torch.tensor(inputs)])
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias.detach()[keep])
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = len(outputs), len(inputs)
        else:
            module.out_channels, module.in_channels = len(outputs), len(inputs)
    return pruned


def _residual_pair(x: Tensor) -> tuple[nn.Module, nn.Module, list[Reader]]:
    torch.manual_seed(0)
    dense = _train_norms(nn.Sequential(Residual(5, 9), Residual(5, 8), nn.Conv2d(5, 3, 1)).double(), x)
    pruned = _without(
        dense,
        {
            "0.one": ([0, 2, 3, 5, 6, 8], list(range(5))),
            "0.norm": ([0, 2, 3, 5, 6, 8], []),
            "0.two": (list(range(5)), [0, 2, 3, 5, 6, 8]),
            "1.one": ([1, 2, 3, 5, 7], list(range(5))),
            "1.norm": ([1, 2, 3, 5, 7], []),
            "1.two": (list(range(5)), [1, 2, 3, 5, 7]),
        },
    )
    return dense, pruned, [Reader("1.two", range(5)), Reader("0.two", range(5))]


X = torch.randn(80, 5, 6, 7, generator=torch.Generator().manual_seed(5)).double()


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", ["linear", "tokens", "inputs by outputs", "conv2d", "transposed 2d"])
def test_a_channel_that_others_can_give_is_made_up_for(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(2)
    dense, pruned = case.networks([0, 1, 2, 3])
    x = case.inputs(60, 4)
    dense[0], pruned[0] = Mixed(6, 4, case.axis), Mixed(4, 4, case.axis)
    assert _error(pruned, dense, x) > 1e-2
    outputs = range(dense(x).shape[case.axis])
    done = _refit(pruned, dense, x, [Reader("1", outputs, case.input_axis)])
    assert _error(pruned, dense, x) < 1e-9
    assert done.layers[0].after < 1e-6 < done.layers[0].before


@pytest.mark.usefixtures("exact")
def test_an_output_channel_that_is_gone_as_well_is_no_matter() -> None:
    torch.manual_seed(2)
    case = CASES["conv2d"]
    dense, pruned = case.networks([0, 1, 2, 3])
    dense[0], pruned[0] = Mixed(6, 4), Mixed(4, 4)
    pruned = _without(pruned, {"1": ([4, 0, 2], list(range(4)))})
    x = case.inputs(60, 4)
    _refit(pruned, dense, x, [Reader("1", [4, 0, 2])])
    torch.testing.assert_close(pruned(x), dense(x)[:, [4, 0, 2]], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("exact")
def test_a_norm_takes_the_constant_of_a_layer_without_bias() -> None:
    torch.manual_seed(1)
    x = torch.randn(100, 4).double() + 3
    dense = nn.Sequential(Mixed(6, 4), nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh()).double()
    dense[0].mix[5] = torch.tensor([0.0, 0, 0, 1]) if isinstance(dense[0].mix, Tensor) else 0
    _train_norms(dense, x)
    pruned = _without(dense, {"1": (list(range(5)), [0, 1, 2])})
    pruned[0].n = 3
    y = torch.cat([x[:, :3], torch.full((100, 1), 2.0)], 1).double()  # the fourth is a constant, and goes
    before = [p.detach().clone() for p in pruned[2].parameters()]
    variance = pruned[2].running_var.clone()
    _refit(pruned, dense, y, [Reader("1", range(5))])
    assert _error(pruned, dense, y) < 1e-9
    assert all(torch.equal(a, b) for a, b in zip(before, pruned[2].parameters(), strict=True))
    assert torch.equal(variance, pruned[2].running_var)


def test_a_residual_sum_is_aimed_at() -> None:
    dense, pruned, readers = _residual_pair(X)
    alone = copy.deepcopy(pruned)
    done = _refit(pruned, dense, X, readers)
    assert [layer.module for layer in done.layers] == ["0.two", "1.two"]  # as they run

    seen: list[dict[str, Any]] = []
    look = refit_module._look

    def blind(*args: Any) -> Any:
        told = look(*args)
        assert told is not None
        seen.append(dict(told))
        return {**told, "skips": {}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refit_module, "_look", blind)
        _refit(alone, dense, X, readers)
    assert seen[0]["skips"] == {"0.two": ["", "input"], "1.two": ["0", "output"]}
    assert seen[0]["norms"] == {"0.two": "0.last", "1.two": "1.last"}
    assert _error(pruned, dense, X) < _error(alone, dense, X)


def test_in_sequence_is_better_than_each_for_itself() -> None:
    dense, pruned, readers = _residual_pair(X)
    apart = [copy.deepcopy(pruned) for _ in readers]
    for network, reader in zip(apart, readers, strict=True):
        _refit(network, dense, X, [reader])
    together = copy.deepcopy(pruned)
    for network, reader in zip(apart, readers, strict=True):
        together.get_submodule(reader.module).load_state_dict(network.get_submodule(reader.module).state_dict())
        norm = reader.module.replace("two", "last")
        together.get_submodule(norm).load_state_dict(network.get_submodule(norm).state_dict())
    before = _error(pruned, dense, X)
    _refit(pruned, dense, X, readers)
    assert _error(pruned, dense, X) < _error(together, dense, X) < before


def test_batches_one_by_one_give_what_one_batch_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, pruned, readers = _residual_pair(X)
    other, whole = copy.deepcopy(pruned), copy.deepcopy(pruned)
    _refit(pruned, dense, X, readers)
    monkeypatch.setattr(passes_module, "_MAX_ACTIVATION_BYTES", 0)
    _refit(other, dense, X, readers)
    reconstruct(whole, dense, [(X, torch.zeros(len(X)))], readers, progress=False)
    for name, value in pruned.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)
        torch.testing.assert_close(whole.state_dict()[name], value, rtol=1e-3, atol=1e-3)  # positions are drawn anew


def test_many_inputs_are_fitted_in_the_dual_form(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, pruned, readers = _residual_pair(X)
    other, few = copy.deepcopy(pruned), copy.deepcopy(pruned)
    done = _refit(pruned, dense, X, readers, max_samples=20)
    monkeypatch.setattr("fairtrim.reconstruction.least_squares.MAX_UNKNOWNS", 20)
    monkeypatch.setattr(passes_module, "MAX_UNKNOWNS", 20)
    dual = _refit(other, dense, X, readers, max_samples=20)
    assert [layer.rows for layer in dual.layers] == [layer.rows for layer in done.layers] == [840, 840]
    for one, two in zip(done.layers, dual.layers, strict=True):
        assert (one.before, one.after) == pytest.approx((two.before, two.after), rel=1e-2)
    for name, value in pruned.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-2, atol=1e-2)
    monkeypatch.setattr(passes_module, "MAX_ROWS", 500)
    done = _refit(few, dense, X, readers)
    assert [layer.rows for layer in done.layers] == [480, 480]  # six positions of each of eighty
    monkeypatch.setattr(passes_module, "MAX_ROWS", 50)
    done = _refit(few, dense, X, readers)
    assert all(30 <= layer.rows <= 50 for layer in done.layers)  # of some samples none


@pytest.mark.parametrize("at", ["dense", "first", "last"])
def test_an_interrupt_leaves_all_as_it_was(at: str) -> None:
    dense, pruned, readers = _residual_pair(X)
    dense.train()
    pruned[0].train()
    pruned(X).square().sum().backward()
    dense.get_submodule("1.last").running_mean = pruned.get_submodule("1.last").running_mean
    before, original = Snapshot(pruned), Snapshot(dense)
    finished = 0
    write = refit_module._finished

    def failing(*args: Any) -> Any:
        nonlocal finished
        result = write(*args)
        finished += 1
        if finished == (1 if at == "first" else 2):
            raise KeyboardInterrupt
        return result

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if at == "dense":
            patch.setattr(passes_module.Passes, "join", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
        patch.setattr(refit_module, "_finished", failing)
        _refit(pruned, dense, X, readers)
    before.assert_unchanged()
    original.assert_unchanged()


def test_what_is_not_refitted_stays_as_it_was() -> None:
    dense, pruned, readers = _residual_pair(X)
    pruned[0].train()
    shared = pruned.get_submodule("1.last")
    dense.get_submodule("1.last").running_mean = shared.running_mean
    original = Snapshot(dense)
    before = {name: value.clone() for name, value in pruned.state_dict().items()}
    flags = [module.training for module in pruned.modules()]
    state = torch.get_rng_state()
    _refit(pruned, dense, X, readers)
    changed = {name for name, value in pruned.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.two.weight", "0.last.running_mean", "1.two.weight", "1.last.running_mean"}
    assert [module.training for module in pruned.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pruned.modules())
    original.assert_unchanged()


def test_sensitive_groups_may_count_alike() -> None:
    torch.manual_seed(4)
    dense, pruned = nn.Sequential(nn.Linear(3, 2)).double(), nn.Sequential(nn.Linear(2, 2)).double()
    with torch.no_grad():
        pruned[0].weight.copy_(dense[0].weight[:, :2])
        pruned[0].bias.copy_(dense[0].bias)
    n, few = 300, 30
    x = torch.randn(n, 2).double()
    group = torch.arange(n) < few
    third = torch.where(group, -1.0, 1.0)[:, None] * x[:, :1]  # what is gone is another thing in the small group
    whole = torch.cat([x, third], 1)

    def call(network: nn.Module, inputs: Tensor) -> Tensor:
        return network(inputs[:, : network[0].in_features])

    def errors(weigh: bool) -> Tensor:
        model = copy.deepcopy(pruned)
        loader = [(whole, torch.zeros(n), group.long())]
        reconstruct(model, dense, loader, [Reader("0", range(2))], forward_fn=call, weigh_groups=weigh, progress=False)
        each = (call(model, whole) - call(dense, whole)).square().sum(1)
        return torch.stack([each[group].mean(), each[~group].mean()])

    plain, weighed = errors(False), errors(True)
    assert weighed[0] < plain[0] and weighed[1] > plain[1]
    torch.testing.assert_close(weighed[0], weighed[1], rtol=0.5, atol=0.0)


def test_precision_below_single_is_kept() -> None:
    dense, pruned, readers = _residual_pair(X)
    before = _error(pruned, dense, X)
    dense, pruned = dense.to(torch.bfloat16), pruned.to(torch.bfloat16)
    _refit(pruned, dense, X.bfloat16(), readers)
    assert all(p.dtype == torch.bfloat16 for p in pruned.parameters())
    assert _error(pruned.float(), dense.float(), X.float()) < before


def test_layers_are_looked_at_in_full_precision() -> None:
    """Else a layer whose products are rounded is no W x + b; the refit itself runs as the caller set torch."""
    dense, pruned, readers = _residual_pair(X)
    seen = []
    for network in (dense, pruned):
        network.register_forward_pre_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    torch.set_float32_matmul_precision("medium")
    try:
        done = _refit(pruned, dense, X, readers)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(not layer.why for layer in done.layers)
    assert seen[:4] == ["highest"] * 4 and set(seen[4:]) == {"medium"}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.once, self.twice = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.unused, self.bilinear = nn.Linear(4, 4), nn.Bilinear(4, 4, 4)
        self.shared = nn.Linear(4, 4)
        self.shared.weight = self.once.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.hooked = nn.Linear(4, 4)
        self.hooked.register_forward_hook(lambda module, args, output: output * 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.once(self.first(x)) + self.shared(x)
        x = self.twice(self.twice(x))
        return self.hooked(self.normed(self.bilinear(x, x))) + F.linear(x, self.first.weight)


def test_layers_that_cannot_be_refitted_are_left_and_say_why() -> None:
    torch.manual_seed(0)
    dense = Tied().eval()
    pruned = copy.deepcopy(dense)
    x = torch.randn(40, 4)
    before = Snapshot(pruned)
    names = ["first", "once", "twice", "unused", "bilinear", "normed", "hooked"]
    done = _refit(pruned, dense, x, [Reader(name, range(4)) for name in names])
    why = {layer.module: layer.why for layer in done.layers}
    assert "tied" in why["first"] and "tied" in why["once"]
    assert "2 times" in why["twice"] and "doesn't run" in why["unused"]
    assert "Bilinear" in why["bilinear"] and "computed from others" in why["normed"]
    assert "isn't W x + b" in why["hooked"]
    before.assert_unchanged()
    assert "0 of 7 layers refitted" in str(done) and all(len(line) < 100 for line in str(done).splitlines())


def test_what_is_wrong_is_said_before_anything_changed() -> None:
    dense, pruned, readers = _residual_pair(X)
    before = Snapshot(pruned)
    noisy = nn.Sequential(*pruned)
    noisy.register_forward_hook(lambda module, args, output: F.dropout(output, 0.5, training=True))
    still = nn.Sequential(*dense)
    with pytest.raises(RuntimeError, match="another output each time it runs in eval mode"):
        _refit(noisy, still, X, readers)
    with pytest.raises(ValueError, match="same network"):
        _refit(pruned, pruned, X, readers)
    with pytest.raises(ValueError, match="NaN or infinity"):
        _refit(pruned, dense, torch.full_like(X, torch.nan), readers)
    with pytest.raises(ValueError, match="no module 'three'"):
        _refit(pruned, dense, X, [Reader("three", range(5))])
    with pytest.raises(ValueError, match="kept_outputs names 4; expected one for each"):
        _refit(pruned, dense, X, [Reader("0.two", range(4))])
    with pytest.raises(ValueError, match="different ones of the 5"):
        _refit(pruned, dense, X, [Reader("0.two", [0, 1, 2, 3, 5])])
    with pytest.raises(ValueError, match="two readers"):
        _refit(pruned, dense, X, [*readers, *readers])
    with pytest.raises(ValueError, match="no sensitive features"):
        _refit(pruned, dense, X, readers, weigh_groups=True)
    before.assert_unchanged()


def test_too_few_samples_are_said_with_how_many_would_do() -> None:
    dense, pruned, readers = _residual_pair(X)
    before = Snapshot(pruned)
    done = _refit(pruned, dense, X[:9], readers)
    assert {layer.why for layer in done.layers} == {"9 samples are too few; expected at least 10"}
    before.assert_unchanged()
    torch.manual_seed(0)
    wide, narrow = nn.Sequential(nn.Linear(40, 2)), nn.Sequential(nn.Linear(40, 2))
    narrow.load_state_dict(wide.state_dict())
    done = _refit(narrow, wide, torch.randn(20, 40), [Reader("0", range(2))])
    assert done.layers[0].why.endswith("20 rows for 40 inputs")
    assert done.layers[0].enough == 80
    assert done.flags == ("not refitted for want of samples: 0: 80 samples would be enough",)


def test_no_more_samples_are_read_than_asked_for() -> None:
    dense, pruned, readers = _residual_pair(X)
    read = 0

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        nonlocal read
        for batch in _loader(X, 10):
            read += 1
            yield batch

    done = reconstruct(pruned, dense, batches(), readers, max_samples=25, progress=False)
    assert read == 3 and done.layers[0].rows == 25 * 42


def test_batches_of_one_and_dicts_are_fine() -> None:
    dense, pruned, readers = _residual_pair(X)
    other = copy.deepcopy(pruned)
    loader = [{"x": x, "labels": torch.zeros(1)} for x in X[:30].split(1)]

    def call(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        return network(inputs["x"])

    reconstruct(pruned, dense, loader, readers, forward_fn=call, progress=False)
    _refit(other, dense, X[:30], readers)
    for name, value in pruned.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)


def test_a_transformer_layer_is_refitted_behind_its_residual_sum() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(*[nn.TransformerEncoderLayer(6, 2, 11, batch_first=True) for _ in range(2)]).eval()
    cuts = {}
    for name in ("0", "1"):
        cuts[f"{name}.linear1"] = list(range(7)), list(range(6))
        cuts[f"{name}.linear2"] = list(range(6)), list(range(7))
    pruned = _without(dense, cuts)
    x = torch.randn(60, 5, 6)
    before = _error(pruned, dense, x)
    readers = [Reader("0.linear2", range(6)), Reader("1.linear2", range(6)), Reader("1.self_attn.out_proj", range(6))]
    done = _refit(pruned, dense, x, readers)
    assert _error(pruned, dense, x) < before / 2
    why = {layer.module: layer.why for layer in done.layers}
    assert not why["0.linear2"] and not why["1.linear2"]
    assert "doesn't run as a module" in why["1.self_attn.out_proj"]  # torch's attention takes the weight alone


@pytest.mark.parametrize("context", [torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.no_grad()])
def test_callers_contexts_are_no_matter(context: Any) -> None:
    dense, pruned, readers = _residual_pair(X)
    dense, pruned, x = dense.float(), pruned.float(), X.float()
    before, other = _error(pruned, dense, x), copy.deepcopy(pruned)
    _refit(other, dense, x, readers)
    with context:
        _refit(pruned, dense, x, readers)
    assert _error(pruned, dense, x) < before
    assert _error(pruned, other, x) < (1e-2 if isinstance(context, torch.autocast) else 1e-9)


@pytest.mark.parametrize(("number", "error"), [(1, 0.5), (17, 31.25), (17, 52_000.0), (120, 52_000.0)])
def test_what_was_done_is_told_in_under_100_columns(number: int, error: float) -> None:
    done = Reconstruction(tuple(LayerRefit(str(k), 2, 40, "0.01 of the mean", error, error) for k in range(number)))
    lines = str(done).splitlines()
    assert max(map(len, lines)) < 100 and lines[0].startswith(f"{number} of {number} layers refitted; ")
    assert f"{error:.1%}".replace("%", " %") in str(done) or error > 100


def test_few_samples_never_make_the_network_much_worse() -> None:
    """Twenty samples of a network with ReLUs that hardly ever let anything through, judged by a thousand others."""
    ratios = []
    for seed in range(60):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            dense = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3)).eval()
            dense[0].bias.data[:12] -= 1
            pruned = _without(dense, {"2": (list(range(3)), list(range(0, 24, 2)))})
            pruned[0].weight.data, pruned[0].bias.data = dense[0].weight[::2].data, dense[0].bias[::2].data
            x, others = torch.randn(20, 6), torch.randn(1000, 6)
        before = _error(pruned, dense, others)
        _refit(pruned, dense, x, [Reader("2", range(3))])
        ratios.append(_error(pruned, dense, others) / before)
    assert max(ratios) < 3 and sum(ratio > 1.1 for ratio in ratios) < 4 and sorted(ratios)[30] < 0.6
