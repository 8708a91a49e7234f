# SPDX-License-Identifier: Apache-2.0
"""Compiles Triton kernels ahead of time, without a GPU, and reads what the machine code uses.

Every kernels/<op>.py has `aot_cases()`: its kernels with the types and constants of usual calls.
`compile_case` gives registers, stack, shared memory and the counts of the instructions that matter, from
the tools that come with Triton.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CAPABILITIES = (80, 90, 100)
FEATURES = ("D", "F", "K", "Y")  # sizes of rows: multiples of 16 in models
TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
INSTRUCTIONS = {
    "hmma": r"HMMA",  # mma.sync of floats
    "imma": r"IMMA",  # mma.sync of integers
    "wgmma": r"[HIQB]GMMA",
    "tcgen05": r"UTC\w*MMA",
    "ldmatrix": r"LDSM",
    "cp_async": r"LDGSTS",
    "tma_load": r"UTMALDG",
    "local_load": r"LDL",
    "local_store": r"STL",
}


@dataclass(frozen=True)
class AotCase:
    """One kernel as one usual call compiles it.

    `signature` has Triton's type of every argument in order, e.g. `*bf16`, `i32` or `constexpr`; `attrs`
    names the arguments that are multiples of 16 (None: pointers, strides and features), as the launcher finds out at
    run time.
    """

    name: str
    fn: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    attrs: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: {"enable_fp_fusion": False})
    least_capability: int = 80  # the oldest that is launched so


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel uses. Local loads and stores are spills, or arrays indexed at run time."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    threads: int
    instructions: dict[str, int]

    @property
    def spills(self) -> int:
        """Instructions that touch local memory."""
        return self.instructions["local_load"] + self.instructions["local_store"]


def compiled(case: AotCase, capability: int) -> Any:
    """Triton's compiled kernel for a compute capability (90 and 100 with their architecture-specific
    instructions)."""
    aligned = case.attrs
    if aligned is None:
        aligned = tuple(
            name
            for name, kind in case.signature.items()
            if kind.startswith("*") or (kind == "i32" and ("_stride_" in name or name in FEATURES))
        )
    names = list(case.signature)
    source = ASTSource(
        fn=case.fn,
        signature=dict(case.signature),
        constexprs={(names.index(name),): value for name, value in case.constexprs.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, **case.options}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def compile_case(case: AotCase, capability: int) -> Resources:
    """Compile for a compute capability and read the machine code."""
    kernel = compiled(case, capability)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", cubin)
        code = _tool("nvdisasm", "-c", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"aot: cuobjdump must say REG and STACK, got {usage!r}")
    return Resources(
        registers=int(found[1]),
        stack_bytes=int(found[2]),
        shared_bytes=kernel.metadata.shared,
        threads=32 * kernel.metadata.num_warps,
        instructions={name: len(re.findall(rf"\b{word}\b", code)) for name, word in INSTRUCTIONS.items()},
    )


def _tool(name: str, *arguments: str | Path) -> str:
    done = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
