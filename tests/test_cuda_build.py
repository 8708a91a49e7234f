# SPDX-License-Identifier: Apache-2.0
"""What can be asked of CUDA sources without a GPU: kernels are declared, registered and store wide; bad calls are refused.

That kernels compile for every target without spills: tests/gpu_static.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_tests import all_broken_calls, error_of, op_call

from pyspec import backends
from pyspec.backends import native
from pyspec.contract import OPS

ROOT = Path(__file__).parent.parent
KERNELS = sorted((ROOT / "csrc/cuda").glob("*.cu"))
NVCC = shutil.which("nvcc")
# Kernels of rows, and what marks in their mangled names those that access four elements or 16 bytes at once.
WIDE = {
    "append_kv": "ILi4E", "commit_kv": "I5uint4E", "embedding": "ILi4E", "quant_embedding": "QuantFormatE", "rms_norm": "ILb1E",
    "rms_norm_quantize": "ILb1E", "rope": "ILi4E", "silu_mul": "ILb1E", "softcap": "ILb1E",
}  # fmt: skip


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH: CUDA kernels cannot be compiled here")
@pytest.mark.parametrize("stem", WIDE)
def test_wide_stores_stay_wide(stem: str, tmp_path: Path) -> None:
    """nvcc splits a plain store of four elements in four where these are computed one after the other."""
    flags = [
        "-O3",
        "-std=c++20",
        "-fmad=false",
        "-arch=sm_90a",
        "-I",
        ROOT / "csrc",
        "-I",
        ROOT / "csrc/include",
    ]
    ptx = tmp_path / "kernel.ptx"
    subprocess.run([NVCC, *flags, "-ptx", "-o", ptx, ROOT / f"csrc/cuda/{stem}.cu"], check=True)
    entries = re.split(r"^(?:\.visible )?\.entry ", ptx.read_text(), flags=re.MULTILINE)[1:]
    wide = [entry for entry in entries if WIDE[stem] in entry.split("(", 1)[0]]
    assert wide
    for entry in wide:
        assert re.search(r"st\.global(\.cg)?\.v4", entry), entry.split("(", 1)[0]
        assert not re.search(r"st\.global(\.cg)?\.f32 .*\+4\]", entry), "four single stores"


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.stem)
def test_is_declared_and_registered(kernel: Path) -> None:
    """A kernel has the launch function of its header, and the binding registers it."""
    headers = (ROOT / "csrc/include/pyspec").glob(f"{kernel.stem}*.h")
    declared = rf"void {kernel.stem}_cuda\(const \w+Params& p, void\* stream\);"
    assert any(re.search(declared, header.read_text(encoding="utf-8")) for header in headers)
    binding = (ROOT / "csrc/cuda/bind.cpp").read_text(encoding="utf-8")
    assert re.search(rf"PYSPEC_CUDA_KERNEL\({kernel.stem}, \w+Params\)", binding)


def broken_cuda_calls() -> list[Any]:
    """Those of ops with a compiled CUDA kernel."""
    return [call for call in all_broken_calls() if backends._has_kernel(str(call.values[0]), "CUDA")]


@pytest.mark.skipif(
    native is None or not native.with_cuda, reason="pyspec._C is compiled without CUDA kernels"
)
@pytest.mark.parametrize(("name", "args", "kwargs"), broken_cuda_calls())
def test_cuda_binding_refuses_alike(name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    """The binding of the CUDA dispatch key, handed tensors of the CPU: it must refuse before it asks for a GPU."""
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    want = error_of(lambda: OPS[name].run(*args, **kwargs))
    assert error_of(lambda: op_call(name).default.redispatch(cuda, *args, **kwargs)) == want
