# SPDX-License-Identifier: Apache-2.0
"""rope, append_kv and commit_kv in Triton: the specification's bits, views, overlaps, planted bugs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from emulation import copied, faults, needs_ttsem, same_bits, supported
from torch import Tensor

from pyspec.contract import OPS, Case
from pyspec.kernels import append_kv, commit_kv, rope
from pyspec.kernels.narrow import from_e4m3, to_e4m3
from pyspec.spec.rope import rope_angles


@triton.jit
def e4m3_kernel(x_ptr, bits_ptr, values_ptr, N: tl.constexpr):
    offs = tl.arange(0, N)
    bits = to_e4m3(tl.load(x_ptr + offs))
    tl.store(bits_ptr + offs, bits)
    tl.store(values_ptr + offs, from_e4m3(bits).to(tl.float32))


def check_in_place(name: str, kernel: Callable[..., None], case: Case, written: tuple[int, ...]) -> None:
    """Kernel and specification leave the same bits in the tensors they write."""
    got, want = copied(case), copied(case)
    kernel(*got, **case.kwargs)
    OPS[name].reference(*want, **case.kwargs)
    for i in written:
        if want[i] is not None:
            same_bits(got[i], want[i])


@pytest.mark.parametrize("case", supported("rope"))
def test_rope_bits(case: Case) -> None:
    same_bits(rope.rope(*case.args, **case.kwargs), OPS["rope"].reference(*case.args, **case.kwargs))


def test_rope_of_a_view() -> None:
    """Queries as they lie in the result of a fused projection."""
    fused = torch.randn(5, 7, 40, generator=torch.Generator().manual_seed(0))
    positions, table = torch.arange(5, dtype=torch.int32), rope_angles(5, 32)
    for view in (fused[:, 1:4, 4:38], fused[:, ::2], fused.transpose(0, 1)[:5, :5]):
        same_bits(rope.rope(view, positions, table), rope.rope(view.contiguous(), positions, table))


@pytest.mark.parametrize("case", supported("append_kv", append_kv.limit))
def test_append_bits(case: Case) -> None:
    check_in_place("append_kv", append_kv.append_kv, case, (2, 3, 7, 8))


@pytest.mark.parametrize("case", supported("commit_kv", commit_kv.limit))
def test_commit_bits(case: Case) -> None:
    check_in_place("commit_kv", commit_kv.commit_kv, case, (0, 1, 6, 7))


@pytest.mark.parametrize("S", [1, 3, 8])
def test_long_overlapping_path(S: int) -> None:
    """Every other node of 44, over chunks of 16: targets are sources of the same and of later moves."""
    g = torch.Generator().manual_seed(S)
    k_pages, v_pages = torch.randn(2, 60 // S + 1, S, 2, 24, generator=g)
    table = torch.randperm(60 // S + 1, generator=g, dtype=torch.int32)[None]
    path = torch.arange(0, 44, 2, dtype=torch.int32)[None]
    args = (
        k_pages,
        v_pages,
        table,
        torch.tensor([5], dtype=torch.int32),
        path,
        torch.tensor([22], dtype=torch.int32),
    )
    check_in_place("commit_kv", commit_kv.commit_kv, Case("", args), (0, 1))


def test_strided_pages() -> None:
    """K and V as two views of one cache."""
    g = torch.Generator().manual_seed(3)
    k, v = torch.randn(2, 4, 2, 20, generator=g)
    cache = torch.randn(3, 2, 5, 2, 24, generator=g).bfloat16()
    want = cache.clone()
    slots, positions = torch.tensor([14, 0, 7, 3]), torch.arange(4, dtype=torch.int32)
    for pages, write in ((cache, append_kv.append_kv), (want, OPS["append_kv"].reference)):
        write(k, v, pages[:, 0, ..., :20], pages[:, 1, ..., 2:22], slots, positions, rope_angles(4, 12))
    same_bits(cache, want)
    assert "dense last dimension" in str(append_kv.limit({}, k, v, cache[:, 0, ..., ::2]))


def test_rows_that_cannot_be_scaled() -> None:
    g = torch.Generator().manual_seed(4)
    k, v = torch.randn(2, 4, 2, 16, generator=g)
    k[0, 0], k[1, 1, 3], v[2, 0, 5], v[3] = 0, torch.nan, torch.inf, 1e-31
    for dtype in (torch.int8, torch.float8_e4m3fn):
        pages = [torch.zeros(2, 3, 2, 16).to(dtype) for _ in range(2)]
        args = (k, v, *pages, torch.tensor([4, 1, 0, 5]), torch.zeros(4, dtype=torch.int32), None)
        case = Case("", (*args, torch.ones(2, 3, 2), torch.ones(2, 3, 2)))
        check_in_place("append_kv", append_kv.append_kv, case, (2, 3, 7, 8))


def test_e4m3_rounds_like_torch() -> None:
    """Every code, every midpoint of two codes and its neighbours, denormals among them, and back."""
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (codes[1:] + codes[:-1]) / 2
    x = torch.cat(
        [codes, middles, middles.nextafter(torch.tensor(1e9)), middles.nextafter(torch.tensor(-1.0))]
    )
    x = torch.cat([x, -x, torch.zeros(1024 - 2 * len(x))])
    bits, values = torch.empty(1024, dtype=torch.uint8), torch.empty(1024)
    e4m3_kernel[(1,)](x, bits, values, N=1024)
    want = x.to(torch.float8_e4m3fn)
    same_bits(bits, want.view(torch.uint8))
    same_bits(values, want.float())


def cache_call(bug: str) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(5)
    k, v = torch.randn(2, 3, 2, 24, generator=g)
    k_pages, v_pages = torch.zeros(2, 2, 3, 2, 24)
    slots, positions = torch.tensor([5, 2, 0]), torch.arange(3, dtype=torch.int32)
    return (
        k,
        v,
        k_pages,
        v_pages,
        slots,
        positions,
        rope_angles(3, 16),
        None,
        None,
        False,
        append_kv.pick_config(2, 24),
        bug,
    )


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("no mask", "oob_write"), ("one slot", "race")])
def test_planted_bugs_of_append_are_found(bug: str, kind: str) -> None:
    with faults(kind):
        append_kv._launch(*cache_call(bug))


@needs_ttsem
def test_partner_of_an_unrotated_dim_is_found() -> None:
    """Only rotary dims have a partner: the planted bug reads one for every dim, also for the last of 41."""
    with faults("oob_read"):
        rope._launch(
            torch.randn(1, 2, 41), torch.zeros(1, dtype=torch.int32), rope_angles(1, 32), True, "whole head"
        )


def commit_call(bug: str) -> tuple[Tensor, ...]:
    case = next(iter(OPS["commit_kv"].cases()))
    args = copied(case)
    commit_kv._launch(*args, commit_kv.pick_config(4, 10), bug)
    return args


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("one head", "race"), ("whole chunk", "oob_read")])
def test_planted_bugs_of_commit_are_found(bug: str, kind: str) -> None:
    with faults(kind):
        commit_call(bug)


def test_wrong_page_of_commit_is_found() -> None:
    case = next(iter(OPS["commit_kv"].cases()))
    want = copied(case)
    OPS["commit_kv"].reference(*want, **case.kwargs)
    with pytest.raises(AssertionError, match="bytes differ"):
        same_bits(commit_call("first page")[0], want[0])
