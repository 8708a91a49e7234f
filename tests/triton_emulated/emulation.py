# SPDX-License-Identifier: Apache-2.0
"""The two ways in which Triton kernels run here, and what tests need to know of them.

ttsem:        `python -m pytest tests/triton_emulated` runs the compiled IR on CPU tensors; accesses out of bounds and
              races between programs raise KernelFault at the kernel's line
interpreter:  `TRITON_INTERPRET=1 python -m pytest tests/triton_emulated` runs the Python source in numpy,
              repaired by interpreter.py
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from pyspec.contract import OPS, Case

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

needs_ttsem = pytest.mark.skipif(
    INTERPRETED,
    reason="the interpreter runs programs one by one and checks no address: only ttsem sees it",
)


@functools.cache
def start() -> None:
    """From here on this process runs Triton kernels on CPU tensors. `ttsem.sanitize pytest` does the same, but in its own process
    alone, not in those that pytest-xdist starts."""
    if INTERPRETED:
        import interpreter

        return interpreter.repair()
    try:
        from ttsem import sanitize
    except ImportError as error:
        raise pytest.UsageError(
            f"Triton kernels run here with TRITON_INTERPRET=1 or under ttsem: {error}"
        ) from None
    session = sanitize.session(on_unchecked=_unchecked)
    session.__enter__()
    atexit.register(session.__exit__, None, None, None)


def _unchecked() -> None:
    """A launch with more accesses than ttsem keeps, in ranges that meet, was run and not checked for races."""
    raise AssertionError("the launch is too large to be checked for races: take a smaller case")


@contextmanager
def faults(kind: str) -> Iterator[None]:
    """The block must raise ttsem's fault of a kind: oob_read, oob_write or race."""
    from ttsem.sanitize import KernelFault

    with pytest.raises(KernelFault) as caught:
        yield
    assert caught.value.fault.kind == kind, str(caught.value)


def supported(name: str, limit: Callable[..., str | None] | None = None) -> list[Any]:
    """The specification's cases of an op that its kernel does not refuse, as pytest parameters."""
    spec = OPS[name]
    assert spec.cases is not None
    return [
        pytest.param(case, id=case.name)
        for case in spec.cases()
        if limit is None or limit(spec.bind(case.args), *case.args, **case.kwargs) is None
    ]


def copied(case: Case) -> list[Any]:
    """The case's arguments, tensors copied, so that an op may write into them."""
    return [arg.clone() if isinstance(arg, Tensor) else arg for arg in case.args]


def same_bits(got: Tensor, want: Tensor) -> None:
    """Equal dtype, shape and bits (a NaN equals itself)."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    raw = [x.contiguous().flatten().view(torch.uint8) for x in (got, want)]
    wrong = (raw[0] != raw[1]).nonzero()
    assert not len(wrong), f"{len(wrong)} of {raw[0].numel()} bytes differ, the first at {wrong[0].item()}"


def no_worse(got: Tensor, low: Tensor, exact: Tensor, factor: float = 2.0) -> None:
    """The largest error to the float64 result is at most `factor` times that of the low-precision
    computation, and one unit in the last place of the largest result (what the low-precision computation
    may have been spared)."""
    assert got.shape == exact.shape
    if not got.numel():
        return
    assert got.isfinite().all()
    error, known = (got.double() - exact).abs().max().item(), (low.double() - exact).abs().max().item()
    allowed = factor * known + torch.finfo(low.dtype).eps * exact.abs().max().item()
    assert error <= allowed, f"error {error:.3g}, of the low precision {known:.3g}"
