# SPDX-License-Identifier: Apache-2.0
"""tile_kv: the layout as written in the specification, both ways, bit for bit."""

from __future__ import annotations

import pytest
import torch
from contract_tests import error_of, needs_native

from pyspec import spec
from pyspec.contract import Case

CASES = [pytest.param(case, id=case.name) for case in spec.tile_kv.cases()]


@needs_native
@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case: Case) -> None:
    for got, want in zip(
        torch.ops.pyspec.tile_kv(*case.args, **case.kwargs),
        spec.tile_kv.run(*case.args, **case.kwargs),
        strict=True,
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("case", CASES)
def test_inverse_gives_back_every_bit(case: Case) -> None:
    k, v = (kv.clone() for kv in case.args)
    if k.is_floating_point():
        k[..., 0], v[..., 1] = float("nan"), -0.0
    back = torch.ops.pyspec.tile_kv(*torch.ops.pyspec.tile_kv(k, v), inverse=True)
    for got, want in zip(back, (k, v), strict=True):
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))


def test_the_layout() -> None:
    """Two pages of 32 slots, G = 3, D = 4, as the indices of the specification's lines."""
    P, S, G, D = 2, 32, 3, 4
    for dtype in (torch.bfloat16, torch.float32):
        k, v = torch.arange(2 * P * S * G * D).view(2, P, S, G, D).float().to(dtype)
        tk, tv = spec.tile_kv.run(k, v)
        if dtype == torch.bfloat16:
            tk, tv = tk.view(P, G, S // 16, D // 2, 16, 2), tv.view(P, G, S // 2, D, 2)
            assert tk[1, 2, 1, 1, 5, 1] == k[1, 16 + 5, 2, 3]
            assert tv[1, 2, 7, 3, 1] == v[1, 15, 2, 3]
        else:
            tk, tv = tk.view(P, G, S // 16, D, 16), tv.view(P, G, S, D)
            assert tk[1, 2, 1, 3, 5] == k[1, 16 + 5, 2, 3]
            assert tv[1, 2, 15, 3] == v[1, 15, 2, 3]


@pytest.mark.parametrize("shape", [(2, 8, 1, 16), (2, 16, 1, 15), (2, 0, 1, 16)])
def test_bad_page_sizes(shape: tuple[int, ...]) -> None:
    pages = torch.zeros(shape)
    rule = "S >= 1" if shape[1] == 0 else "S a multiple of 16 and D even in the tiled layout"
    want = (ValueError, f"tile_kv: k_pages must be [P, S, G, D] with {rule}, got {list(shape)}")
    assert error_of(lambda: spec.tile_kv.run(pages, pages)) == want
    assert error_of(lambda: torch.ops.pyspec.tile_kv(pages, pages)) == want
