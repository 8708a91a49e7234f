# SPDX-License-Identifier: Apache-2.0
"""NEON kernels under qemu-user give the bits of this machine's kernels: every case of every op, every instruction set, 1 to 3 threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract_tests import copies
from neon_emulator import SETS, Emulator
from torch import Tensor

from pyspec import backends
from pyspec.contract import OPS, Case, OpSpec

CPU_OPS = [name for name in sorted(OPS) if not backends.missing("cpu", name)]


def cases(name: str) -> list[Case]:
    """Those that the CPU kernel takes."""
    spec: OpSpec = OPS[name]
    limit = spec.limits.get("cpu", lambda *_, **__: None)
    assert spec.cases is not None
    every = [Case(case.name, spec.complete(case.args), case.kwargs) for case in spec.cases()]
    return [case for case in every if not limit(spec.bind(case.args), *case.args, **case.kwargs)]


def results(name: str, op: Any, case: Case) -> list[bytes]:
    """The bits of what a call returns and of what it writes in place; one NaN for all."""
    args = copies(case)
    out = op(*args, **case.kwargs)
    tensors: list[Tensor] = [] if out is None else [out] if isinstance(out, Tensor) else list(out)
    tensors += [
        arg for term, arg in zip(OPS[name].inputs, args, strict=True) if term.mutated and arg is not None
    ]
    plain = [torch.where(t.isnan(), torch.nan, t) if t.is_floating_point() else t for t in tensors]
    return [t.flatten().clone().view(torch.uint8).numpy().tobytes() for t in plain]


def test_every_op_is_there(emulator: Emulator) -> None:
    assert emulator.ask("ops") == CPU_OPS


@pytest.mark.parametrize("name", CPU_OPS)
def test_bits_are_those_of_this_machine(emulator: Emulator, name: str) -> None:
    for case in cases(name):
        want = results(name, getattr(torch.ops.pyspec, name), case)
        for threads in (1, 2, 3):
            emulator.set_threads(threads)
            got = results(name, lambda *args, **kwargs: emulator.call(name, *args, **kwargs), case)
            assert got == want, (case.name, threads)


@pytest.mark.parametrize(("isa", "cpu"), SETS.items())
def test_the_machine_chooses(isa: str, cpu: str) -> None:
    process = Emulator(cpu=cpu)
    try:
        assert process.ask("isa") == [isa]
    finally:
        process.close()


def test_what_the_machine_has_not_is_refused() -> None:
    process = Emulator("avx2")
    try:
        with pytest.raises(ValueError, match="PYSPEC_ISA: value must be neon.*, got avx2"):
            process.ask("isa")
    finally:
        process.close()


def test_the_tests_can_fail(emulator: Emulator) -> None:
    """Negative control: one bit of one input shows."""
    case = cases("linear")[0]
    changed = copies(case)
    changed[0].view(torch.int32)[0, 0] ^= 1 << 20
    call = lambda *args, **kwargs: emulator.call("linear", *args, **kwargs)
    assert results("linear", call, case) != results("linear", call, Case("changed", tuple(changed)))
