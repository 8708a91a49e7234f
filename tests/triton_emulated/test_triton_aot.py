# SPDX-License-Identifier: Apache-2.0
"""Kernels ahead of time: every case fits its kernel, and attention uses each target's tensor cores."""

from __future__ import annotations

import importlib
import pkgutil
import re
from dataclasses import replace

import pytest
from emulation import INTERPRETED

import pyspec.kernels
from pyspec.kernels import rms_norm, tree_attention
from pyspec.kernels.aot import CAPABILITIES, AotCase, compile_case, compiled

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
    case = next(case for case in tree_attention.aot_cases() if case.name == "tree_attention-D64-bf16")
    used = compile_case(case, capability)
    assert used.instructions[instruction] > 0
    assert used.instructions["cp_async"] > 0
    others = {"hmma", "wgmma", "tcgen05"} - {instruction}
    assert all(used.instructions[other] == 0 for other in others)
    assert used.shared_bytes <= 163 << 10  # of an sm_80 block


def order_of_sums(case: AotCase, capability: int, axis: int) -> set[str]:
    """How the sums over an axis lie in the compiled kernel's threads: the order in which they are added.

    ttsem may have compiled it before, and has layouts printed in full and not by names.
    """
    code = compiled(case, capability).asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", code, re.MULTILINE))
    reduction = rf'"tt\.reduce"\(\S+\) <{{axis = {axis} .*?}}\) : \(tensor<(\w+)x(\w+), (#.*?)>\) ->'
    found = re.findall(reduction, code, re.DOTALL)
    sums = {(shape, name) for shape, dtype, name in found if dtype == "f32"}
    assert sums
    return {f"{shape} {layouts.get(name, name)}" for shape, name in sums}


@compiled_only
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_norms_add_in_one_order(capability: int) -> None:
    """Fused or not, aligned rows or not: fused results equal the steps on GPUs too, views their copies."""
    cases = [case for case in rms_norm.aot_cases() if "K4096" in case.name]
    assert len(cases) == 3
    odd = [replace(case, attrs=("weight_ptr", "out_ptr")) for case in cases]
    assert len(set.union(*(order_of_sums(case, capability, 0) for case in cases + odd))) == 1


@compiled_only
def test_attention_adds_in_one_order() -> None:
    """One part or several, with shared spans, aligned pages or not."""
    named = {case.name: case for case in tree_attention.aot_cases()}
    cases = [named[f"tree_attention-D128-{name}"] for name in ("bf16", "parts", "groups")]
    cases.append(replace(cases[1], attrs=("q_ptr", "k_pages_ptr", "v_pages_ptr")))
    assert len(set.union(*(order_of_sums(case, 90, 1) for case in cases))) == 1
