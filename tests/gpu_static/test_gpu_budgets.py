# SPDX-License-Identifier: Apache-2.0
"""Every GPU kernel compiles for every target and keeps its budget of registers, spills, stack, shared memory and occupancy."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bench import gpu_budgets
from bench.gpu_compile import Kernel, compile_all, included, why_no_nvcc, why_no_triton
from bench.gpu_tiles import TILES, tile_of
from bench.occupancy import TARGETS, Occupancy, occupancy
from bench.sass import Code, functions, local_bytes, main_loop, tool

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    """All of them for all targets: compiled once a change, kept in build/gpu_static."""
    return gpu_budgets.launched(compile_all(workers=os.cpu_count() or 1), gpu_budgets.load())


@pytest.mark.skipif(bool(why_no_nvcc()), reason="nvcc is not on PATH: CUDA kernels cannot be compiled here")
@pytest.mark.parametrize("source", sorted(path.name for path in (ROOT / "csrc/cuda").glob("*.cu")))
def test_cuda_kernels_keep_their_budgets(source: str, kernels: list[Kernel]) -> None:
    check([k for k in kernels if k.source == f"csrc/cuda/{source}"])


@pytest.mark.skipif(
    bool(why_no_triton()), reason="triton is not installed: its kernels cannot be compiled here"
)
def test_triton_kernels_keep_their_budgets(kernels: list[Kernel]) -> None:
    check([k for k in kernels if k.source.startswith("kernels/")])


def check(kernels: list[Kernel]) -> None:
    budgets, why, _ = gpu_budgets.load()
    assert {kernel.target for kernel in kernels} == set(TARGETS)
    assert [line for kernel in kernels for line in gpu_budgets.excess(kernel, budgets)] == []
    for kernel in kernels:
        allowed = budgets[kernel.label][kernel.target]
        if any(allowed.get(name) for name in gpu_budgets.SMALL):
            assert kernel.label in why, f"{kernel.label} may use local memory without a reason"


def test_budgets_are_of_kernels_that_exist(kernels: list[Kernel]) -> None:
    if why_no_nvcc() or why_no_triton():
        pytest.skip("only one of the two kinds of kernels can be compiled here")
    budgets, why, _ = gpu_budgets.load()
    assert set(budgets) == {kernel.label for kernel in kernels}
    assert set(why) <= set(budgets)


def test_every_kernel_says_why_its_blocks_are_so(kernels: list[Kernel]) -> None:
    assert all(tile_of(kernel.source, kernel.name) for kernel in kernels)
    if not (why_no_nvcc() or why_no_triton()):
        functions = {
            k.source.removesuffix(".py") if k.source.endswith(".py") else k.name.split("<")[0]
            for k in kernels
        }
        assert set(TILES) == functions


def test_every_cuda_kernel_has_a_launch(kernels: list[Kernel]) -> None:
    assert [k.label for k in kernels if k.source.endswith(".cu") and not k.threads] == []


CODE = Code(64, 0, 0, 256, 100, {"local_load": 0}, 0, 40, 0.25)
KERNEL = Kernel("csrc/cuda/x.cu", "k<1>", "sm_80", CODE, 0)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("registers", replace(KERNEL, code=replace(CODE, registers=65))),
        ("spill_bytes", replace(KERNEL, spill_bytes=4)),
        ("stack_bytes", replace(KERNEL, code=replace(CODE, stack_bytes=8))),
        ("shared_bytes", replace(KERNEL, code=replace(CODE, shared_bytes=1024))),
        ("blocks_per_sm", replace(KERNEL, code=replace(CODE, threads=512))),
        ("shared_bytes", replace(KERNEL, dynamic_bytes=1024)),
        ("blocks_per_sm", replace(KERNEL, dynamic_bytes=100 << 10)),
        ("blocks_per_sm", replace(KERNEL, threads=512)),
    ],
)
def test_each_excess_is_found(name: str, kernel: Kernel) -> None:
    budgets = gpu_budgets.updated([KERNEL], {})
    assert gpu_budgets.excess(KERNEL, budgets) == []
    lines = gpu_budgets.excess(kernel, budgets)
    assert any(line.startswith(f"x: k<1> (sm_80): {name} must be at ") for line in lines)


def test_a_kernel_without_a_budget_is_found() -> None:
    assert "no budget" in gpu_budgets.excess(KERNEL, {})[0]


@pytest.mark.parametrize(
    ("target", "threads", "registers", "shared", "want"),
    [
        ("sm_80", 256, 32, 0, Occupancy(8, "warps")),
        ("sm_80", 256, 33, 0, Occupancy(6, "registers")),  # 40 a thread are given: 12 warps a scheduler
        ("sm_80", 32, 16, 0, Occupancy(32, "blocks")),
        ("sm_80", 128, 32, 40 << 10, Occupancy(4, "shared memory")),  # 41 KB with the system's part
        ("sm_90a", 128, 32, 40 << 10, Occupancy(5, "shared memory")),
        ("sm_80", 128, 255, 0, Occupancy(2, "registers")),
        ("sm_100a", 128, 64, 227 << 10, Occupancy(1, "shared memory")),
        ("sm_80", 128, 64, 164 << 10, Occupancy(0, "shared memory")),  # more than a block may have
        ("sm_90a", 1024, 64, 0, Occupancy(1, "registers")),
    ],
)  # fmt: skip
def test_occupancy(target: str, threads: int, registers: int, shared: int, want: Occupancy) -> None:
    assert occupancy(target, threads, registers, shared) == want


LISTING = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;
.L_x_0:
        /*0020*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0030*/              @!P0 IADD3 R2, R2, 0x1, RZ ;
        /*0040*/               @P0 BRA `(.L_x_0) ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   BRA `(.L_x_2);
        /*0080*/                   NOP;
"""


def test_loops_are_found_in_machine_code() -> None:
    opcodes, loops = functions(LISTING)["kernel"]
    assert [op.split(".")[0] for op in opcodes] == [
        "MOV",
        "LDSM",
        "HMMA",
        "IADD3",
        "BRA",
        "BRA",
        "EXIT",
        "BRA",
    ]
    assert loops == [(2, 4), (1, 5)]
    assert main_loop(opcodes, loops) == (1 / 3, 3)  # the inner one: all its products, fewer others
    assert main_loop(["IADD3"] * 8, loops) == (0.0, 3)
    assert main_loop(["IADD3"], []) == (0.0, 0)


def test_local_memory_is_counted_in_bytes() -> None:
    assert local_bytes(["LDL", "STL.64", "LDL.LU.128", "LDG.E.128", "MOV"]) == 4 + 8 + 16


def test_a_change_of_a_header_compiles_again() -> None:
    names = {path.name for path in included(ROOT / "csrc/cuda/rms_norm.cu")}
    assert {"rms_norm.cu", "ptx.cuh", "rms_norm.h"} <= names


def test_the_tools_are_there() -> None:
    if why_no_nvcc() and why_no_triton():
        pytest.skip("neither nvcc nor triton is installed")
    assert "NVIDIA" in subprocess.run([tool("nvdisasm"), "--version"], capture_output=True, text=True).stdout
