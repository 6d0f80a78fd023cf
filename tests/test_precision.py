"""Full precision inside a block, whichever settings of torch said otherwise, and all of these back afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fairtrim.precision import full_precision

backends: Any = torch.backends
NEWER = hasattr(backends.cudnn, "conv")

CASES = {
    "default": "",
    "older": "b.cuda.matmul.allow_tf32 = True; b.cudnn.allow_tf32 = True",
    "older, off": "b.cuda.matmul.allow_tf32 = False; b.cudnn.allow_tf32 = False",
    "medium": "torch.set_float32_matmul_precision('medium')",
}
NEWER_CASES = {
    "newer": "b.cudnn.conv.fp32_precision = 'tf32'; b.cuda.matmul.fp32_precision = 'tf32'",
    "newer, off": "b.cudnn.conv.fp32_precision = 'ieee'; b.cuda.matmul.fp32_precision = 'ieee'",
    "everything": "b.fp32_precision = 'tf32'",
    "cpu": "b.mkldnn.matmul.fp32_precision = 'bf16'",
    "both": "b.cuda.matmul.allow_tf32 = True; b.cuda.matmul.fp32_precision = 'ieee'",
}


def _older() -> dict[str, Callable[[], Any]]:
    return {
        "convolutions": lambda: backends.cudnn.allow_tf32,
        "products": lambda: backends.cuda.matmul.allow_tf32,
        "precision": torch.get_float32_matmul_precision,
    }


def _newer() -> dict[str, str]:
    if not NEWER:
        return {}
    operations = {
        "matmul": backends.cuda.matmul, "conv": backends.cudnn.conv, "rnn": backends.cudnn.rnn,
        "matmul of the CPU": backends.mkldnn.matmul, "conv of the CPU": backends.mkldnn.conv,
        "rnn of the CPU": backends.mkldnn.rnn,
    }  # fmt: skip
    return {name: operation.fp32_precision for name, operation in operations.items()}


def _everything() -> dict[str, Any]:
    found: dict[str, Any] = dict(_newer())
    for name, read in _older().items():
        try:
            found[name] = read()
        except RuntimeError:  # settings of both kinds
            found[name] = "unreadable"
    return found


@pytest.fixture
def settings() -> Iterator[None]:
    """Put torch's own settings back, as far as these can be."""
    yield
    if NEWER:
        backends.fp32_precision = "none"
        for operation in (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn):
            operation.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize("case", [*CASES, *(NEWER_CASES if NEWER else ())])
@pytest.mark.usefixtures("settings")
def test_all_is_full_inside_and_comes_back(case: str) -> None:
    exec((CASES | NEWER_CASES)[case], {"b": backends, "torch": torch})
    before = _everything()
    with pytest.raises(KeyError), full_precision():
        inside = _everything()
        raise KeyError
    assert {inside[name] for name in _newer()} <= {"ieee", "none"}
    full = {"convolutions": False, "products": False, "precision": "highest"}
    for name, value in full.items():
        # what the older settings can tell before, they can tell inside; unless newer ones were made
        if before[name] != "unreadable" and case not in NEWER_CASES:
            assert inside[name] == value
    assert _everything() == before


@pytest.mark.skipif(not NEWER, reason="needs a torch with a precision of each operation")
@pytest.mark.usefixtures("settings")
def test_what_was_said_of_all_is_still_said_of_all() -> None:
    backends.mkldnn.matmul.fp32_precision = backends.cuda.matmul.fp32_precision = "none"
    backends.fp32_precision = "tf32"
    with full_precision():
        pass
    backends.fp32_precision = "none"
    assert backends.mkldnn.matmul.fp32_precision == "none"
    assert backends.cuda.matmul.fp32_precision == "none"


@pytest.mark.usefixtures("settings")
def test_of_two_threads_the_last_puts_everything_back() -> None:
    """Each leaves after the other came, so that what it found on entering were the other's settings."""
    torch.set_float32_matmul_precision("high")
    before, came, may_leave = _everything(), threading.Event(), threading.Event()

    def other() -> None:
        with full_precision():
            came.set()
            may_leave.wait(10)

    with full_precision():
        thread = threading.Thread(target=other)
        thread.start()
        came.wait(10)
    assert torch.get_float32_matmul_precision() == "highest"
    may_leave.set()
    thread.join()
    assert _everything() == before
