# SPDX-License-Identifier: Apache-2.0
"""What the row and KV-cache kernels move at the sizes of models: at most 1.05 of the cost that no implementation avoids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract_tests import copies
from cuda_emulator import emulator
from cuda_emulator.counters import Counters
from test_cuda_append_kv import append_case
from test_cuda_commit_kv import commit_case
from test_cuda_embedding import quant_case

from pyspec.contract import OPS, Case
from pyspec.spec.quant_formats import FORMATS
from pyspec.spec.rope import rope_angles

K, F, D = 4096, 11008, 128
BF16, I8, F8 = torch.bfloat16, torch.int8, torch.float8_e4m3fn
MOST = 1.05


def rows(M: int, columns: int = K) -> torch.Tensor:
    return torch.randn(M, columns, generator=torch.Generator().manual_seed(M))


def ids(T: int) -> torch.Tensor:
    return torch.arange(T, dtype=torch.int32)


CASES: list[tuple[str, Case]] = [
    ("rms_norm", Case("K4096", (rows(4), rows(1)[0]))),
    ("rms_norm", Case("K2048", (rows(4, 2048), rows(1, 2048)[0]))),
    ("add_rms_norm", Case("", (rows(4), rows(4), rows(1)[0]))),
    ("rms_norm_quantize", Case("", (rows(4), rows(1)[0], None))),
    ("rms_norm_quantize", Case("residual", (rows(4), rows(1)[0], rows(4)))),
    ("quantize_activations", Case("K4096", (rows(4),))),
    ("quantize_activations", Case("K11008", (rows(2, F),))),
    ("silu_mul", Case("", (rows(3, 2 * F),))),
    ("gelu_mul", Case("", (rows(3, 2 * F),))),
    ("softcap", Case("", (rows(1, 32000),), {"cap": 30.0})),
    ("embedding", Case("f32", (ids(4), rows(4)))),
    ("embedding", Case("bf16", (ids(4), rows(4).to(BF16)))),
    ("rope", Case("f32", (rows(32 * 32, D).view(32, 32, D), ids(32), rope_angles(32, D)))),
    ("rope", Case("bf16", (rows(32 * 32, D).view(32, 32, D).to(BF16), ids(32), rope_angles(32, D)))),
    *(("append_kv", append_case(16, 8, D, 16, dtype=dtype, rotary=D)) for dtype in (BF16, I8, F8)),
    ("append_kv", append_case(16, 8, D, 16, source=BF16, rotary=D)),
    *(("commit_kv", commit_case([[1, 3, 4, 6, 9, 14], [2, 3]], 16, 8, D, dtype)) for dtype in (BF16, I8)),
    *(("quant_embedding", quant_case(name, 4, 9, K // f.block_k)) for name, f in FORMATS.items()),
]  # fmt: skip


def counted(op: str, case: Case) -> tuple[Counters, int]:
    with emulator.counting() as counters:
        emulator.call(op, *copies(case), **case.kwargs)
    cost: Any = OPS[op].cost
    return counters, cost(OPS[op].bind(case.args), *case.args, **case.kwargs).bytes


@pytest.mark.parametrize(("op", "case"), CASES, ids=[f"{op}-{case.name}" for op, case in CASES])
def test_moves_little_more_than_the_cost(op: str, case: Case) -> None:
    counters, cost = counted(op, case)
    assert counters.dram_bytes <= MOST * cost
    # A block is a row: each reads the norm's weight again, from L2. L1 keeps what a block reads twice.
    again = counters.traffic["weight"].read_sectors_per_block - counters.traffic["weight"].read_sectors_unique
    assert counters.l2_bytes - (32 * again if "norm" in op else 0) <= MOST * cost
    assert counters.bank_conflicts == 0


def test_rows_that_do_not_fit_wide_accesses_cost_no_more_than_the_sectors_at_their_ends() -> None:
    """Single elements ask for the same sectors: one more a row and tensor, where rows begin within one."""
    x = rows(4, 2049)[:, 1:]
    counters, cost = counted("rms_norm", Case("", (x, rows(1, 2048)[0])))
    assert counters.dram_bytes <= cost + 32 * 5


def test_the_limit_can_be_exceeded() -> None:
    """Negative control: moves of single bytes across rows of 7 take whole sectors."""
    counters, cost = counted("commit_kv", commit_case([[2, 3, 9]], 5, 1, 7, I8))
    assert counters.dram_bytes > MOST * cost
