# SPDX-License-Identifier: Apache-2.0
"""Which backends are there, why others are not, and which one would run a call.

"cuda" and "cpu" are the compiled kernels, "triton" those of pyspec.kernels, "spec" the specification. "cuda-emulated" and
"triton-emulated" run the sources of the first and the second on CPU tensors, where a test has registered an emulator.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pyspec import env
from pyspec.contract import LIBRARY, OPS, OpSpec
from pyspec.errors import UnsupportedError

BACKENDS = ("cuda", "triton", "cpu", "spec")  # in the order of preference
EMULATED = ("cuda-emulated", "triton-emulated")  # never chosen, only named
KERNEL_FILES = {
    "add_rms_norm": "rms_norm",
    "rms_norm_quantize": "rms_norm",
    "gelu_mul": "silu_mul",
}  # of Triton kernels in a family's file
# Tensors whose values a contract's check may read: indices, lengths and masks of any rank, parameters that are vectors.
_INDICES = (torch.int32, torch.int64, torch.bool)

native: Any = None  # the module pyspec._C once loaded
_native_missing = ""  # why it is not
_emulators: dict[str, tuple[Callable[..., Any], Callable[[str], str]]] = {}
_on_cuda_by_triton: set[str] = set()  # ops whose kernel on CUDA tensors is Triton's


def load_native() -> None:
    """Load the compiled kernels, which registers them with torch; remember the reason if that is not possible.

    On CUDA tensors, an op without a compiled kernel is then its Triton kernel, if there is one.
    """
    global native, _native_missing
    if env.disable_extensions():
        _native_missing = "PYSPEC_SPEC_ONLY=1 is set"
        return
    try:
        native = importlib.import_module("pyspec._C")
        native.cpu_isa()
    except ImportError as error:
        _native_missing = f"pyspec._C is not compiled or not loadable: {error}"
    for op in OPS:
        if not _has_kernel(op, "CUDA") and not _triton_missing(op):
            LIBRARY.impl(op, partial(_run_triton, op), "CUDA")
            _on_cuda_by_triton.add(op)


def register_emulator(
    backend: str, call: Callable[..., Any], missing: Callable[[str], str] = lambda op: ""
) -> None:
    """Make `call(op, *args, **kwargs)` the emulated backend of that name, for CPU tensors.

    missing(op) says why the emulator has no such op, empty if it has.
    """
    if backend not in EMULATED:
        raise ValueError(f"register_emulator: backend must be {'|'.join(EMULATED)}, got {backend!r}")
    _emulators[backend] = call, missing


@dataclass(frozen=True)
class Option:
    """One backend's answer to one call: `reason` says why not, empty if it would run."""

    backend: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """Which backend would run a call, and why the ones before it would not."""

    op: str
    chosen: str
    options: tuple[Option, ...]

    def __str__(self) -> str:
        lines = [f"{self.op}: runs on {self.chosen}"]
        return "\n".join(lines + [f"  {o.backend}: {o.reason or 'can run'}" for o in self.options])


def num_threads() -> int:
    """Threads that CPU kernels use (torch's where nothing is compiled)."""
    return native.num_threads() if native is not None else torch.get_num_threads()


def set_num_threads(threads: int) -> None:
    """Set the threads of the CPU kernels and of torch; results do not depend on it."""
    if threads < 1:
        raise ValueError(f"set_num_threads: threads must be >= 1, got {threads}")
    torch.set_num_threads(threads)
    if native is not None:
        native.set_num_threads(threads)


def explain(op: str, *args: Any, **kwargs: Any) -> Explanation:
    """Say which backend would run `op(*args, **kwargs)` and why the others would not; nothing is run.

    Raises ValueError for an unknown op, and what the op itself raises for bad arguments.
    """
    if op not in OPS:
        raise ValueError(f"explain: op must be one of {'|'.join(sorted(OPS))}, got {op!r}")
    args = complete(op, args)
    return _explain(OPS[op], OPS[op].bind(args), args, kwargs)


def _explain(
    spec: OpSpec, sizes: dict[str, int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Explanation:
    options = tuple(
        Option(backend, why_not(backend, spec, sizes, args, kwargs)) for backend in BACKENDS + EMULATED
    )
    return Explanation(spec.name, next(o.backend for o in options if not o.reason), options)


def call(spec: OpSpec, args: tuple[Any, ...], kwargs: dict[str, Any], backend: str | None) -> Any:
    """Run an op through torch's dispatcher, or on one named backend, or refuse with every backend's reason.

    Wherever the kernel cannot check values itself (CUDA, Triton), the specification checks them first.
    """
    if backend is None and not _on_cuda(args):
        return getattr(torch.ops.pyspec, spec.name)(*args, **kwargs)
    if backend == "spec":
        return spec.run(*args, **kwargs)
    sizes = spec.bind(args, kwargs)
    explanation = _explain(spec, sizes, args, kwargs)
    backend = explanation.chosen if backend is None else backend
    if not any(option.backend == backend and not option.reason for option in explanation.options):
        raise UnsupportedError(f"{spec.name}: backend {backend!r} cannot run this call\n{explanation}")
    if backend != "cpu":
        check_values(spec, sizes, args, kwargs)
    return kernel(spec.name, backend)(*args, **kwargs)


def complete(op: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with None for the optional tensors that are not given at the end (the halves of a plan take them all)."""
    return OPS[op].complete(args) if op in OPS else args


def kernel(op: str, backend: str) -> Callable[..., Any]:
    """The op on one backend as a function of all its tensors and its options: values unchecked, nothing is waited for."""
    if backend == "spec":
        return OPS[op].reference
    if backend == "triton" and op not in _on_cuda_by_triton:
        return partial(_run_triton, op)
    if backend in EMULATED:
        return partial(_emulators[backend][0], op)
    return getattr(torch.ops.pyspec, op).default


def check_values(spec: OpSpec, sizes: dict[str, int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The specification's check of values, on host copies; not while a CUDA graph is captured, which nothing may read."""
    if spec.check is None or (_on_cuda(args) and torch.cuda.is_current_stream_capturing()):
        return
    spec.check(sizes, *(_on_host(arg) for arg in args), **kwargs)


def missing(backend: str, op: str) -> str:
    """Why a backend has no such op; empty if it has. Whether it can run a call is another question: why_not."""
    return _MISSING[backend](op) if backend in _MISSING else _emulator_missing(backend, op)


def _on_cuda(args: tuple[Any, ...]) -> bool:
    return any(isinstance(arg, Tensor) and arg.device.type == "cuda" for arg in args)


def _on_host(arg: Any) -> Any:
    small = isinstance(arg, Tensor) and (
        arg.dtype in _INDICES or (arg.dim() == 1 and arg.is_floating_point())
    )
    return arg.cpu() if small else arg


def why_not(
    backend: str, spec: OpSpec, sizes: dict[str, int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """Why this backend cannot run this call; empty if it can."""
    if backend == "spec":
        return ""
    if reason := missing(backend, spec.name):
        return reason
    device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
    if device != ("cuda" if backend in ("cuda", "triton") else "cpu"):
        return f"tensors are on {device}"
    kind = backend.removesuffix("-emulated")
    limit = _triton_limit(spec.name) if kind == "triton" else spec.limits.get(kind)
    return (limit(sizes, *args, **kwargs) or "") if limit else ""


def _has_kernel(op: str, key: str) -> bool:
    """Whether a compiled kernel is registered under this dispatch key."""
    by_triton = key == "CUDA" and op in _on_cuda_by_triton
    return not by_triton and torch._C._dispatch_has_kernel_for_dispatch_key(f"pyspec::{op}", key)


def _cpu_missing(op: str) -> str:
    if native is None:
        return _native_missing or "the package is not initialised"
    return "" if _has_kernel(op, "CPU") else "no CPU kernel of this op is compiled"


def _cuda_missing(op: str) -> str:
    if native is None or not native.with_cuda:
        return "this build has no CUDA kernels" if native is not None else _native_missing
    return "" if _has_kernel(op, "CUDA") else "no CUDA kernel of this op is compiled"


@lru_cache
def _triton_missing(op: str) -> str:
    if importlib.util.find_spec("pyspec.kernels") is None:
        return "pyspec.kernels is not there: the package runs from a source tree that is not installed"
    if importlib.util.find_spec(f"pyspec.kernels.{KERNEL_FILES.get(op, op)}") is None:
        return "no Triton kernel of this op exists"
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


_MISSING: dict[str, Callable[[str], str]] = {
    "cuda": _cuda_missing,
    "triton": _triton_missing,
    "cpu": _cpu_missing,
}


def _emulator_missing(backend: str, op: str) -> str:
    if backend not in _emulators:
        return "no emulator is registered (tests do)" if backend in EMULATED else "there is no such backend"
    return (_triton_missing(op) if backend == "triton-emulated" else "") or _emulators[backend][1](op)


def _triton_module(op: str) -> ModuleType:
    return importlib.import_module(f"pyspec.kernels.{KERNEL_FILES.get(op, op)}")


def _triton_limit(op: str) -> Callable[..., str | None] | None:
    return getattr(_triton_module(op), "limit", None)


def _run_triton(op: str, *args: Any, **kwargs: Any) -> Any:
    """The Triton kernel behind shapes, dtypes and limits, which it does not check itself."""
    args = complete(op, args)
    sizes, limit = OPS[op].bind(args, kwargs), _triton_limit(op)
    if limit and (reason := limit(sizes, *args, **kwargs)):
        raise UnsupportedError(f"{op}: backend 'triton' cannot run this call: {reason}")
    return getattr(_triton_module(op), op)(*args, **kwargs)
