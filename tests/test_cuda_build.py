# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel compiled for sm_80 and sm_90a, without a GPU and without torch: no warning, nothing spilled."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KERNELS = sorted((ROOT / "csrc/cuda").glob("*.cu"))
TARGETS = ("80", "90a")
NVCC = shutil.which("nvcc")
ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<target>\w+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


def nvcc_flags() -> list[str]:
    """NVCC_FLAGS of setup.py, which cannot be imported: it would build."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    assigned = {
        ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)
    }
    return ast.literal_eval(assigned["NVCC_FLAGS"])


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH: CUDA kernels cannot be compiled here")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.stem)
def test_compiles_without_spills(kernel: Path, tmp_path: Path) -> None:
    targets = [f"-gencode=arch=compute_{target},code=sm_{target}" for target in TARGETS]
    includes = ["-I", ROOT / "csrc", "-I", ROOT / "csrc/include"]
    strict = ["-Xptxas=-v,-warn-spills", "-Werror=all-warnings", "--fatbin", "-o", tmp_path / "kernel.fatbin"]
    command = [NVCC, *nvcc_flags(), *includes, *targets, *strict, kernel]
    done = subprocess.run(command, capture_output=True, text=True)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    compiled = [match["target"] for match in ENTRY.finditer(log)]
    assert set(compiled) == set(TARGETS)
    assert SPILLS.findall(log) == [("0", "0")] * len(compiled), log


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.stem)
def test_is_declared_and_registered(kernel: Path) -> None:
    """A kernel has the launch function of its header, and the binding registers it."""
    header = (ROOT / f"csrc/include/pyspec/{kernel.stem}.h").read_text(encoding="utf-8")
    assert re.search(rf"void {kernel.stem}_cuda\(const \w+Params& p, void\* stream\);", header)
    assert re.search(rf"\b{kernel.stem}_cuda\b", (ROOT / "csrc/cuda/bind.cpp").read_text(encoding="utf-8"))
