"""A pretend accelerator: values lie on the CPU, under the name of another device and with its manners.

It stands on torch's Python backend for other devices. As on a GPU, tensors of two devices don't go together, a CPU
generator doesn't draw there, and a copy to the CPU that nobody waited for holds zeros until the next wait. As on MPS,
float64 is refused. As on CUDA, nothing runs any more after an index or a label that can't be. Waits and copies are
counted, each with the line of fairtrim that caused it.
"""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Accelerator", "PretendAccelerator", "registered"]

_NAME = "pretend"
_DEVICE = torch.device("cpu")  # until registered
_aten = torch.ops.aten
_ROOT = str(Path(__file__).resolve().parent.parent)
# what answers with a number or a size that the CPU needs
_ANSWERS = (
    _aten.nonzero, _aten.masked_select, _aten._unique2, _aten.unique_dim, _aten.unique_consecutive, _aten.equal,
    _aten.is_nonzero,
)  # fmt: skip
# what CUDA refuses under torch.use_deterministic_algorithms(True), of numbers that are no integers
_WITHOUT_ORDER = (_aten.cumsum, _aten.histc, _aten.nll_loss2d_forward, _aten.median.dim, _aten.kthvalue)
_INDEXED = (_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_)
# what kernels of CUDA assert, after which the process can do nothing there any more, and the CPU raises in words
_ASSERTED = ("out of bounds", "index out of range", "target out of range", "between 0 and 1")
_ASSERT = "device-side assert triggered"


class Accelerator:
    """A device that tests move networks and batches to; results are compared with the CPU's."""

    #: What single precision leaves of a result, summed in another order: shares of the largest number.
    precision = 1e-4

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def check_same(self, actual: Any, expected: Any, *, other_kernels: bool = False) -> None:
        """Check tensors, arrays and numbers, in dicts and lists too, against the CPU's.

        Args:
            actual: What came out there; what is public lies on the CPU already.
            expected: What the CPU gives.
            other_kernels: torch computes some layers by other kernels there (attention, linear layers of 3 axes).
        """
        found, wanted = tree_leaves(actual), tree_leaves(expected)
        assert len(found) == len(wanted)
        for left, right in zip(found, wanted, strict=True):
            if isinstance(right, np.ndarray) and right.dtype.kind not in "biufc":  # names
                left, right = left.tolist(), right.tolist()
            if not isinstance(right, Tensor | np.ndarray | float):
                assert left == right
                continue
            one, other = torch.as_tensor(left).detach().cpu(), torch.as_tensor(right).detach().cpu()
            largest = float(other.double().nan_to_num(0, 0, 0).abs().max()) if other.numel() else 0.0
            atol = self._share(other_kernels) * largest
            torch.testing.assert_close(one, other, rtol=0, atol=atol, equal_nan=True, check_dtype=False)

    def _share(self, other_kernels: bool) -> float:
        return self.precision


class PretendAccelerator(Accelerator):
    """One pretend device, and what happened on it; its results are those of the CPU to the last bit.

    Attributes:
        waits: How often the CPU waited for the device, by kind and line.
        copies: How often a tensor went there, by kind (``"blocking"``, ``"non_blocking"``, ``"index"``) and line.
        float64: How often float64 came up, by line.
        refuses_float64: Whether that is an error, as on MPS.
        asserted: Whether a kernel met an index or a label that can't be; as on CUDA nothing runs there any more.
    """

    def __init__(self) -> None:
        super().__init__(_DEVICE)
        self.refuses_float64 = self.asserted = False
        self.generator = torch.Generator()  # draws without a generator of their own
        self.generators: dict[int, torch.Generator] = {}  # by address, and alive
        self._late: list[tuple[Tensor, Tensor]] = []
        self.forget()

    def _share(self, other_kernels: bool) -> float:
        return self.precision if other_kernels else 0.0

    def forget(self) -> None:
        """Count anew."""
        self.waits: Counter[tuple[str, str]] = Counter()
        self.copies: Counter[tuple[str, str]] = Counter()
        self.float64: Counter[str] = Counter()

    def told(self) -> str:
        """What was counted, a line each, the most frequent first."""
        rows = [
            f"{count:6} {what} {kind:24} {line}"
            for what, counted in (("wait", self.waits), ("copy", self.copies))
            for (kind, line), count in counted.most_common()
        ]
        return "\n".join([*rows, *(f"{count:6} float64 {line}" for line, count in self.float64.most_common())])

    @contextmanager
    def running(self) -> Iterator[PretendAccelerator]:
        """Let the device be there for the length of the block."""
        global _RUNNING
        own, lift = torch.Generator, torch._C._only_lift_cpu_tensors()
        pin, pinned, synchronize = Tensor.pin_memory, Tensor.is_pinned, torch.accelerator.synchronize
        torch._C._set_only_lift_cpu_tensors(True)
        _RUNNING, torch.Generator = self, _GeneratorOfAnyDevice  # type: ignore[misc]
        Tensor.pin_memory, Tensor.is_pinned = _pin_memory, _is_pinned  # type: ignore[method-assign, assignment]
        torch.accelerator.synchronize = lambda device=None, /: self.wait("synchronize")
        try:
            with _Mode():
                yield self
            self._arrive()
        finally:
            torch._C._set_only_lift_cpu_tensors(lift)
            _RUNNING, torch.Generator = None, own  # type: ignore[misc]
            Tensor.pin_memory, Tensor.is_pinned = pin, pinned  # type: ignore[method-assign]
            torch.accelerator.synchronize = synchronize

    def wait(self, kind: str) -> None:
        self._arrive()
        self.waits[kind, _line()] += 1

    def _arrive(self) -> None:
        for tensor, value in self._late:
            tensor.copy_(value)
        self._late.clear()

    def download(self, value: Tensor, *, waits: bool) -> Tensor:
        if waits:
            self.wait("to the CPU")
            return value
        arriving = torch.zeros_like(value)
        self._late.append((arriving, value))
        return arriving

    def wrap(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, _PretendTensor):
            return value
        if value.dtype in (torch.float64, torch.complex128):
            self.float64[_line()] += 1
            if self.refuses_float64:
                raise TypeError(f"the pretend device doesn't support float64 ({_line()})")
        return _PretendTensor(value)


_RUNNING: PretendAccelerator | None = None


def _running() -> PretendAccelerator:
    if _RUNNING is None:
        raise RuntimeError("a tensor of the pretend device was used outside of the fixture")
    return _RUNNING


def _line() -> str:
    frame = sys._getframe()
    while not (name := frame.f_code.co_filename).startswith((f"{_ROOT}/plugins", f"{_ROOT}/adapters")):
        if frame.f_back is None:
            return "a test, or torch"
        frame = frame.f_back
    return f"{name.removeprefix(_ROOT + '/')}:{frame.f_lineno} {linecache.getline(name, frame.f_lineno).strip()[:80]}"


class _PretendTensor(Tensor):
    inner: Tensor
    __module__ = "torch"  # a tensor of another library would be taken for a packed one

    @staticmethod
    def __new__(cls, inner: Tensor) -> _PretendTensor:
        made: _PretendTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=_DEVICE, requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"pretend({self.inner!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:
            _running().wait("tolist")
            return args[0].detach().inner.tolist()
        if func is Tensor.numpy and (kwargs or {}).get("force"):
            _running().wait("numpy")
            return args[0].detach().inner.numpy()
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert a tensor of the pretend device to numpy; use Tensor.cpu() first")
        if func is Tensor.data_ptr:
            return args[0].detach().inner.data_ptr()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _AnyGenerator(type(torch._C.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, torch._C.Generator)


class _PretendGenerator(torch._C.Generator):
    """The generator of a CPU that says it is the device's; torch hands on only its address."""

    def __init__(self) -> None:
        _running().generators[self._cdata] = self

    @property
    def device(self) -> torch.device:
        return _DEVICE


class _GeneratorOfAnyDevice(torch._C.Generator, metaclass=_AnyGenerator):
    def __new__(cls, device: Any = "cpu") -> Any:
        return _PretendGenerator() if torch.device(device).type == _NAME else torch._C.Generator(device)


def _pin_memory(self: Tensor, device: Any = None) -> Tensor:
    pinned = self.clone()
    pinned._is_pinned_in_pretence = True  # type: ignore[attr-defined]
    return pinned


def _is_pinned(self: Tensor, device: Any = None) -> bool:
    return getattr(self, "_is_pinned_in_pretence", False)


def _value(value: Any) -> Any:
    return value.inner if isinstance(value, _PretendTensor) else value


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Those among the arguments of an operator; torch's own walk over any tree takes half of the time."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(entry)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _mapped(function, entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([_mapped(function, entry) for entry in value])
    return function(value)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = list(_tensors_in((args, kwargs)))
    there = any(isinstance(tensor, _PretendTensor) for tensor in tensors)
    wanted = kwargs.get("device")
    to_device = wanted is not None and torch.device(wanted).type == _NAME
    if not there and not to_device:
        return func(*args, **kwargs)
    accelerator, packet = _running(), func.overloadpacket
    if accelerator.asserted:
        raise RuntimeError(f"{_ASSERT} earlier")
    if func is _aten._to_copy.default:
        return _copied(accelerator, args[0], kwargs)
    if func is _aten._local_scalar_dense.default:
        accelerator.wait("item")
        return func(_value(args[0]))
    if packet in _ANSWERS:
        accelerator.wait(packet.__name__)
    _check(accelerator, func, args, kwargs, tensors, there)
    inner_args, inner_kwargs = _mapped(_value, (args, kwargs))
    if packet is _aten._efficientzerotensor:  # of forward-mode derivatives; it holds no memory
        func = _aten.zeros.default
    if to_device:
        inner_kwargs["device"] = torch.device("cpu")
        if inner_kwargs.pop("pin_memory", False):
            raise RuntimeError("only tensors of the CPU can be pinned")
    if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
        with _drawing_from(accelerator.generator):
            out = func(*inner_args, **inner_kwargs)
    else:
        try:
            out = func(*inner_args, **inner_kwargs)
        except (IndexError, RuntimeError) as error:
            if not any(told in str(error) for told in _ASSERTED):
                raise
            accelerator.asserted = True
            raise RuntimeError(f"{_ASSERT} in {func} ({_line()}): {error}") from error
    if not func._schema.is_mutable:
        return _mapped(accelerator.wrap, out)
    outer = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, _PretendTensor)}
    return _mapped(lambda value: outer.get(id(value)) if id(value) in outer else accelerator.wrap(value), out)


def _copied(accelerator: PretendAccelerator, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
    target = torch.device(kwargs.get("device") or source.device)
    options = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory", "non_blocking")}
    copied = _aten._to_copy.default(_value(source), **options)
    if target.type != _NAME:
        return accelerator.download(copied, waits=not kwargs.get("non_blocking", False))
    if not isinstance(source, _PretendTensor):
        accelerator.copies["non_blocking" if kwargs.get("non_blocking") else "blocking", _line()] += 1
    wrapped: Tensor = accelerator.wrap(copied)
    return wrapped


def _check(
    accelerator: PretendAccelerator, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], there: bool
) -> None:
    """Refuse what the device would, and count what costs a wait or a copy."""
    packet = func.overloadpacket
    if packet is _aten.copy_:
        target, source = args[:2]
        if isinstance(source, _PretendTensor) and not isinstance(target, _PretendTensor):
            accelerator.wait("copy_ to the CPU")
        elif isinstance(target, _PretendTensor) and not isinstance(source, _PretendTensor):
            accelerator.copies["non_blocking" if True in args[2:] else "blocking", _line()] += 1
        return
    if packet in _INDEXED:
        for index in (index for index in args[1] if index is not None):
            if index.dtype in (torch.bool, torch.uint8):
                accelerator.wait("index by a mask")
            if isinstance(args[0], _PretendTensor) and not isinstance(index, _PretendTensor):
                accelerator.copies["index", _line()] += 1
            elif isinstance(index, _PretendTensor) and not isinstance(args[0], _PretendTensor):
                raise RuntimeError(f"indices are on the pretend device and the indexed tensor is not ({_line()})")
        return
    if packet is _aten.repeat_interleave and func._overloadname != "self_int" and kwargs.get("output_size") is None:
        accelerator.wait("repeat_interleave")
    if there and any(tensor.dim() > 0 and not isinstance(tensor, _PretendTensor) for tensor in tensors):
        raise RuntimeError(f"expected all tensors on one device, found pretend:0 and cpu, in {func} ({_line()})")
    ordered = torch.are_deterministic_algorithms_enabled()
    if ordered and {func, packet} & {*_WITHOUT_ORDER} and args[0].is_floating_point():
        raise RuntimeError(f"{func} has no deterministic form on the pretend device ({_line()})")
    generator = kwargs.get("generator")
    if generator is not None and generator._cdata not in accelerator.generators:
        raise RuntimeError(f"expected a generator of the pretend device, found one of the CPU, in {func} ({_line()})")


@contextmanager
def _drawing_from(generator: torch.Generator) -> Iterator[None]:
    before = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(before)


class _Module:
    """What torch asks of ``torch.pretend``."""

    @staticmethod
    def is_available() -> bool:
        return _RUNNING is not None

    is_initialized = is_available

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def device_count() -> int:
        return 1 if _RUNNING is not None else 0

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        if _RUNNING is not None:
            _RUNNING.generator.manual_seed(seed)

    @staticmethod
    def get_rng_state(device: Any = None) -> Tensor:
        return _running().generator.get_state()

    @staticmethod
    def set_rng_state(state: Tensor, device: Any = None) -> None:
        _running().generator.set_state(state)

    @staticmethod
    def synchronize(device: Any = None) -> None:
        _running().wait("synchronize")

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def registered() -> bool:
    """Make the device known to torch, once; whether this torch can."""
    global _DEVICE
    register: Callable[..., None] | None = getattr(
        torch.utils.backend_registration, "_setup_privateuseone_for_python_backend", None
    )
    if register is None:
        return False
    if _DEVICE.type != _NAME:
        hook = torch._C._acc.PrivateUse1Hooks  # type: ignore[attr-defined]
        answers = {"is_available": lambda self: _RUNNING is not None, "is_built": lambda self: True}
        hooks = type("_Hooks", (hook,), {**answers, "has_primary_context": lambda self, index: True})
        register(_NAME, backend_module=_Module(), hook=hooks())
        _DEVICE = torch.device(f"{_NAME}:0")
    return True
