# SPDX-License-Identifier: Apache-2.0
"""Which backends are there, why others are not, and which one would run a call."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyspec import env
from pyspec.contract import OPS, OpSpec
from pyspec.errors import UnsupportedError

native: Any = None  # the module pyspec._C once loaded
_native_missing = ""  # why it is not


def load_native() -> None:
    """Load the compiled kernels, which registers them with torch; remember the reason if that is not possible."""
    global native, _native_missing
    if env.disable_extensions():
        _native_missing = "PYSPEC_SPEC_ONLY=1 is set"
        return
    try:
        native = importlib.import_module("pyspec._C")
        native.cpu_isa()
    except ImportError as error:
        _native_missing = f"pyspec._C is not compiled or not loadable: {error}"


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
    spec = OPS[op]
    sizes = spec.bind(args)
    device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
    options = tuple(
        Option(backend, reason(spec, device, sizes, args, kwargs))
        for backend, reason in (("cuda", _cuda_reason), ("triton", _triton_reason), ("cpu", _cpu_reason))
    ) + (Option("spec", ""),)
    return Explanation(op, next(o.backend for o in options if not o.reason), options)


def call(spec: OpSpec, args: tuple[Any, ...], kwargs: dict[str, Any], backend: str | None) -> Any:
    """Run an op through torch's dispatcher, or on one named backend, or refuse with every backend's reason."""
    if backend is None:
        return getattr(torch.ops.pyspec, spec.name)(*args, **kwargs)
    if backend == "spec":
        return spec.run(*args, **kwargs)
    explanation = explain(spec.name, *args, **kwargs)
    for option in explanation.options:
        if option.backend == backend and not option.reason:
            return getattr(torch.ops.pyspec, spec.name)(*args, **kwargs)
    raise UnsupportedError(f"{spec.name}: backend {backend!r} cannot run this call\n{explanation}")


def _has_kernel(op: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"pyspec::{op}", key)


def _cpu_reason(spec: OpSpec, device: str, sizes: dict[str, int], args: tuple, kwargs: dict) -> str:
    if native is None:
        return _native_missing or "the package is not initialised"
    if not _has_kernel(spec.name, "CPU"):
        return "no CPU kernel of this op is compiled"
    if device != "cpu":
        return f"tensors are on {device}"
    limit = spec.limits.get("cpu")
    return (limit(sizes, *args, **kwargs) or "") if limit else ""


def _cuda_reason(spec: OpSpec, device: str, sizes: dict[str, int], args: tuple, kwargs: dict) -> str:
    if native is None or not native.with_cuda:
        return "this build has no CUDA kernels" if native is not None else _native_missing
    if not _has_kernel(spec.name, "CUDA"):
        return "no CUDA kernel of this op is compiled"
    return "" if device == "cuda" else f"tensors are on {device}"


def _triton_reason(spec: OpSpec, device: str, sizes: dict[str, int], args: tuple, kwargs: dict) -> str:
    kernels = importlib.util.find_spec(
        "pyspec.kernels"
    )  # absent when run from a source tree that is not installed
    if kernels is None or importlib.util.find_spec(f"pyspec.kernels.{spec.name}") is None:
        return "no Triton kernel of this op exists"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return "" if device == "cuda" else f"tensors are on {device}"
