# SPDX-License-Identifier: Apache-2.0
"""Launches of the compiled step that do the work of two: the bits are those of the two."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contract_tests import needs_native
from torch import Tensor

from pyspec import backends
from pyspec.engine.compiled import for_products_alone
from pyspec.models.program import Ref, Tracer, columns
from pyspec.ops import pack_quant_weight
from pyspec.spec.pack_quant_weight import random_rows

ROWS, COLUMNS, CHANNELS = 40, 576, 48


def extreme_rows(columns: int) -> Tensor:
    """Normal rows, tiny and huge groups, zeros, and rows with NaN and infinities."""
    x = torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(columns))
    x[:, 32:64] *= 1e4
    x[:, 64:96] *= 1e-33
    x[3], x[5, 100], x[6, 7], x[17, 41] = 0, torch.nan, torch.inf, -torch.inf
    return x


@needs_native
@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm", "silu", "gelu"])
def test_what_a_launch_quantises_is_what_two_would(op: str) -> None:
    native = backends.native
    page, unused = torch.zeros(4096), torch.zeros(ROWS, dtype=torch.int64)
    names = ("tokens", "positions", "parents", "cu_t", "kv_len", "page_table", "logit_rows", "slots")
    arrays = native.StepArrays(table_width=1, **dict.fromkeys(names, unused.data_ptr()))
    cache = native.CacheShape(
        k=page.data_ptr(), v=page.data_ptr(), k_scale=0, v_scale=0, layers=1, pages=1, page_size=16, kv_heads=1,
        head_dim=16, dtype=0, tiled=True,
    )  # fmt: skip
    weight = torch.rand(COLUMNS) + 0.5
    packed = pack_quant_weight(random_rows("q4_1", CHANNELS, COLUMNS), format="q4_1")
    inner, x = torch.zeros(ROWS, COLUMNS), extreme_rows(COLUMNS)
    gate_up, residual = extreme_rows(2 * COLUMNS), extreme_rows(COLUMNS).flip(1).contiguous()
    as_rows = lambda t: native.Rows(t.data_ptr(), t.size(1), t.size(1), False)
    for count in (1, 3, 8, 9, 23, ROWS):
        results = []
        for fused in (True, False):
            executor = native.StepExecutor(arrays, cache, ROWS, 1)
            out, stream, target = torch.zeros(ROWS, CHANNELS), residual.clone(), as_rows(inner)
            if op == "rms_norm":
                executor.rms_norm(as_rows(x), weight.data_ptr(), target, 1, 1e-5, fused)
            elif op == "add_rms_norm":
                executor.add_rms_norm(as_rows(stream), as_rows(x), weight.data_ptr(), target, 1e-5, fused)
            else:
                executor.gated(as_rows(gate_up), target, op == "gelu", fused)
            if not fused:
                executor.quantize(target)
            executor.quant_linear(packed.data_ptr(), 1, 0, target, as_rows(out))
            executor.run(count, 0, 1)
            results.append((out.view(torch.int32), stream.view(torch.int32)))
            assert fused == bool((inner == 0).all())
            inner.zero_()
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        assert results[0][0][:count].count_nonzero() > 0


def joined(after: Callable[[Tracer, Ref], None], outputs: bool = False, heads: int = 1) -> bool:
    """Whether a norm of 64 columns is to quantise its rows where `after` comes behind it."""
    trace = Tracer()
    x, out = trace.buffer("x", 64), trace.buffer("h", 64)
    trace.op("rms_norm", (x,), out, "norm", eps=1e-5, heads=heads)
    after(trace, out)
    program = trace.program(trace.buffer("logits", 64), outputs=(out,) if outputs else ())
    return for_products_alone(program, 0, lambda name: name.startswith("q"))


def test_launches_are_joined_where_nothing_else_reads_the_rows() -> None:
    product = lambda trace, x, *names: trace.op(
        "linear", (x,), trace.buffer("y", 64), *names, parts=len(names)
    )
    copy = lambda trace, x: trace.op("copy", (x,), trace.buffer("z", 64))
    assert joined(lambda t, h: product(t, h, "q1", "q2"))
    assert joined(lambda t, h: (copy(t, t.buffer("x", 64)), product(t, h, "q1"), product(t, h, "q2")))
    assert not joined(lambda t, h: product(t, h, "q1", "dense"))
    assert not joined(lambda t, h: (product(t, h, "q1"), product(t, h, "dense")))
    assert not joined(lambda t, h: (product(t, h, "q1"), copy(t, h)))
    assert not joined(lambda t, h: product(t, columns(h, 0, 32), "q1"))
    assert not joined(lambda t, h: (product(t, t.buffer("x", 64), "q1"), product(t, h, "q2")))
    assert not joined(lambda t, h: t.op("rms_norm", (t.buffer("x", 64),), h, "norm", eps=1e-5))
    assert not joined(lambda t, h: product(t, h, "q1"), outputs=True)
    assert not joined(lambda t, h: product(t, h, "q1"), heads=2)
