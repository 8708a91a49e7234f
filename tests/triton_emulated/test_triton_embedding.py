# SPDX-License-Identifier: Apache-2.0
"""embedding, quant_embedding and quantize_activations in Triton: the specification's bits, planted bugs."""

from __future__ import annotations

import pytest
import torch
from emulation import faults, needs_ttsem, same_bits, supported

from pyspec.contract import OPS, Case
from pyspec.kernels import embedding as plain
from pyspec.kernels import quant_embedding as quantised
from pyspec.kernels import quantize_activations as activations
from pyspec.spec.pack_quant_weight import random_rows
from pyspec.spec.quant_formats import FORMATS


@pytest.mark.parametrize("case", supported("embedding"))
def test_embedding_bits(case: Case) -> None:
    ids, weight = case.args[0][:20], case.args[1]
    same_bits(
        plain.embedding(ids, weight, **case.kwargs), OPS["embedding"].reference(ids, weight, **case.kwargs)
    )


def test_embedding_of_a_view() -> None:
    table = torch.randn(9, 70, generator=torch.Generator().manual_seed(0)).bfloat16()
    ids = torch.tensor([8, 0, 3, 3], dtype=torch.int32)
    for view in (table[:, 7:30], table[::2, ::2], table.t()[:9]):
        same_bits(plain.embedding(ids % view.size(0), view), view[ids.long() % view.size(0)].float())


def test_wrong_row_is_found() -> None:
    weight, ids = torch.randn(4, 40), torch.tensor([0, 2], dtype=torch.int32)
    with pytest.raises(AssertionError, match="bytes differ"):
        same_bits(plain._launch(ids, weight, 1.0, plain.pick_config(40), "next row"), weight[ids.long()])


@needs_ttsem
def test_row_beyond_the_table_is_found() -> None:
    with faults("oob_read"):
        plain._launch(
            torch.tensor([3], dtype=torch.int32), torch.randn(4, 40), 1.0, plain.pick_config(40), "next row"
        )


@pytest.mark.parametrize("case", supported("quant_embedding", quantised.limit))
def test_quant_embedding_bits(case: Case) -> None:
    ids, qweight = case.args[0][:6], case.args[1]
    want = OPS["quant_embedding"].reference(ids, qweight, **case.kwargs)
    same_bits(quantised.quant_embedding(ids, qweight, **case.kwargs), want)


def test_quant_embedding_refuses_the_packed_layout() -> None:
    assert quantised.limit({}, layout="packed") == "layout must be rows (packed is the CPU's), got packed"


@needs_ttsem
@pytest.mark.parametrize("format", sorted(name for name, f in FORMATS.items() if f.block_k == 32))
def test_missing_group_mask_is_found(format: str) -> None:
    """9 groups a row and 8 a program: without a mask the last row's second program reads behind the table."""
    ids, qweight = torch.tensor([1], dtype=torch.int32), random_rows(format, 2, 9 * 32)
    with faults("oob_read"):
        quantised._launch(ids, qweight, format, 1.0, "no mask")


@pytest.mark.parametrize("case", supported("quantize_activations"))
def test_quantize_activations_bits(case: Case) -> None:
    (x,) = case.args
    for got, want in zip(
        activations.quantize_activations(x), OPS["quantize_activations"].reference(x), strict=True
    ):
        same_bits(got, want)


def test_quantize_activations_of_a_view() -> None:
    wide = torch.randn(64, 70, generator=torch.Generator().manual_seed(2))
    for view in (wide[:3, 3:67], wide[:, :3].t(), wide[:3, 6::2]):
        got, want = (activations.quantize_activations(x) for x in (view, view.contiguous()))
        for a, b in zip(got, want, strict=True):
            same_bits(a, b)


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("no mask", "oob_read"), ("shared sums", "race")])
def test_planted_bugs_of_quantize_activations_are_found(bug: str, kind: str) -> None:
    with faults(kind):
        activations._launch(torch.randn(3, 64), bug)
