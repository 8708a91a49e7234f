# SPDX-License-Identifier: Apache-2.0
"""CUDA tree_attention: the bits of a row depend on its query and the keys it sees alone; unwritten slots hold NaN in every test."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_batches import chain, make_request, random_tree
from cuda_emulator import emulator
from tree_attention_checks import TREE, attend_requests, same_bits

HEAD_DIMS = [64, 96, 128, 256]
OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"window": 21}, id="window"),
    pytest.param({"softcap": 5.0}, id="softcap"),
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("D", HEAD_DIMS)
def test_prefill_in_any_chunks_equals_plain_decode(D: int, options: dict[str, Any]) -> None:
    prompt = make_request(0, chain(150), H=3, G=1, D=D)
    (whole,) = attend_requests([prompt], **options)
    nodes = list(range(150))
    for cuts in ([0, 1, 2, 150], [0, 17, 33, 128, 150]):
        for begin, end in zip(cuts, cuts[1:], strict=False):
            (part,) = attend_requests([prompt.select(nodes[:end], committed=begin)], S=5, **options)
            assert same_bits(part, whole[begin:end])
    for i in (0, 15, 16, 31, 149):
        (one,) = attend_requests([prompt.select(nodes[: i + 1], committed=i)], S=1, **options)
        assert same_bits(one[0], whole[i])


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("D", HEAD_DIMS)
def test_batches_splits_pages_and_machines_change_nothing(D: int, dtype: str) -> None:
    request = make_request(1700, chain(9), H=8, G=1, D=D, dtype=dtype)
    with emulator.schedule(num_sms=1):
        (want,) = attend_requests([request])
    for num_sms in (2, 3, 132):
        with emulator.schedule(num_sms=num_sms, device="sm_80" if num_sms == 3 else "sm_90"):
            (got,) = attend_requests([request], S=7, seed=num_sms)
        assert same_bits(got, want)
    others = [
        make_request(1300, chain(40), H=8, G=1, D=D, dtype=dtype, seed=1),
        make_request(3, random_tree(30, 1), H=8, G=1, D=D, dtype=dtype),
    ]
    with emulator.schedule(num_sms=4):
        got = attend_requests([others[0], request, others[1]])[1]
    assert same_bits(got, want)


@pytest.mark.parametrize("options", OPTIONS)
def test_any_size_of_a_row_tile_gives_the_same_bits(options: dict[str, Any]) -> None:
    """90 nodes of 6 heads: tiles of 288 rows on a small machine, of 128 on a large one, of 64 beside many short requests."""
    request, small = make_request(530, chain(90), H=6, G=1, D=64), make_request(4, chain(1), H=6, G=1, D=64)
    with emulator.schedule(num_sms=1):
        (want,) = attend_requests([request], **options)
    assert same_bits(attend_requests([request], **options)[0], want)
    got = attend_requests([small] * 60 + [request], **options)
    assert same_bits(got[60], want)
    assert all(same_bits(rows, got[0]) for rows in got[:60])


@pytest.mark.parametrize("options", OPTIONS)
def test_a_path_of_a_tree_is_near_its_chain(options: dict[str, Any]) -> None:
    """Equal but for the rounding of the tensor cores' sums: siblings lie in slots between the ancestors."""
    tree = make_request(250, random_tree(40, seed=3), D=64)
    (whole,) = attend_requests([tree], **options)
    for node in range(0, 40, 7):
        path = tree.path(node)
        (as_chain,) = attend_requests([tree.select(path)], **options)
        torch.testing.assert_close(as_chain, whole[path], rtol=2e-2, atol=1e-2)
    first = tree.select([0])  # the root is in the slot of plain decode
    assert same_bits(attend_requests([first], **options)[0][0], whole[0])


@pytest.mark.parametrize("D", [64, 256])
def test_nan_that_a_row_does_not_see_is_not_read(D: int) -> None:
    tree = make_request(20, TREE, D=D)
    (clean,) = attend_requests([tree])
    (dirty,) = attend_requests([tree.with_nan([7, 6])])
    assert same_bits(dirty[:6], clean[:6])
    assert dirty[6:].isnan().all()
    prompt = make_request(0, chain(60), D=D)
    (clean,) = attend_requests([prompt])
    (dirty,) = attend_requests([prompt.with_nan(list(range(33, 60)))])
    assert same_bits(dirty[:33], clean[:33])
    assert dirty[33:].isnan().all()


def test_a_quantised_batch_equals_its_requests_one_by_one() -> None:
    from pyspec.spec.tree_attention import make_case  # one case, cut into its requests

    for dtype in ("f8", "i8"):
        case = make_case("", 4, 2, 64, 16, "f32", dtype, [(600, chain(3)), (30, TREE), (0, chain(20))])
        out, lse = emulator.call("tree_attention", *case.args, **case.kwargs)
        q, k, v, table, kv_len, cu_t, parents, *scales = case.args
        for b in range(3):
            rows = slice(int(cu_t[b]), int(cu_t[b + 1]))
            n = rows.stop - rows.start
            one = emulator.call(
                "tree_attention", q[rows], k, v, table[b : b + 1], kv_len[b : b + 1], torch.tensor([0, n]).int(),
                parents[rows], *scales, **case.kwargs,
            )  # fmt: skip
            assert same_bits(one[0], out[rows])
            assert same_bits(one[1], lse[rows])
