# SPDX-License-Identifier: Apache-2.0
"""Calls the CUDA ops on CPU tensors, through csrc/cuda/bind.cpp and the kernels' own sources.

    emulator.call("rms_norm", x, weight, eps=1e-5)                 arguments and results of the torch op
    emulator.call("rms_norm", x, weight, eps=1e-5, checked=True, bug=2)    shadow-checked, planted bug 2
    with emulator.schedule(order="reverse", copies="late"): ...    order of threads, when cp.async lands
    with emulator.counting() as counters: ...                      traffic, bank conflicts, MMAs

A call whose kernel does something wrong raises EmulatorError with everything found.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyspec import plans
from pyspec.contract import OPS

from . import build, places
from .counters import Counters
from .guarded import GuardedTensors

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

    kind: str  # race, unwritten, out of bounds, ...: README.md has all of them
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
    num_sms: int = 132
    threads: int = 2  # of the operating system; the checked build runs on one
    time_limit: float = 60.0  # seconds of CPU time for a launch: a kernel that does not end is found then


@dataclass(frozen=True)
class Launch:
    """How a kernel was launched."""

    source: str  # the stem of the .cu file
    kernel: str  # as c++filt writes it, with its template's and its own arguments
    blocks: int
    threads: int
    shared_bytes: int  # dynamic, as all shared memory of these kernels


_schedule = Schedule()
_counters: Counters | None = None
_launches: list[Launch] | None = None


@contextlib.contextmanager
def schedule(**changes: Any) -> Iterator[None]:
    """Calls inside run under a schedule with these fields of `Schedule` changed."""
    global _schedule
    before, _schedule = _schedule, replace(_schedule, **changes)
    try:
        yield
    finally:
        _schedule = before


@contextlib.contextmanager
def counting() -> Iterator[Counters]:
    """Calls inside are counted, by the checked build. Buffers have the names of arguments and outputs."""
    global _counters
    before, _counters = _counters, Counters()
    try:
        yield _counters
    finally:
        _counters = before


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Calls inside note what they launch and do not run it: their results are worth nothing."""
    global _launches
    before, _launches = _launches, []
    try:
        yield _launches
    finally:
        _launches = before


def call(op: str, *args: Any, checked: bool = False, bug: int = 0, **kwargs: Any) -> Any:
    """Run a CUDA op on CPU tensors; those that its schema marks as written in place are written in place."""
    _load_bindings().emulator_set_device_limits(_schedule.num_sms, SMEM_LIMITS[_schedule.device])
    function = getattr(getattr(torch.ops, NAMESPACE), op).default
    terms = function._schema.arguments
    tensors = {term.name: arg for term, arg in zip(terms, args, strict=False) if isinstance(arg, Tensor)}
    written = {term.name for term in terms if term.alias_info is not None and term.alias_info.is_write}
    with _running(checked, bug, tensors, written) as guarded:
        guarded_args = [guarded.of(arg) if isinstance(arg, Tensor) else arg for arg in args]
        result = function(*guarded_args, **kwargs)
        outputs = result if isinstance(result, (tuple, list)) else [result]
        for term, output in zip(OPS[op].outputs if op in OPS else (), outputs, strict=False):
            _machine().emulator_name_buffer(output.data_ptr(), term.name.encode())
    return _copies_of(result)


def run(
    source: Path, function: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor], *sizes: int,
    checked: bool = False, bug: int = 0,
) -> None:  # fmt: skip
    """Call a C function of any .cu file: `function(pointers of inputs, pointers of outputs, int64 sizes)`."""
    launch = getattr(load_kernels(source, checked or _counters is not None), function)
    tensors = {**inputs, **outputs}
    with _running(checked, bug, tensors, set(outputs)) as guarded:
        pointers = [ctypes.c_void_p(guarded.of(tensor).data_ptr()) for tensor in tensors.values()]
        launch(*pointers, *map(ctypes.c_int64, sizes))


@contextlib.contextmanager
def _running(
    checked: bool, bug: int, tensors: dict[str, Tensor], mutated: set[str]
) -> Iterator[GuardedTensors]:
    """Tensors in guarded memory and the machine set up; afterwards what was found is raised."""
    machine, allocator = _machine(), _allocator()
    _library_chosen.checked, _library_chosen.error = checked or _counters is not None, None
    machine.emulator_configure(
        ORDERS.index(_schedule.order), COPIES.index(_schedule.copies), _schedule.seed, _schedule.threads,
        SMEM_LIMITS[_schedule.device], _schedule.time_limit, checked, _counters is not None, _launches is not None, bug,
    )  # fmt: skip
    machine.emulator_clear_findings()
    allocator.emulator_guard_allocations(True)
    try:
        guarded = GuardedTensors(machine, tensors, mutated)
        yield guarded
    except RuntimeError as error:
        if _library_chosen.error is not None:
            raise _library_chosen.error from error
        raise
    finally:
        allocator.emulator_guard_allocations(False)
    if _counters is not None:
        _counters.take(machine)
    if _launches is not None:
        _launches.extend(_recorded(machine))
    if found := findings():
        raise EmulatorError(found)
    guarded.copy_back()


def missing(op: str) -> str:
    """Why there is no such op; empty if csrc/cuda/bind.cpp has it."""
    _load_bindings()
    there = torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op}", "CPU")
    return "" if there else "no CUDA kernel of this op exists"


def findings() -> list[Finding]:
    """What the calls since the last one that was configured have done wrong."""
    machine = _machine()
    found = []
    for i in range(machine.emulator_findings()):
        texts, at = (ctypes.c_char_p * 5)(), (ctypes.c_uint64 * 2)()
        machine.emulator_finding(i, texts, at)
        kind, text, kernel, file, other_file = (value.decode() if value else "" for value in texts)
        other = f" at {places.name_of(other_file, at[1])}" if at[1] else ""
        found.append(Finding(kind, places.name_of(file, at[0]), text + other, kernel))
    return found


def _recorded(machine: ctypes.CDLL) -> Iterator[Launch]:
    for i in range(machine.emulator_launches()):
        figures = (ctypes.c_uint64 * 4)()
        machine.emulator_launch(i, figures)
        address, *sizes = figures
        yield Launch(*places.function_at(address), *sizes)


def _copies_of(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.clone()
    return type(result)(_copies_of(part) for part in result) if isinstance(result, (tuple, list)) else result


class _Chosen:
    """Whether the call at hand takes kernels of the checked build, and why one of them could not be found."""

    checked = False
    error: Exception | None = None


_library_chosen = _Chosen()
_FindKernel = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)


@_FindKernel
def _find_kernel(name: bytes, params: bytes) -> int | None:
    """Called by the bindings for the address of a launch function; an exception cannot pass through them."""
    try:
        return _kernel_address(name.decode(), params.decode(), _library_chosen.checked)
    except Exception as error:
        _library_chosen.error = error
        return None


@functools.cache
def _kernel_address(name: str, params: str, checked: bool) -> int:
    sources = [build.ROOT / "csrc/cuda" / f"{stem}.cu" for stem in (name, name.rpartition("_")[0])]
    library = load_kernels(
        next(source for source in sources if source.exists()), checked
    )  # a plan is in its op's file
    # pyspec::<name>_cuda(const pyspec::<params>&, void*)
    symbol = f"_ZN6pyspec{len(name) + 5}{name}_cudaERKNS_{len(params)}{params}EPv"
    return ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value or 0


@functools.cache
def load_kernels(source: Path, checked: bool) -> ctypes.CDLL:
    """The library of a .cu file, loaded beside the machine that its kernels run on."""
    _machine()
    path = build.kernel(source, checked)
    library = ctypes.CDLL(str(path))
    places.register(path)
    return library


@functools.cache
def _machine() -> ctypes.CDLL:
    if reason := build.why_not():
        raise RuntimeError(reason)
    library = ctypes.CDLL(str(build.machine()), mode=ctypes.RTLD_GLOBAL)
    library.emulator_configure.argtypes = [
        ctypes.c_int, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int, ctypes.c_double,
        *[ctypes.c_bool] * 3, ctypes.c_int,
    ]  # fmt: skip
    library.emulator_finding.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    library.emulator_name_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.emulator_protect.argtypes = [ctypes.c_void_p]
    return library


@functools.cache
def _allocator() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build.allocator()))
    library.emulator_guard_allocations.argtypes = [ctypes.c_bool]
    return library


@functools.cache
def _load_bindings() -> ctypes.CDLL:
    _machine()
    for schema in (*(spec.schema for spec in OPS.values()), *plans.SCHEMAS.values()):
        _library().define(schema)
    path = str(build.bindings())
    torch.ops.load_library(path)
    library = ctypes.CDLL(path)
    library.emulator_set_find_kernel(_find_kernel)
    return library


@functools.cache
def _library() -> torch.library.Library:
    return torch.library.Library(NAMESPACE, "FRAGMENT")
