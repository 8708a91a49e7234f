# SPDX-License-Identifier: Apache-2.0
"""Names of places in kernels: program counters become `file:line` by their library's debug information."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from .build import ROOT

_libraries: list[
    tuple[int, int, Path, int]
] = []  # first address, address behind the last, file, load address


def register(path: Path) -> None:
    """Remember where a library that was just loaded lies."""
    with open("/proc/self/maps") as maps:
        lines = [line.split() for line in maps if line.rstrip().endswith(str(path))]
    ranges = [tuple(int(end, 16) for end in fields[0].split("-")) for fields in lines]
    base = min(first - int(fields[2], 16) for (first, _), fields in zip(ranges, lines, strict=True))
    _libraries.append((min(first for first, _ in ranges), max(last for _, last in ranges), path, base))


@functools.cache
def name_of(file: str, at: int) -> str:
    """`file:line`, for a program counter where `file` is empty, with the lines that inlined it."""
    if file:
        return f"{_relative(file)}:{at}"
    for first, last, path, base in _libraries:
        if first <= at < last:
            return _lines(path, at - base)
    return "the emulator" if at else "the launch"


def _lines(path: Path, offset: int) -> str:
    """A program counter is the one behind the access's call, therefore the byte before it is looked up."""
    command = ["addr2line", "--inlines", "--exe", str(path), hex(offset - 1)]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return f"{path.name}+{offset:#x}"
    frames = [line.split(" (")[0] for line in output.split("\n") if line]
    return " in ".join(dict.fromkeys(_relative(frame) for frame in frames))


@functools.cache
def function_at(at: int) -> tuple[str, str]:
    """The stem of the source and the name, as c++filt writes it, of the function that begins at an address."""
    path, base = next((path, base) for first, last, path, base in _libraries if first <= at < last)
    command = ["addr2line", "--functions", "--demangle", "--exe", str(path), hex(at - base)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return path.name.split(".")[0], output.split("\n")[0]


def _relative(name: str) -> str:
    path, colon, line = name.partition(":")
    file = Path(path)
    return f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name}{colon}{line}"
