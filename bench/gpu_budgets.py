# SPDX-License-Identifier: Apache-2.0
"""What each GPU kernel may use: `python -m bench.gpu_budgets` writes gpu_budgets.json from what is compiled and launched now.

A budget is a kernel's use with its registers rounded up to the unit in which they are given out; spills and stack are 0 unless the
file gives a kernel another number, with the reason beside it under "why". Shared memory and threads of CUDA kernels are those of the
"launches" that the emulator has noted. Look at the difference before committing it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from . import gpu_launches
from .gpu_compile import Kernel, compile_all

FILE = Path(__file__).parent / "gpu_budgets.json"
REGISTERS = 8  # a warp gets them in units of 8 a thread
SMALL = ("spill_bytes", "stack_bytes")  # 0 unless the file says why not
Budgets = dict[str, dict[str, dict[str, int]]]  # kernel, target, what


class Contents(NamedTuple):
    """What the file has."""

    kernels: Budgets
    why: dict[str, str]  # reasons of the budgets that allow spills or stack
    launches: dict[str, dict[str, dict[str, Any]]]  # kernel, target, fields of a Launch


def usage(kernel: Kernel) -> dict[str, int]:
    """What a budget limits; blocks_per_sm is a least, the others are most."""
    return {
        "registers": kernel.code.registers,
        "spill_bytes": kernel.spill_bytes,
        "stack_bytes": kernel.code.stack_bytes,
        "shared_bytes": kernel.shared_bytes,
        "blocks_per_sm": kernel.occupancy.blocks,
    }


def budget(kernel: Kernel) -> dict[str, int]:
    """Its use now, as a budget; spills and stack are left out, which means 0."""
    used = usage(kernel)
    registers = -(-used["registers"] // REGISTERS) * REGISTERS
    return {
        "registers": registers,
        "shared_bytes": used["shared_bytes"],
        "blocks_per_sm": used["blocks_per_sm"],
    }


def excess(kernel: Kernel, budgets: Budgets) -> list[str]:
    """Where a kernel is over its budget, in words; empty if it keeps it."""
    allowed = budgets.get(kernel.label, {}).get(kernel.target)
    where = f"{kernel.label} ({kernel.target})"
    if allowed is None:
        return [f"{where}: no budget; `python -m bench.gpu_budgets` writes one"]
    found = []
    for name, value in usage(kernel).items():
        limit = allowed.get(name, 0)
        if value < limit if name == "blocks_per_sm" else value > limit:
            rule = "at least" if name == "blocks_per_sm" else "at most"
            found.append(f"{where}: {name} must be {rule} {limit}, got {value}")
    return found


def load() -> Contents:
    """The file; empty if there is none."""
    content = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    return Contents(*(content.get(name, {}) for name in Contents._fields))


def launched(kernels: Iterable[Kernel], contents: Contents) -> list[Kernel]:
    """The kernels with threads and shared memory of their launches."""
    found = []
    for kernel in kernels:
        launch = contents.launches.get(kernel.label, {}).get(kernel.target)
        known = {"threads": launch["threads"], "dynamic_bytes": launch["shared_bytes"]} if launch else {}
        found.append(replace(kernel, **known))
    return found


def updated(kernels: Iterable[Kernel], old: Budgets) -> Budgets:
    """Budgets of these kernels; what the old ones allow of spills and stack stays."""
    new: Budgets = {}
    for kernel in sorted(kernels, key=lambda k: (k.source, k.name, k.target)):
        kept = {k: v for k, v in old.get(kernel.label, {}).get(kernel.target, {}).items() if k in SMALL}
        new.setdefault(kernel.label, {})[kernel.target] = {**budget(kernel), **kept}
    return new


def write(contents: Contents) -> None:
    """One line a kernel and target, so that a change shows as one line."""
    lines = (
        json.dumps({name: getattr(contents, name) for name in ("why", "kernels", "launches")}, indent=1)
        .replace("{\n    ", "{")
        .replace(",\n    ", ", ")
        .replace("\n   }", "}")
    )
    FILE.write_text(lines + "\n", encoding="utf-8")


def main() -> int:
    """Compile everything, note all launches and write the file."""
    old = load()
    new = old._replace(launches=gpu_launches.as_json(gpu_launches.record()))
    kernels = launched(compile_all(), new)
    write(new._replace(kernels=updated(kernels, old.kernels)))
    print(f"{len(kernels)} budgets in {FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
