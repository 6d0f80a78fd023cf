"""Refit every layer that reads a removed channel to the outputs it had, layer by layer, without labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fairtrim.arguments import RandomState, few_of, random_generator, require_number
from fairtrim.data.batches import ForwardFunction, tensors_of
from fairtrim.data.sensitive_loader import with_sensitive_features
from fairtrim.devices import to_device
from fairtrim.errors import InputError, UnsupportedModelError
from fairtrim.files.resumption import fingerprint
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.placement import require_whole
from fairtrim.precision import full_precision
from fairtrim.preservation import (
    insist,
    preserved_attributes,
    preserved_model,
    preserved_random_state,
    undisturbed,
)
from fairtrim.printing import Block, Printed, flag_lines, percent
from fairtrim.processes import Processes

from .least_squares import RIDGES, Sums
from .passes import Layer, Passes
from .readers import LayerRows, Reader, layer_rows
from .residual_sums import Survey, survey
from .samples import Part, few_samples, read

__all__ = ["LayerRefit", "Reconstruction", "reconstruct"]

_FEWEST = 10  # samples: two held out
_ROWS = 2  # an input, with fewer of which a refit is mostly ridge
_NAMED = 3
_NOT_BETTER = "no refit was better on held-out samples"


@dataclass(frozen=True)
class LayerRefit:
    """What became of one layer.

    Attributes:
        module: Its name.
        inputs: Unknowns of one output: kept inputs times kernel positions.
        rows: Samples times positions it was fitted on.
        ridge: The ridge that was best on held-out samples, e.g. ``"0.01 of each input's own"``; empty if left as it is.
        before: Held-out squared error of the pruned layer as it was, as a share of the outputs' variance.
        after: The same after the refit; equal to ``before`` where the layer is left.
        why: Why the layer is left as it is; empty if it was refitted.
        enough: About how many samples would give the layer two rows an input; 0 if it had them.
    """

    module: str
    inputs: int
    rows: int
    ridge: str
    before: float
    after: float
    why: str = ""
    enough: int = 0


@dataclass(frozen=True)
class Reconstruction(Printed):
    """What a refit did, layer by layer in the order of computation; print it.

    Attributes:
        layers: One entry a layer.

    Example:
        >>> print(Reconstruction((LayerRefit("1", 2, 40, "0.01 of the mean", 0.5, 0.125),)))
        1 of 1 layers refitted; their median error is 12.5 % of the outputs' variance on held-out samples,
          was 50.0 %.
    """

    layers: tuple[LayerRefit, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """What a user should know: layers that were left, or fitted on few rows, for want of samples."""
        short = [layer for layer in self.layers if layer.enough]
        left = [layer.module for layer in short if layer.why]
        found = []
        if left:
            found.append(f"not refitted for want of samples: {few_of(left, most=_NAMED)}")
        if len(short) > len(left):
            found.append(
                f"refitted on few rows: {few_of([layer.module for layer in short if not layer.why], most=_NAMED)}"
            )
        if not found:
            return ()
        enough = max(layer.enough for layer in short)
        return (f"{'; '.join(found)}: {enough:,} samples would be enough",)

    def share(self) -> str:
        """How many of the layers were refitted.

        Returns:
            Part of a sentence.
        """
        return f"{sum(not layer.why for layer in self.layers)} of {len(self.layers)} layers"

    def verdict(self) -> str:
        """How many layers were refitted, and how much of their error that took away.

        Returns:
            One sentence.
        """
        done = [layer for layer in self.layers if not layer.why]
        if not done:
            return f"{self.share()} refitted."
        before, after = (median(errors) for errors in zip(*((x.before, x.after) for x in done), strict=True))
        of = "the outputs' variance on held-out samples"
        return f"{self.share()} refitted; their median error is {percent(after)} of {of}, was {percent(before)}."

    def told(self) -> Iterator[str]:
        """The verdict, and why layers are left as they are.

        Yields:
            Lines.
        """
        yield self.verdict()
        reasons: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.why:
                reasons.setdefault(layer.why, []).append(layer.module)
        for why, names in reasons.items():
            yield f"left as they are: {few_of(names, most=_NAMED)}: {why}"

    def blocks(self) -> Iterator[Block]:
        """The verdict, why layers are left as they are, and flags."""
        yield "\n".join(self.told())
        yield from flag_lines(self.flags)


@torch.inference_mode(False)  # there tensors don't tell whether they were changed in place
@torch.no_grad()
def reconstruct(
    model: nn.Module,
    dense: nn.Module,
    loader: Iterable[Any],
    readers: Sequence[Reader],
    *,
    sensitive_features: Any = None,
    forward_fn: ForwardFunction | None = None,
    weigh_groups: bool = False,
    max_samples: int = 4096,
    random_state: RandomState = 0,
    distributed: bool | None = None,
    progress: bool = True,
) -> Reconstruction:
    """Refit every layer that reads a removed channel to the outputs it had, in place, without a label.

    Layer by layer in the order of computation, for rows u of the inputs that the layer has in the pruned network so far
    and the outputs t that it had in the dense one, at the same positions of the same samples:

        min over W', b' of Σ_n w_n ‖t_n − W' u_n − b'‖² + λ ‖W' − W‖²

    A constant goes to the layer's bias, else to the running mean of a BatchNorm directly behind it, else nowhere. Where
    a sum follows whose other part is known by then, the target is the dense sum less what the pruned network adds. The
    ridge λ, in units of the inputs' mean second moment or of each one's own, more where rows are few, is the best of
    several on every fifth sample, held out; a layer that no ridge makes better there is left as it is.

    The idea is Hassibi and Stork's (NeurIPS 1993): what a removed weight did is made up for by the others. Least
    squares on a layer's outputs after channels are removed is He, Zhang and Sun's ("Channel Pruning", ICCV 2017). Doing
    it in sequence, with the ridge from held-out samples, is ours.

    Don't recalibrate BatchNorm afterwards: it mostly loses what was gained.

    Memory: the inputs that are read, where the loader gives them; and where the network is, up to 1 GiB of targets;
    second moments of up to 4,096 inputs of a layer (five matrices of 128 MiB), above that at most 4,096 rows, in the
    dual form; and about 1.5 GiB of activations where all samples run as one batch, so that the refit is one forward
    pass. Where they don't fit, and in several processes, batches run as they come, up to each layer in its turn: fewer
    ``max_samples`` may then be much faster.

    On an accelerator sums stay there, in float64 or in pairs of float32, and are read once a layer. Systems of up to
    512 unknowns, and all of a device without float64, are solved on the CPU. Products of the refit are computed in full
    float32 even where TF32 is allowed; the network itself runs as the caller set it.

    Args:
        model: The pruned network.
        dense: The network it was, or a twin with the same names; not changed. Tensors that both hold, and that the
            refit changes in ``model``, become copies of their own in ``dense``.
        loader: Batches of (inputs, target[, sensitive]); targets are not used.
        readers: The layers that read removed channels, in any order.
        sensitive_features: Of a loader of (inputs, target), one row a sample; see ``fairtrim.with_sensitive_features``.
        forward_fn: How to call the networks.
        weigh_groups: Let the sensitive groups count alike, however many people each has.
        max_samples: Read about so many.
        random_state: Draws held-out samples and positions.
        distributed: Whether several processes work together; None asks ``torch.distributed``.
        progress: Show progress bars.

    Returns:
        What became of each layer; a layer that can't be refitted is left, and says why.

    Raises:
        InputError: The readers don't fit the networks, or the inputs are not finite.
        ProcessError: Another process failed.
        UnsupportedModelError: A network is random in eval mode, or can't be run as it is. After any error the network
            is as before.

    Example:
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> dense = nn.Linear(3, 1)
        >>> dense.weight.data = torch.tensor([[1.0, 2.0, 4.0]])
        >>> expand = lambda network, x: network(torch.cat([x, x.sum(1, keepdim=True)], 1)[:, : network.in_features])
        >>> pruned = nn.Linear(2, 1)  # its third input, the sum of the others, is gone
        >>> pruned.weight.data, pruned.bias.data = dense.weight.data[:, :2].clone(), dense.bias.data.clone()
        >>> done = reconstruct(
        ...     pruned, dense, [(x, torch.zeros(200))], [Reader("", [0])], forward_fn=expand, progress=False
        ... )
        >>> pruned.weight.data.round(decimals=2).tolist()
        [[5.0, 6.0]]
    """
    require_number("max_samples", max_samples, at_least=1, whole=True)
    generator, processes = random_generator(random_state), Processes(distributed, model)
    with processes.together():
        network, original = ScoredNetwork(model, forward_fn), ScoredNetwork(dense, forward_fn)
        network.check()
        original.check()
        require_whole(model)
        require_whole(dense)
        _check(model, dense, readers)
        loader = with_sensitive_features(loader, sensitive_features)
    with processes.together(), preserved_random_state(loader):
        share = -(-max_samples // processes.count)
        reading = read(loader, share, weigh_groups=weigh_groups, some=processes.count == 1, progress=progress)
    if processes.count > 1:
        options = {"max_samples": max_samples, "weigh_groups": weigh_groups}
        processes.agree({"network": fingerprint(model), "readers": [reader.module for reader in readers], **options})
    parts = reading.parts(processes, generator)
    n_samples, n_held = processes.sum(
        torch.tensor([(len(p), int(p.held.sum())) for p in parts] + [(0, 0)], device="cpu").sum(0)
    ).tolist()
    with processes.together(), preserved_random_state():
        seen = _look(network, original, parts, readers)
    told = next(answer for answer in processes.exchange(seen) if answer is not None)
    reasons: dict[str, str] = told["reasons"]
    too_few = ""
    if n_samples < _FEWEST or n_held < 2:
        too_few = f"{n_samples} samples are too few; expected at least {_FEWEST * processes.count}"
        reasons.update({reader.module: too_few for reader in readers})
    layers = _layers(model, readers, told)
    results = {
        name: LayerRefit(
            name,
            told["inputs"][name],
            0,
            "",
            math.nan,
            math.nan,
            why,
            enough=_FEWEST * processes.count if why == too_few else 0,
        )
        for name, why in reasons.items()
    }
    tensors = [tensor for layer in layers for tensor in layer.writable()]
    if layers:
        with _changed(dense, tensors):
            with (
                preserved_random_state(),
                preserved_attributes(model),
                preserved_model(model),
                undisturbed(dense),
            ):
                passes = Passes(
                    network,
                    original,
                    layers,
                    parts,
                    n_samples=n_samples,
                    processes=processes,
                    generator=generator,
                    progress=progress,
                )
                with processes.together():
                    passes.run_dense()
                    passes.join(told["bytes"])

                def finish(layer: Layer, sums: Sums) -> None:
                    results[layer.name] = _finished(layer, sums, n_samples, processes)

                passes.refit(finish)
                means = [(norm, norm.running_mean.clone()) for norm in _shifted(layers)]  # type: ignore[union-attr]
            for norm, mean in means:  # buffers came back, also those that were refitted
                norm.running_mean.copy_(mean)  # type: ignore[union-attr]
    order = [layer.name for layer in layers] + [r.module for r in readers if r.module in reasons]
    return Reconstruction(tuple(results[name] for name in sorted(order, key=told["order"].index)))


def _shifted(layers: Sequence[Layer]) -> list[_BatchNorm]:
    return [layer.norm for layer in layers if layer.rows.bias is None and layer.norm is not None]


def _check(model: nn.Module, dense: nn.Module, readers: Sequence[Reader]) -> None:
    if model is dense:
        raise InputError("model and dense are the same network; expected the pruned one, and what it was before")
    modules, originals = dict(model.named_modules()), dict(dense.named_modules())
    twice = [name for name, number in Counter(reader.module for reader in readers).items() if number > 1]
    if twice:
        raise InputError(f"{twice} are named by two readers; expected one for each layer")
    for reader in readers:
        name = reader.module
        for which, known in (("pruned", modules), ("dense", originals)):
            if name not in known:
                raise InputError(f"the {which} network has no module {name!r}; expected names that both networks have")
        rows, original = (layer_rows(known[name], reader.input_axis) for known in (modules, originals))
        if isinstance(rows, str) or isinstance(original, str):
            continue
        kept = list(reader.kept_outputs)
        if len(kept) != rows.outputs:
            raise InputError(
                f"{name!r} has {rows.outputs} outputs in the pruned network, and kept_outputs names {len(kept)}; "
                "expected one for each"
            )
        if (kept and not (min(kept) >= 0 and max(kept) < original.outputs)) or len(set(kept)) < len(kept):
            raise InputError(
                f"kept_outputs of {name!r} are {min(kept)} to {max(kept)}, {len(set(kept))} of them different; "
                f"expected different ones of the {original.outputs} that the dense layer has"
            )


def _look(
    network: ScoredNetwork, original: ScoredNetwork, parts: Sequence[Part], readers: Sequence[Reader]
) -> dict[str, Any] | None:
    """Run both networks on a few samples; what JSON can hold of what was seen."""
    if not parts:
        return None
    inputs, n_samples = few_samples(parts[0])
    names = [reader.module for reader in readers]
    surveys = []
    for which, net in (("pruned", network), ("dense", original)):
        outputs: list[list[Tensor]] = []

        def run(net: ScoredNetwork = net, outputs: list[list[Tensor]] = outputs) -> None:
            outputs.append([t.detach().clone() for t in tensors_of(net.output(to_device(inputs, net.device)))])

        # what a layer gives is held against W x + b: a few digits of TF32 would look like another function
        with preserved_attributes(net.model), preserved_model(net.model), full_precision():
            run()
            surveys.append(survey(net.model, run, names))
        if not _alike(*outputs):
            raise UnsupportedModelError(
                f"the {which} network gives another output each time it runs in eval mode; expected one without "
                "random numbers there: look for dropout that is called with training=True"
            )
    seen, before = surveys
    modules = dict(network.model.named_modules())
    owners = Counter(id(p) for module in modules.values() for p in module._parameters.values() if p is not None)
    reasons: dict[str, str] = {}
    widths: dict[str, int] = {}
    for reader in readers:
        name = reader.module
        rows = layer_rows(modules[name], reader.input_axis)
        widths[name] = 0 if isinstance(rows, str) else rows.width
        why = rows if isinstance(rows, str) else _obstacle(name, rows, seen, before, owners, n_samples)
        if why:
            reasons[name] = why
    order = [name for name in seen.order if name in names]
    return {
        "order": order + [name for name in names if name not in order],
        "reasons": reasons,
        "inputs": widths,
        "norms": {name: norm for name, norm in seen.norms.items() if before.norms.get(name) == norm},
        "skips": {name: list(skip) for name, skip in seen.skips.items() if before.skips.get(name) == skip},
        "bytes": max(seen.largest, before.largest) / n_samples,
    }


def _alike(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether two passes gave the same, but for the order in which a device adds up."""
    if len(one) != len(other) or any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return False
    for a, b in zip(one, other, strict=True):
        if not a.is_floating_point():
            continue
        a, b = a.cpu().double().nan_to_num(), b.cpu().double().nan_to_num()
        if a.numel() and float((a - b).abs().max()) > 1e-3 * float(a.abs().max()):
            return False
    return True


def _obstacle(name: str, rows: LayerRows, seen: Survey, before: Survey, owners: Counter[int], n_samples: int) -> str:
    """Why a layer can't be refitted; empty if it can."""
    runs = max(seen.runs[name], before.runs[name])
    if min(seen.runs[name], before.runs[name]) == 0:
        return "it doesn't run as a module: its weight is used elsewhere, or not at all"
    if runs > 1:
        return f"it runs {runs} times in one pass"
    own = [p for p in (rows.module._parameters.get("weight"), rows.module._parameters.get("bias")) if p is not None]
    if any(owners[id(p)] > 1 for p in own) or seen.weight_uses[name] > 1:
        return "its weights are used elsewhere too (tied)"
    if name not in seen.calls or name not in before.calls:
        return "it takes or gives something else than a tensor"
    inputs, output = seen.calls[name]
    count = rows.count(output, n_samples)
    if count is None or count != rows.count(before.calls[name][1], n_samples):
        return "the first axis of its output is not that of the samples"
    if not _is_linear(rows, inputs, output, count, n_samples):
        return "its output isn't W x + b: something changes its weights or its output while it runs"
    return ""


def _is_linear(rows: LayerRows, inputs: Tensor, output: Tensor, count: int, n_samples: int) -> bool:
    positions = torch.linspace(0, count - 1, min(count, 16), device=output.device).long().expand(n_samples, -1)
    dtype = torch.promote_types(torch.float32, rows.weight.dtype)
    with torch.autocast(output.device.type, enabled=False), full_precision():
        try:
            patches = rows.input_rows(inputs, positions).to(dtype)
            given = rows.output_rows(output, positions).to(dtype)
        except (RuntimeError, IndexError):  # another form of inputs or of outputs than such a layer has
            return False
        matrix = rows.matrix().to(dtype)
        expected = torch.einsum("rgd,god->rgo", patches, matrix).flatten(1)
        size = torch.einsum("rgd,god->rgo", patches.abs(), matrix.abs()).flatten(1)
        if rows.bias is not None:
            expected, size = expected + rows.bias.detach().to(dtype), size + rows.bias.detach().to(dtype).abs()
    eps = torch.finfo(output.dtype).eps if output.is_floating_point() else 1.0
    if output.is_cuda:
        eps = max(eps, 2.0**-20)  # cuDNN may convolve by Winograd's or Fourier transforms
    return bool(((given - expected).abs() <= 64 * eps * size + 1e-30).all())


def _layers(model: nn.Module, readers: Sequence[Reader], told: dict[str, Any]) -> list[Layer]:
    modules, by_name = dict(model.named_modules()), {reader.module: reader for reader in readers}
    layers = []
    for name in told["order"]:
        if name in told["reasons"]:
            continue
        rows = layer_rows(modules[name], by_name[name].input_axis)
        assert isinstance(rows, LayerRows)
        norm = modules.get(told["norms"].get(name, "")) if name in told["norms"] else None
        assert norm is None or isinstance(norm, _BatchNorm)
        skip = told["skips"].get(name)
        kept = torch.tensor(list(by_name[name].kept_outputs), device="cpu")
        layers.append(Layer(name, rows, kept, norm, None if skip is None else (skip[0], skip[1])))
    return layers


def _finished(layer: Layer, sums: Sums, n_samples: int, processes: Processes) -> LayerRefit:
    """Fit a layer and write it."""
    first, second, weight = processes.sum(layer.spread.total(3))
    mean = first / weight
    variance = max(float((second / weight - mean.square()).sum()), 1e-300)
    fit = sums.fit(RIDGES)
    before = fit.before / variance
    inputs, rows = layer.rows.width, sums.rows
    if not math.isfinite(fit.before):
        return LayerRefit(layer.name, inputs, rows, "", before, before, "its inputs or outputs are not finite")
    enough = math.ceil(n_samples * _ROWS * inputs / max(rows, 1)) if rows < _ROWS * inputs else 0
    rounding = inputs * torch.finfo(layer.rows.weight.dtype).eps ** 2  # of a sum of products: there is nothing to refit
    if fit.change is None or before <= rounding:
        why = f"{_NOT_BETTER}: {rows} rows for {inputs} inputs" if enough else _NOT_BETTER
        return LayerRefit(layer.name, inputs, rows, "", before, before, why, enough)
    layer.write(fit)
    return LayerRefit(layer.name, inputs, rows, str(fit.ridge), before, fit.after / variance, enough=enough)


@contextmanager
def _changed(dense: nn.Module, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Let tensors be changed: on any error they come back, and the dense network keeps its own numbers in any case."""
    before = [tensor.detach().clone() for tensor in tensors]
    addresses = {tensor.data_ptr() for tensor in tensors} - {0}
    held: list[tuple[Any, str, Tensor]] = []
    copies: dict[int, Tensor] = {}
    for module in dense.modules():
        stores: tuple[Any, ...] = (module._parameters, module._buffers)
        for own in stores:
            for name, tensor in own.items():
                if tensor is not None and tensor.data_ptr() in addresses:
                    held.append((own, name, tensor))

    def restore() -> None:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.detach().copy_(value)
        for own, name, tensor in held:
            own[name] = tensor

    try:
        for own, name, tensor in held:
            if id(tensor) not in copies:
                copy = tensor.detach().clone()
                if isinstance(tensor, nn.Parameter):
                    copy = nn.Parameter(copy, requires_grad=tensor.requires_grad)
                    copy.grad = tensor.grad
                copies[id(tensor)] = copy
            own[name] = copies[id(tensor)]
        yield
    except BaseException:
        insist(restore)
        raise
