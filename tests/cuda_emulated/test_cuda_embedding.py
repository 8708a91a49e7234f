# SPDX-License-Identifier: Apache-2.0
"""CUDA embedding and quant_embedding: rows of the specification bit for bit, in all formats of GGUF."""

from __future__ import annotations

import pytest
import torch
from contract_tests import copies, error_of
from cuda_emulator import emulator
from emulated_calls import (
    all_same,
    by_specification,
    emulated,
    how_caught,
    is_the_same_in_every_order,
    is_the_same_strided,
    same,
    shifted,
)

from pyspec import spec
from pyspec.contract import Case
from pyspec.spec.pack_quant_weight import random_rows
from pyspec.spec.quant_formats import FORMATS

CASES = [pytest.param(case, id=case.name) for case in spec.embedding.cases()]
ROWS = [case for case in spec.quant_embedding.cases() if case.kwargs.get("layout", "rows") == "rows"]


def quant_case(format: str, T: int = 3, N: int = 6, blocks: int = 3) -> Case:
    rows = random_rows(format, N, blocks * FORMATS[format].block_k)
    ids = torch.randint(0, N, (T,), generator=torch.Generator().manual_seed(blocks), dtype=torch.int32)
    return Case(format, (ids, rows), {"format": format, "scale": 0.7})


def large_minima() -> Case:
    """q4_k whose minima are 64 times its scales: they alone say where a row is rounded."""
    case = quant_case("q4_k")
    ids, rows = copies(case)
    blocks = rows.view(len(rows), -1, FORMATS["q4_k"].block_bytes)
    d = blocks[..., :2].contiguous().view(torch.float16).float()
    blocks[..., 2:4] = (64 * d).half().view(torch.uint8)
    return Case("q4_k-minima", (ids, rows), case.kwargs)


@pytest.mark.parametrize("case", CASES)
def test_rows_of_the_specification(case: Case) -> None:
    assert all_same(emulated("embedding", case), by_specification("embedding", case))
    assert is_the_same_strided("embedding", case)
    ids, weight = case.args
    if len(ids):
        assert same(
            emulator.call("embedding", ids, shifted(weight), **case.kwargs), emulated("embedding", case)[0]
        )


def test_denormals_and_infinities_are_kept() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tiny = torch.finfo(dtype).smallest_normal / 4
        weight = torch.tensor([[tiny, -tiny, torch.inf, torch.nan], [0.0, -0.0, 1.0, -torch.inf]]).to(dtype)
        case = Case("", (torch.tensor([1, 0], dtype=torch.int32), weight), {"scale": 2.0})
        assert all_same(emulated("embedding", case), by_specification("embedding", case))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in [*ROWS, large_minima()]])
def test_quantised_rows_of_the_specification(case: Case) -> None:
    assert all_same(emulated("quant_embedding", case), by_specification("quant_embedding", case))


@pytest.mark.parametrize("format", FORMATS)
def test_more_values_than_a_block_has_threads_for(format: str) -> None:
    case = quant_case(format, T=2, N=3, blocks=1280 // FORMATS[format].block_k)
    assert all_same(emulated("quant_embedding", case), by_specification("quant_embedding", case))


@pytest.mark.parametrize("format", FORMATS)
def test_views_of_tables(format: str) -> None:
    case = quant_case(format)
    ids, rows = copies(case)
    assert is_the_same_strided("quant_embedding", case)
    for table in (shifted(rows), torch.nn.functional.pad(rows.flatten(), (1, 0))[1:].view_as(rows)):
        got = emulator.call("quant_embedding", ids, table, **case.kwargs)
        assert same(got, emulated("quant_embedding", case)[0])


@pytest.mark.parametrize("format", ["q4_k", "q6_k"])
def test_rows_of_zeros_and_of_not_a_number(format: str) -> None:
    """A row without a largest scale keeps scales as they are; infinity and NaN stay in their own rows."""
    case = quant_case(format, T=4, N=4, blocks=2)
    ids, rows = copies(case)
    ids.copy_(torch.arange(4))
    rows[0] = 0
    d = slice(0, 2) if format == "q4_k" else slice(208, 210)
    rows[1, d], rows[2, d] = torch.tensor([0, 0x7C]).byte(), torch.tensor([1, 0x7E]).byte()
    odd = Case("", (ids, rows), case.kwargs)
    assert all_same(emulated("quant_embedding", odd), by_specification("quant_embedding", odd))


@pytest.mark.parametrize("format", ["q4_0", "q4_k", "q6_k"])
def test_any_order_of_threads(format: str) -> None:
    assert is_the_same_in_every_order("quant_embedding", quant_case(format, T=2, blocks=2))
    assert is_the_same_in_every_order("embedding", next(iter(spec.embedding.cases())))


def test_the_packed_layout_is_refused() -> None:
    case = next(c for c in spec.quant_embedding.cases() if c.kwargs.get("layout") == "packed")
    want = (ValueError, "quant_embedding: layout must be rows on GPUs, got packed")
    assert error_of(lambda: emulator.call("quant_embedding", *copies(case), **case.kwargs)) == want
    assert spec.quant_embedding.limits["cuda"](
        spec.quant_embedding.bind(case.args), *case.args, **case.kwargs
    )


BUGS = (1, 2, 3)
QUANT_BUGS = {
    1: (quant_case("q4_k"), "race"), 2: (large_minima(), "result"), 3: (quant_case("q4_1"), "result"),
    21: (quant_case("q5_0"), "result"), 22: (quant_case("q6_k"), "result"), 23: (quant_case("q4_k"), "result"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_of_embedding_are_caught(bug: int) -> None:
    cases = [case for case in spec.embedding.cases() if 0 < len(case.args[0]) < 200]
    assert "result" in how_caught("embedding", cases, bug)


@pytest.mark.parametrize("bug", QUANT_BUGS)
def test_planted_bugs_of_quant_embedding_are_caught(bug: int) -> None:
    case, how = QUANT_BUGS[bug]
    assert how in how_caught("quant_embedding", [case], bug)
