# SPDX-License-Identifier: Apache-2.0
"""docs/gpu_planted_bugs.md names every bug that is planted in a CUDA kernel, and none that is not."""

from __future__ import annotations

import re

from cuda_emulator import build

from bench.gpu_compile import included

CUDA = build.ROOT / "csrc/cuda"
PLANTED = re.compile(r"PYSPEC_PLANTED\((\d+)\)")
SOURCES = {source.stem: included(source) for source in sorted(CUDA.glob("*.cu"))}


def numbers(text: str) -> set[int]:
    """`1 to 3: result; 5 no barrier: race` is 1, 2, 3, 5."""
    ranges = re.findall(r"\b(\d+)(?: to (\d+))?\b", text)
    return {n for first, last in ranges for n in range(int(first), int(last or first) + 1)}


def listed() -> list[tuple[set[str], set[int]]]:
    """Of every row: the kernels' sources, and the numbers of their bugs."""
    cuda = (build.ROOT / "docs/gpu_planted_bugs.md").read_text().split("\n## ")[1]
    rows = []
    for line in cuda.splitlines():
        if line.startswith("| ") and not line.startswith("| kernel"):
            names, bugs = line.strip("| ").split(" | ")
            header = re.search(r"\((\w+\.cuh)\)", names)
            users = {stem for stem, files in SOURCES.items() if header and CUDA / header[1] in files}
            rows.append((users or set(names.split(", ")) & set(SOURCES), numbers(bugs)))
    return rows


def test_every_planted_bug_is_listed() -> None:
    rows = listed()
    for file in sorted({file for files in SOURCES.values() for file in files} - {CUDA / "ptx.cuh"}):
        users = {stem for stem, files in SOURCES.items() if file in files}
        known = set().union(*(bugs for names, bugs in rows if names & users))
        assert {int(n) for n in PLANTED.findall(file.read_text())} <= known, file.name


def test_every_listed_bug_is_planted() -> None:
    rows = listed()
    assert len(rows) > 20
    for names, bugs in rows:
        text = "".join(file.read_text() for name in names for file in SOURCES[name])
        assert bugs
        assert bugs <= {int(n) for n in PLANTED.findall(text)}, names
