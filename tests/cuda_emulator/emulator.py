# SPDX-License-Identifier: Apache-2.0
"""Calls the CUDA ops on CPU tensors, through csrc/cuda/bind.cpp and the kernels' own sources.

    emulator.call("rms_norm", x, weight, eps=1e-5)                          arguments and results of the torch op
    emulator.call("rms_norm", x, weight, eps=1e-5, checked=True, bug=2)     shadow-checked, with planted bug 2
    with emulator.schedule(order="reverse", copies="late", seed=3): ...     the order of threads, when cp.async lands

A call whose kernel does something wrong raises EmulatorError with everything found.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyspec.contract import OPS

from . import build, places
from .build import Variant

ORDERS = ("forward", "reverse", "random", "random_warps")
COPIES = ("early", "late", "random")
SMEM_LIMITS = {
    "sm_80": 166912,
    "sm_90": 232448,
    "sm_100": 232448,
}  # bytes a block may have, CUDA programming guide
NAMESPACE = "pyspec_cuda_emulated"


class EmulatorError(RuntimeError):
    """What was wrong with the kernels of a call: one line a finding, `kind: file:line: text`."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings))
        self.findings = findings

    @property
    def kinds(self) -> set[str]:
        return {finding.kind for finding in self.findings}


@dataclass(frozen=True)
class Finding:
    """One kind of wrong at one place."""

    kind: str  # race, unwritten, out of bounds, deadlock, divergence, mask, shuffle, barrier, alignment, cp.async, launch, ...
    place: str
    text: str
    kernel: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.place}: {self.text} [{self.kernel}]"


@dataclass(frozen=True)
class Schedule:
    """How threads and copies are interleaved, and on which kind of GPU limits are those."""

    order: str = "forward"
    copies: str = "early"
    seed: int = 1
    device: str = "sm_90"
    threads: int = 2  # of the operating system; the checked build runs on one


_schedule = Schedule()
_counting = False


@contextlib.contextmanager
def schedule(**changes: Any) -> Iterator[None]:
    """Calls inside run under a schedule with these fields of `Schedule` changed."""
    global _schedule
    before, _schedule = _schedule, replace(_schedule, **changes)
    try:
        yield
    finally:
        _schedule = before


def call(op: str, *args: Any, checked: bool = False, bug: int = 0, **kwargs: Any) -> Any:
    """Run a CUDA op on CPU tensors; tensors that its contract marks as written in place are written in place."""
    machine = _machine()
    _load_bindings()
    _variant.chosen = Variant(checked, bug)
    _variant.error = None
    machine.emulator_configure(
        ORDERS.index(_schedule.order), COPIES.index(_schedule.copies), _schedule.seed, _schedule.threads,
        SMEM_LIMITS[_schedule.device], checked, _counting,
    )  # fmt: skip
    machine.emulator_clear_findings()
    guarded = _GuardedCall(op, args)
    try:
        with guarded_allocations():
            result = getattr(getattr(torch.ops, NAMESPACE), op)(*guarded.enter(), **kwargs)
    except RuntimeError as error:
        if _variant.error is not None:
            raise _variant.error from error
        raise
    if found := findings():
        raise EmulatorError(found)
    guarded.copy_back()
    return _copies_of(result)


def findings() -> list[Finding]:
    """What the calls since the last one that was configured have done wrong."""
    machine = _machine()
    found = []
    for i in range(machine.emulator_findings()):
        texts, at = (ctypes.c_char_p * 4)(), ctypes.c_uint64()
        machine.emulator_finding(i, texts, ctypes.byref(at))
        kind, text, kernel, file = (value.decode() if value else "" for value in texts)
        found.append(Finding(kind, places.name_of(file, at.value), text, kernel))
    return found


@contextlib.contextmanager
def guarded_allocations() -> Iterator[None]:
    """torch's CPU tensors end at guard pages while this lasts."""
    bindings = _load_bindings()
    bindings.emulator_guard_allocations(True)
    try:
        yield
    finally:
        bindings.emulator_guard_allocations(False)


def _copies_of(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.clone()
    return type(result)(_copies_of(part) for part in result) if isinstance(result, (tuple, list)) else result


class _GuardedCall:
    """The arguments of a call in guarded memory: what a tensor spans there is what it may touch."""

    def __init__(self, op: str, args: tuple[Any, ...]) -> None:
        self.op, self.args = op, args
        self.spans: list[_Span] = []

    def enter(self) -> list[Any]:
        terms = OPS[self.op].inputs
        mutated = {term.name for term in terms if term.mutated}
        named = [
            (term.name, arg) for term, arg in zip(terms, self.args, strict=False) if isinstance(arg, Tensor)
        ]
        self.spans = _spans(named, mutated)
        return [self._guarded(arg) if isinstance(arg, Tensor) else arg for arg in self.args]

    def _guarded(self, tensor: Tensor) -> Tensor:
        begin, _ = _bytes_of(tensor)
        span = next(span for span in self.spans if span.holds(tensor))
        return span.view_like(tensor, begin)

    def copy_back(self) -> None:
        for span in self.spans:
            if span.mutated:
                span.original.copy_(span.guarded)


@dataclass
class _Span:
    """Bytes of one storage that the arguments of a call touch, and their copy in guarded memory."""

    begin: int  # addresses
    end: int
    names: list[str]
    mutated: bool
    storage: torch.UntypedStorage

    def holds(self, tensor: Tensor) -> bool:
        begin, end = _bytes_of(tensor)
        return self.begin <= begin and end <= self.end

    @functools.cached_property
    def original(self) -> Tensor:
        whole = torch.empty(0, dtype=torch.uint8).set_(self.storage)
        first = self.begin - self.storage.data_ptr()
        return whole[first : first + self.end - self.begin]

    @functools.cached_property
    def guarded(self) -> Tensor:
        """Begins at the same remainder of 16 bytes as the original, so that kernels choose the same variant."""
        shift = self.begin % 16
        copy = torch.empty(shift + self.end - self.begin, dtype=torch.uint8)[shift:]
        copy.copy_(self.original)
        machine = _machine()
        machine.emulator_name_buffer(copy.data_ptr(), ", ".join(self.names).encode())
        if not self.mutated:
            machine.emulator_protect(copy.data_ptr())
        return copy

    def view_like(self, tensor: Tensor, begin: int) -> Tensor:
        offset = self.guarded.storage_offset() + begin - self.begin
        storage = self.guarded.untyped_storage()
        typed = torch.empty(0, dtype=tensor.dtype)
        assert offset % tensor.itemsize == 0
        return typed.set_(storage, offset // tensor.itemsize, tensor.shape, tensor.stride())


def _bytes_of(tensor: Tensor) -> tuple[int, int]:
    """Addresses of a tensor's first byte and behind its last."""
    begin = tensor.data_ptr()
    if tensor.numel() == 0:
        return begin, begin
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (last + 1) * tensor.itemsize


def _spans(named: list[tuple[str, Tensor]], mutated: set[str]) -> list[_Span]:
    """The tensors' bytes; where those of two overlap, as one."""
    spans: list[_Span] = []
    for name, tensor in sorted(named, key=lambda item: _bytes_of(item[1])):
        begin, end = _bytes_of(tensor)
        if spans and begin < spans[-1].end:
            spans[-1].end = max(spans[-1].end, end)
            spans[-1].names.append(name)
            spans[-1].mutated |= name in mutated
        else:
            spans.append(_Span(begin, end, [name], name in mutated, tensor.untyped_storage()))
    return spans


class _Chosen:
    """The variant of the call at hand, and why a kernel of it could not be found."""

    chosen = Variant()
    error: Exception | None = None


_variant = _Chosen()
_FindKernel = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)


@_FindKernel
def _find_kernel(name: bytes, params: bytes) -> int | None:
    """Called by the bindings for the address of a launch function; an exception cannot pass through them."""
    try:
        return _kernel_address(name.decode(), params.decode(), _variant.chosen)
    except Exception as error:
        _variant.error = error
        return None


@functools.cache
def _kernel_address(name: str, params: str, variant: Variant) -> int:
    library = load_kernels(build.ROOT / "csrc/cuda" / f"{name}.cu", variant)
    symbol = f"_ZN6pyspec{len(name) + 5}{name}_cudaERKNS_{len(params)}{params}EPv"  # pyspec::<name>_cuda(const <params>&, void*)
    return ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value or 0


def load_kernels(source: Any, variant: Variant) -> ctypes.CDLL:
    """The library of a .cu file, loaded beside the machine that its kernels run on."""
    _machine()
    path = build.kernel(source, variant)
    library = ctypes.CDLL(str(path))
    places.register(path)
    return library


@functools.cache
def _machine() -> ctypes.CDLL:
    if reason := build.why_not():
        raise RuntimeError(reason)
    library = ctypes.CDLL(str(build.machine()), mode=ctypes.RTLD_GLOBAL)
    library.emulator_configure.argtypes = [
        ctypes.c_int, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int, ctypes.c_bool, ctypes.c_bool,
    ]  # fmt: skip
    library.emulator_finding.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    library.emulator_name_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.emulator_protect.argtypes = [ctypes.c_void_p]
    return library


@functools.cache
def _load_bindings() -> ctypes.CDLL:
    _machine()
    for spec in OPS.values():
        _library().define(spec.schema)
    path = str(build.bindings())
    torch.ops.load_library(path)
    library = ctypes.CDLL(path)
    library.emulator_guard_allocations.argtypes = [ctypes.c_bool]
    library.emulator_set_find_kernel(_find_kernel)
    return library


@functools.cache
def _library() -> torch.library.Library:
    return torch.library.Library(NAMESPACE, "FRAGMENT")
