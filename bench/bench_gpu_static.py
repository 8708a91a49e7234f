# SPDX-License-Identifier: Apache-2.0
"""What the compiler says of every GPU kernel, without a GPU: registers, spills, stack, shared memory, blocks per multiprocessor,
instructions by kind, and tensor core instructions among those of the main loop; held against gpu_budgets.json.

A row's case is the kernel, its backend the target. Shared memory is static for CUDA kernels (theirs is asked for at launch) and all
of it for Triton's, so blocks per multiprocessor of a CUDA kernel are those its registers and threads allow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from . import gpu_budgets
from .gpu_compile import Kernel, compile_all, why_no_nvcc, why_no_triton
from .harness import GateError, Options, Row, make_row
from .occupancy import TARGETS
from .sass import TENSOR_CORE

QUICK_TARGETS = ("sm_80",)


def rows(options: Options) -> Iterator[Row]:
    """Rows of every kernel for every target; GateError if one is over its budget or nothing could be compiled."""
    targets = QUICK_TARGETS if options.quick else tuple(TARGETS)
    missing = [reason for reason in (why_no_nvcc(), why_no_triton()) if reason]
    if len(missing) == 2:
        raise GateError(f"gpu_static: a compiler must be there, got none: {'; '.join(missing)}")
    kernels = compile_all(targets)
    for kernel in kernels:
        yield from rows_of(kernel)
    budgets, _ = gpu_budgets.load()
    if over := [line for kernel in kernels for line in gpu_budgets.excess(kernel, budgets)]:
        raise GateError("gpu_static: " + "\n".join(over))


def rows_of(kernel: Kernel) -> Iterator[Row]:
    """One row per figure."""
    code, fit = kernel.code, kernel.occupancy
    figures: dict[str, tuple[float, str]] = {
        "registers": (code.registers, "per thread"),
        "spill_bytes": (kernel.spill_bytes, "B"),
        "stack_bytes": (code.stack_bytes, "B"),
        "shared_bytes": (code.shared_bytes, "B"),
        "threads": (code.threads, "per block"),
        "blocks_per_sm": (fit.blocks, f"by {fit.limiter}"),
        "instructions": (code.instructions, ""),
        "loop_instructions": (code.loop_instructions, ""),
        "tensor_core_share": (100 * code.tensor_core_share, "% of loop"),
        **{name: (number, "") for name, number in code.kinds.items()},
    }
    for metric, (value, unit) in figures.items():
        yield make_row("gpu_static", kernel.label, kernel.target, metric, value, unit)


def print_rows(rows: Iterable[Row]) -> None:
    """One line per kernel and target."""
    from rich.console import Console
    from rich.table import Table

    by_kernel: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_kernel.setdefault((row["case"], row["backend"]), {})[row["metric"]] = row
    table = Table("kernel", "target")
    for name in (
        "regs",
        "spill",
        "stack",
        "shared",
        "threads",
        "blocks/SM",
        "mma",
        "ldsm",
        "cp.async",
        "local",
        "loop",
        "mma %",
    ):
        table.add_column(name, justify="right")
    for (kernel, target), figures in by_kernel.items():
        number = lambda *names, figures=figures: f"{sum(figures[name]['value'] for name in names):.0f}"
        limiter = figures["blocks_per_sm"]["unit"].removeprefix("by ")
        table.add_row(
            kernel, target, number("registers"), number("spill_bytes"), number("stack_bytes"), number("shared_bytes"),
            number("threads"), f"{number('blocks_per_sm')} {limiter}", number(*TENSOR_CORE), number("ldmatrix"),
            number("cp_async", "tma_load"), number("local_load", "local_store"), number("loop_instructions"),
            number("tensor_core_share"),
        )  # fmt: skip
    Console(width=170).print(table)
