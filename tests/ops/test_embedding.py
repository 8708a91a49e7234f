# SPDX-License-Identifier: Apache-2.0
"""embedding and quant_embedding: bit for bit the specification, one packed copy for both uses, ids out of range."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract_tests import error_of, needs_native

from pyspec import ops, spec
from pyspec.contract import OPS, Case
from pyspec.spec.pack_quant_weight import random_rows
from pyspec.spec.quant_formats import FORMATS, dequantize

CASES = [
    pytest.param(name, case, id=f"{name}-{case.name}")
    for name in ("embedding", "quant_embedding")
    for case in OPS[name].cases()
]


@needs_native
@pytest.mark.parametrize(("name", "case"), CASES)
def test_equals_the_specification(name: str, case: Case) -> None:
    got = getattr(torch.ops.pyspec, name)(*case.args, **case.kwargs)
    assert torch.equal(got, OPS[name].run(*case.args, **case.kwargs))


@pytest.mark.parametrize("name", FORMATS)
def test_packed_rows_are_the_dequantised_ones(name: str) -> None:
    rows = random_rows(name, 50, 512)
    packed, ids = ops.pack_quant_weight(rows, format=name), torch.randperm(50).int()
    got = ops.quant_embedding(ids, packed, format=name, layout="packed", num_rows=50)
    want = dequantize(rows, name)[ids.long()]
    assert torch.equal(got, ops.quant_embedding(ids, rows, format=name))
    if FORMATS[name].block_k == 32:
        assert torch.equal(got, want)
    else:  # scales are rounded by 2^-11, a minimum may cancel
        assert (got - want).abs().max() <= 2**-10 * want.abs().max()


def test_one_packed_copy_serves_the_head() -> None:
    """A row of the table against itself and the others: quant_linear and quant_embedding read the same weights."""
    rows = random_rows("q8_0", 40, 256)
    packed = ops.pack_quant_weight(rows, format="q8_0")
    kwargs: dict[str, Any] = {"format": "q8_0", "layout": "packed", "num_rows": 40}
    table = ops.quant_embedding(torch.arange(40, dtype=torch.int32), packed, **kwargs)
    logits = ops.quant_linear(table, packed, **kwargs)
    assert torch.allclose(logits, table @ table.T, rtol=0.02, atol=0.02 * float(logits.abs().max()))
    assert torch.equal(logits.argmax(dim=1), (table @ table.T).argmax(dim=1))


@pytest.mark.parametrize("bad", [-1, 20, 2**31 - 1, -(2**31)])
def test_refuses_ids(bad: int) -> None:
    ids, rows = torch.tensor([3, bad], dtype=torch.int32), random_rows("q4_1", 20, 64)
    packed = spec.pack_quant_weight.run(rows, format="q4_1")
    as_packed = {"format": "q4_1", "layout": "packed", "num_rows": 20}
    for name, weight, kwargs in (
        ("embedding", torch.zeros(20, 4), {}),
        ("quant_embedding", rows, {"format": "q4_1"}),
        ("quant_embedding", packed, as_packed),
    ):
        want = (ValueError, f"{name}: ids must be in [0, 20), got {bad}")
        assert error_of(lambda n=name, w=weight, k=kwargs: OPS[n].run(ids, w, **k)) == want
        assert error_of(lambda n=name, w=weight, k=kwargs: getattr(torch.ops.pyspec, n)(ids, w, **k)) == want


def test_refuses_sizes() -> None:
    ids, rows = torch.zeros(1, dtype=torch.int32), random_rows("q4_1", 20, 64)
    packed = spec.pack_quant_weight.run(rows, format="q4_1")
    for weight, kwargs, want in (
        (rows[:, 1:], {"format": "q4_1"}, "qweight must be [N, Y] with Y a multiple of 20 (bytes of a q4_1 block), got [20, 39]"),
        (
            packed[:, 1:], {"format": "q4_1", "layout": "packed", "num_rows": 20},
            "qweight must be [R, Y] with Y the bytes of a packed q4_1 block, got [2, 703]",
        ),
        (rows, {"format": "q4"}, "format must be q4_0|q4_1|q5_0|q8_0|q4_k|q6_k, got q4"),
    ):  # fmt: skip
        error = (ValueError, f"quant_embedding: {want}")
        assert error_of(lambda w=weight, k=kwargs: spec.quant_embedding.run(ids, w, **k)) == error
        assert error_of(lambda w=weight, k=kwargs: torch.ops.pyspec.quant_embedding(ids, w, **k)) == error
