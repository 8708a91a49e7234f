# SPDX-License-Identifier: Apache-2.0
"""What can be asked of the CUDA kernels without a GPU: they compile for sm_80 and sm_90a, nothing spills, bad calls are refused."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_tests import all_broken_calls, error_of, op_call

from pyspec.backends import native
from pyspec.contract import OPS

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
    binding = (ROOT / "csrc/cuda/bind.cpp").read_text(encoding="utf-8")
    assert re.search(rf"PYSPEC_CUDA_KERNEL\({kernel.stem}, \w+Params\)", binding)


def broken_cuda_calls() -> list[Any]:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return [call for call in all_broken_calls() if has_kernel(f"pyspec::{call.values[0]}", "CUDA")]


@pytest.mark.skipif(
    native is None or not native.with_cuda, reason="pyspec._C is compiled without CUDA kernels"
)
@pytest.mark.parametrize(("name", "args", "kwargs"), broken_cuda_calls())
def test_cuda_binding_refuses_alike(name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    """The binding of the CUDA dispatch key, handed tensors of the CPU: it must refuse before it asks for a GPU."""
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    want = error_of(lambda: OPS[name].run(*args, **kwargs))
    assert error_of(lambda: op_call(name).default.redispatch(cuda, *args, **kwargs)) == want
