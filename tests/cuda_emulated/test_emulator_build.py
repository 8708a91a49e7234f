# SPDX-License-Identifier: Apache-2.0
"""Kernels are compiled when they have to be, and what cannot be compiled says why."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cuda_emulator import build, emulator
from cuda_emulator.build import BuildError

KERNEL = """
#include "cuda/ptx.cuh"
#include "value.h"
static __global__ void fill(float* out) { out[threadIdx.x] = kValue + (PYSPEC_PLANTED(2) ? 0.5f : 0.0f); }
extern "C" void fill_all(float* out, int64_t n) { PYSPEC_LAUNCH(fill, 1, unsigned(n), 0, nullptr, out); }
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Inside the project: files outside are taken not to change."""
    build.BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build.BUILD) as name:
        yield Path(name)
    for file in build.BUILD.glob(f"{Path(name).name}*"):
        file.unlink()


def write(folder: Path, text: str, value: int) -> Path:
    """The kernel's name is the folder's, so that no other test has it."""
    (folder / "value.h").write_text(f"constexpr float kValue = {value};\n")
    source = folder / f"{folder.name}.cu"
    source.write_text(text)
    return source


def filled(source: Path, bug: int = 0) -> float:
    out = torch.empty(3)
    emulator.load_kernels.cache_clear()
    emulator.run(source, "fill_all", {}, {"out": out}, 3, bug=bug)
    assert (out == out[0]).all()
    return float(out[0])


def test_changed_header_is_compiled_again(folder: Path) -> None:
    source = write(folder, KERNEL, 1)
    assert filled(source) == 1.0
    first = build.kernel(source, False)
    assert build.kernel(source, False) == first
    write(folder, KERNEL, 2)
    assert build.kernel(source, False) != first
    assert filled(source) == 2.0


def test_planted_bugs_are_in_one_library(folder: Path) -> None:
    """A call that asks for none has none, also after one that did."""
    source = write(folder, KERNEL, 1)
    assert [filled(source, bug) for bug in (0, 1, 2, 0)] == [1.0, 1.0, 1.5, 1.0]
    assert len(list(build.BUILD.glob(f"{folder.name}*.so"))) == 1


def test_error_of_the_compiler_is_shown(folder: Path) -> None:
    with pytest.raises(BuildError, match="kValues.* was not declared"):
        filled(write(folder, KERNEL.replace("kValue ", "kValues "), 1))


def test_static_shared_memory_is_refused(folder: Path) -> None:
    """The checker sees dynamic shared memory alone."""
    with pytest.raises(BuildError, match="PYSPEC_DYNAMIC_SHARED"):
        filled(write(folder, KERNEL.replace("{ out[", "{ __shared__ float sum[32]; sum[0] = 0; out["), 1))


def test_reason_is_given_where_nothing_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.why_not() == ""
    monkeypatch.setattr(build, "cuda_include", lambda: None)
    assert "CUDA's headers" in build.why_not()
    monkeypatch.setattr(build, "CXX", "no-such-compiler")
    assert "no-such-compiler is not there" in build.why_not()
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    assert "not on Linux on aarch64" in build.why_not()
