# SPDX-License-Identifier: Apache-2.0
"""The linear, embedding and gated ops give equal bits on every instruction set and with any number of threads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contract_tests import needs_native

from pyspec.backends import native
from pyspec.contract import OPS

NAMES = (
    "embedding", "gelu_mul", "linear", "linear_packed", "pack_int8_weight", "pack_quant_weight", "pack_weight", "quant_embedding",
    "quant_linear", "quantize_activations", "silu_mul", "w4a16_linear", "w8a8_linear", "w8a8_linear_packed",
)  # fmt: skip
ROOT = Path(__file__).parents[2]
SETS = {"generic": "", "avx2": "avx2", "avx512": "avx512vnni", "amx": "amx", "neon": "neon"}


def digest(name: str) -> str:
    """Of every output of every case of an op."""
    state = hashlib.sha256()
    for case in OPS[name].cases():
        out = getattr(torch.ops.pyspec, name)(*case.args, **case.kwargs)
        for tensor in out if isinstance(out, tuple) else (out,):
            if tensor.is_floating_point():  # to f32 (exact), and one NaN for all
                tensor = torch.where(tensor.isnan(), torch.nan, tensor.float())
            state.update(tensor.numpy().tobytes())
    return state.hexdigest()


@needs_native
@pytest.mark.parametrize("isa", SETS)
def test_instruction_sets_agree(isa: str) -> None:
    features = native.cpu_features().split()
    if (SETS[isa] and SETS[isa] not in features) or (isa == "generic" and "neon" in features):
        pytest.skip(f"this machine has no {isa}")
    code = "import pyspec, test_linear_bits as t; print(pyspec.backends.native.cpu_isa(), *map(t.digest, t.NAMES))"
    env = dict(
        os.environ, PYSPEC_ISA=isa, PYTHONPATH=os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [isa, *map(digest, NAMES)]


@needs_native
@pytest.mark.parametrize("name", NAMES)
def test_threads_agree(name: str) -> None:
    before, threads = digest(name), native.num_threads()
    try:
        for count in (1, 2, 3):
            native.set_num_threads(count)
            assert digest(name) == before
    finally:
        native.set_num_threads(threads)
