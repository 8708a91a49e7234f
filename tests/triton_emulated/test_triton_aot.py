# SPDX-License-Identifier: Apache-2.0
"""Kernels ahead of time: every case fits its kernel, and attention uses each target's tensor cores."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
from emulation import INTERPRETED

import pyspec.kernels
from pyspec.kernels.aot import AotCase, compile_case
from pyspec.kernels.tree_attention import aot_cases

compiled_only = pytest.mark.skipif(
    INTERPRETED, reason="TRITON_INTERPRET=1 makes kernels that cannot be compiled"
)


def all_cases() -> list[AotCase]:
    modules = [
        importlib.import_module(f"pyspec.kernels.{m.name}")
        for m in pkgutil.iter_modules(pyspec.kernels.__path__)
    ]
    return [case for module in modules if hasattr(module, "aot_cases") for case in module.aot_cases()]


def test_cases_name_every_argument_once() -> None:
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert list(case.signature) == case.fn.arg_names, case.name
        constants = {name for name, kind in case.signature.items() if kind == "constexpr"}
        assert constants == set(case.constexprs), case.name


@compiled_only
@pytest.mark.parametrize(("capability", "instruction"), [(80, "hmma"), (90, "wgmma"), (100, "tcgen05")])
def test_attention_multiplies_on_tensor_cores(capability: int, instruction: str) -> None:
    case = next(case for case in aot_cases() if case.name == "tree_attention-D64-bf16")
    used = compile_case(case, capability)
    assert used.instructions[instruction] > 0
    assert used.instructions["cp_async"] > 0
    others = {"hmma", "wgmma", "tcgen05"} - {instruction}
    assert all(used.instructions[other] == 0 for other in others)
    assert used.shared_bytes <= 163 << 10  # of an sm_80 block
