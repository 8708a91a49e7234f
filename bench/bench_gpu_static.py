# SPDX-License-Identifier: Apache-2.0
"""What the compiler says of every GPU kernel, without a GPU: registers, spills, stack, shared memory, blocks per multiprocessor,
instructions by kind, and tensor core instructions among those of the main loop; held against gpu_budgets.json.

A row's case is the kernel, its backend the target. Threads and shared memory of CUDA kernels are those of the launches that
gpu_budgets.json has (`python -m bench.gpu_budgets` notes them on the emulator); what is printed ends with a line on each kernel's blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from . import gpu_budgets
from .gpu_compile import Kernel, compile_all, why_no_nvcc, why_no_triton
from .gpu_tiles import tile_of
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
    contents = gpu_budgets.load()
    kernels = gpu_budgets.launched(compile_all(targets), contents)
    for kernel in kernels:
        yield from rows_of(kernel)
    if over := [line for kernel in kernels for line in gpu_budgets.excess(kernel, contents.kernels)]:
        raise GateError("gpu_static: " + "\n".join(over))


def rows_of(kernel: Kernel) -> Iterator[Row]:
    """One row per figure."""
    code, fit = kernel.code, kernel.occupancy
    figures: dict[str, tuple[float, str]] = {
        "registers": (code.registers, "per thread"),
        "spill_bytes": (kernel.spill_bytes, "B"),
        "stack_bytes": (code.stack_bytes, "B"),
        "shared_bytes": (kernel.shared_bytes, "B"),
        "threads": (kernel.threads or code.threads, "per block"),
        "blocks_per_sm": (fit.blocks, f"by {fit.limiter}; {tile_of(kernel.source, kernel.name)}"),
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
    tiles: dict[str, dict[str, list[str]]] = {}  # why, kernel, targets' blocks
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
        limiter, tile = figures["blocks_per_sm"]["unit"].removeprefix("by ").split("; ", 1)
        tiles.setdefault(tile, {}).setdefault(kernel, []).append(
            f"{target} {number('blocks_per_sm')} by {limiter}"
        )
        table.add_row(
            kernel, target, number("registers"), number("spill_bytes"), number("stack_bytes"), number("shared_bytes"),
            number("threads"), f"{number('blocks_per_sm')} {limiter}", number(*TENSOR_CORE), number("ldmatrix"),
            number("cp_async", "tma_load"), number("local_load", "local_store"), number("loop_instructions"),
            number("tensor_core_share"),
        )  # fmt: skip
    Console(width=170).print(table)
    for tile, kernels in tiles.items():
        for kernel, blocks in kernels.items():
            print(f"{kernel}: {tile}; blocks an SM: {', '.join(blocks)}")
