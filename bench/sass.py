# SPDX-License-Identifier: Apache-2.0
"""What the machine code of a GPU kernel says without running: registers, stack, instructions by kind, the main loop."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Instructions that matter, by what they do; the pattern is matched from the start of the opcode.
KINDS = {
    "hmma": r"HMMA", "imma": r"IMMA", "qmma": r"[QO]MMA", "wgmma": r"[HIQB]GMMA", "tcgen05": r"UTC\w*MMA",
    "ldmatrix": r"LDSM", "cp_async": r"LDGSTS", "tma_load": r"UTMALDG", "local_load": r"LDL", "local_store": r"STL",
}  # fmt: skip
TENSOR_CORE = ("hmma", "imma", "qmma", "wgmma", "tcgen05")
_FUNCTION = re.compile(r"^\.text\.(\S+):$")
_LABEL = re.compile(r"^(\.L\w+):$")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
_USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Code:
    """One kernel's machine code. tensor_core_share: tensor core instructions among those of its main loop."""

    registers: int
    stack_bytes: int
    shared_bytes: int  # static
    threads: int  # the most that __launch_bounds__ allows
    instructions: int
    kinds: dict[str, int]
    local_bytes: int  # that its instructions load from and store to local memory, each counted once
    loop_instructions: int
    tensor_core_share: float

    @property
    def tensor_core(self) -> int:
        return sum(self.kinds[name] for name in TENSOR_CORE)


def tool(name: str) -> Path:
    """cuobjdump or nvdisasm: CUDA's own if it is installed, else the one in the triton package."""
    found = shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}")
    if found:
        return Path(found)
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        raise FileNotFoundError(f"bench: {name} must be on PATH or in the triton package, got neither")
    return Path(triton.origin).parent / "backends/nvidia/bin" / name


def read_cubin(cubin: Path) -> dict[str, Code]:
    """Every kernel of a cubin by its mangled name."""
    usage = {
        m[1]: tuple(map(int, m.groups()[1:])) for m in _USAGE.finditer(_run("cuobjdump", "-res-usage", cubin))
    }
    threads = max_threads(_run("cuobjdump", "-elf", cubin))
    bodies = functions(_run("nvdisasm", "-c", cubin))
    codes = {}
    for name, (registers, stack, shared, _) in usage.items():
        if name not in bodies:
            continue  # a device function of its own
        opcodes, loops = bodies[name]
        share, size = main_loop(opcodes, loops)
        codes[name] = Code(
            registers,
            stack,
            shared,
            threads.get(name, 1024),
            len(opcodes),
            count(opcodes),
            local_bytes(opcodes),
            size,
            share,
        )
    return codes


def functions(listing: str) -> dict[str, tuple[list[str], list[tuple[int, int]]]]:
    """nvdisasm's listing as opcodes and loops (first and last instruction) of every function."""
    result: dict[str, tuple[list[str], list[tuple[int, int]]]] = {}
    opcodes: list[str] = []
    loops: list[tuple[int, int]] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if match := _FUNCTION.match(line):
            opcodes, loops, labels = [], [], {}
            result[match[1]] = opcodes, loops
        elif match := _LABEL.match(line):
            labels[match[1]] = len(opcodes)
        elif match := _INSTRUCTION.match(line):
            target = re.search(r"`\((\.L\w+)\)", match[2])
            if match[1].startswith("BRA") and target and target[1] in labels:
                first = labels[target[1]]
                if first < len(opcodes):  # a branch to itself ends every function: padding
                    loops.append((first, len(opcodes)))
            if match[1] != "NOP":  # padding at the end
                opcodes.append(match[1])
    return result


def count(opcodes: list[str]) -> dict[str, int]:
    """How many instructions there are of each of KINDS."""
    return {name: sum(bool(re.match(pattern, op)) for op in opcodes) for name, pattern in KINDS.items()}


def local_bytes(opcodes: list[str]) -> int:
    """Bytes of all loads and stores of local memory: 4 each, or what the opcode says (`LDL.64`)."""
    local = [op for op in opcodes if re.match(r"LDL|STL", op)]
    widths = [re.search(r"\.(64|128)\b", op) for op in local]
    return sum(int(width[1]) // 8 if width else 4 for width in widths)


def main_loop(opcodes: list[str], loops: list[tuple[int, int]]) -> tuple[float, int]:
    """(share of tensor core instructions, instructions) of the main loop: of the loops with tensor core instructions that hold
    no other such loop, the one with the most of them. Without any: the largest loop that holds no other. (0, 0) without loops."""
    tensor = lambda loop: sum(count(opcodes[loop[0] : loop[1] + 1])[name] for name in TENSOR_CORE)
    size = lambda loop: loop[1] + 1 - loop[0]
    candidates = [loop for loop in loops if tensor(loop)] or loops
    inner = [a for a in candidates if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in candidates)]
    if not inner:
        return 0.0, 0
    loop = max(inner, key=lambda loop: (tensor(loop), size(loop)))
    return tensor(loop) / size(loop), size(loop)


def max_threads(elf: str) -> dict[str, int]:
    """The most threads a block of each kernel may have, from the attributes that cuobjdump -elf prints."""
    found: dict[str, int] = {}
    name = ""
    lines = iter(elf.splitlines())
    for line in lines:
        if line.startswith(".nv.info."):
            name = line.strip().removeprefix(".nv.info.")
        elif "EIATTR_MAX_THREADS" in line or "EIATTR_REQNTID" in line:
            next(lines)
            x, y, z = (int(size, 16) for size in next(lines).split(":")[1].split()[:3])
            found[name] = x * y * z
    return found


def _run(name: str, *arguments: str | Path) -> str:
    done = subprocess.run([tool(name), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"bench: {name} must read {arguments[-1]}, got {done.stderr.strip()}")
    return done.stdout
