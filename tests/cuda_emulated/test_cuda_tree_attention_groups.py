# SPDX-License-Identifier: Apache-2.0
"""CUDA tree_attention of requests that begin with the same pages: the same bits as one by one, the shared KV read once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_batches import chain
from cuda_emulator import emulator
from cuda_emulator.counters import SECTOR
from tree_attention_checks import TREE, attend, same_bits

from pyspec.contract import Case
from pyspec.spec.tree_attention import make_case

# What comes after the shared pages: (committed tokens, parents).
REQUESTS = [(5, chain(1)), (300, chain(1)), (700, chain(3)), (20, TREE), (0, chain(1))]


def group(prefix: int, requests: list[tuple[int, list[int]]], S: int = 16, **sizes: Any) -> Case:
    """Requests whose first `prefix` slots lie in the pages of the first one."""
    options = {"H": 4, "G": 1, "D": 64, "q_dtype": "bf16", "dtype": "bf16", **sizes}
    case = make_case("", S=S, requests=[(prefix + L, parents) for L, parents in requests], **options)
    args = list(case.args)
    args[3] = args[3].clone()
    args[3][:, : prefix // S] = args[3][0, : prefix // S]
    return Case("", tuple(args), case.kwargs)


def alone(case: Case, b: int) -> Case:
    q, k, v, table, kv_len, cu_t, parents, *others = case.args
    begin, end = cu_t[b : b + 2].tolist()
    offsets = torch.tensor([0, end - begin], dtype=torch.int32)
    args = (q[begin:end], k, v, table[b : b + 1], kv_len[b : b + 1], offsets, parents[begin:end], *others)
    return Case("", args, case.kwargs)


def equals_one_by_one(case: Case, **options: Any) -> bool:
    out, lse = attend(case, **options)
    bounds = case.args[5].tolist()
    ones = [attend(alone(case, b)) for b in range(len(bounds) - 1) if bounds[b] < bounds[b + 1]]
    return same_bits(torch.cat([one[0] for one in ones]), out) and same_bits(
        torch.cat([one[1] for one in ones]), lse
    )


CASES = {
    "two-spans": group(1100, REQUESTS),
    "four-spans": group(2064, REQUESTS, D=128, q_dtype="f32", dtype="i8", sinks=True),
    "two-groups": group(1100, [*REQUESTS, (3, []), *REQUESTS], S=5, H=6, G=2),
    "less-than-a-span": group(480, REQUESTS),
    "window": group(1100, REQUESTS, window=900),
}


@pytest.mark.parametrize("num_sms", [1, 2, 8, 132])
@pytest.mark.parametrize("name", CASES)
def test_a_group_equals_its_requests_one_by_one(name: str, num_sms: int) -> None:
    with emulator.schedule(num_sms=num_sms):
        assert equals_one_by_one(CASES[name])


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_a_group_in_every_order_of_threads(order: str) -> None:
    with emulator.schedule(num_sms=2, order=order, copies="late"):
        assert equals_one_by_one(CASES["two-spans"], checked=True)


def test_shared_kv_is_read_once() -> None:
    """16 plain decodes of 4 heads are the 64 rows of one tile."""
    case = group(4096, [(10, chain(1))] * 16)
    with emulator.schedule(num_sms=1), emulator.counting() as counters:
        attend(case)
    read = SECTOR * sum(counters.traffic[name].read_sectors for name in ("k_pages", "v_pages"))
    assert read == 2 * 2 * 64 * (4096 + 16 * 11)


def test_a_plan_may_be_told_of_larger_tiles() -> None:
    """48 plain decodes of 4 heads as one tile of 192 rows; the workspace serves one run after another."""
    case = group(1024, [(10, chain(1))] * 48)
    q, k_pages, _, *indices = case.args[:7]
    sizes = {"q_dtype": q.dtype, "kv_dtype": k_pages.dtype, "node_count": 48}
    with emulator.schedule(num_sms=1):
        want = attend(case)
        workspace = emulator.call(
            "tree_attention_plan", *indices, q_shape=q.shape, pages_shape=k_pages.shape, **sizes
        )
        for _ in range(2):
            with emulator.counting() as counters:
                got = emulator.call("tree_attention_run", *case.args, workspace, node_count=48, **case.kwargs)
            assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))
            read = SECTOR * sum(counters.traffic[name].read_sectors for name in ("k_pages", "v_pages"))
            assert read == 2 * 2 * 64 * (1024 + 48 * 11)


@pytest.mark.parametrize(("bug", "finding"), [(11, "race"), (12, "result")])
def test_planted_bugs_of_groups_are_caught(bug: int, finding: str) -> None:
    case, found = CASES["two-spans"], set()
    try:
        got = attend(case, bug=bug, checked=True)
    except emulator.EmulatorError as error:
        found = error.kinds
    else:
        found = {"result"} if not torch.equal(got[0], attend(case)[0]) else set()
    assert finding in found
