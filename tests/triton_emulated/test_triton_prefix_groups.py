# SPDX-License-Identifier: Apache-2.0
"""Triton tree_attention of requests that begin with the same pages: the bits of one by one, the shared KV read once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attention_batches import chain
from emulation import INTERPRETED, faults, needs_ttsem, same_bits
from torch import Tensor
from triton.runtime import interpreter

from pyspec.contract import Case
from pyspec.kernels import tree_attention as kernels
from pyspec.kernels.prefix_groups import BLOCK_W, common_kernel
from pyspec.spec.tree_attention import make_case

SPAN = 128  # instead of 512, for shorter texts
TREE = [-1, 0, 0, 1, 1, 2, 4]
# What comes after the shared pages: (committed tokens, parents).
REQUESTS = [(5, chain(1)), (70, chain(1)), (170, chain(3)), (20, TREE), (0, chain(1))]


def group(
    prefixes: int | list[int], requests: list[tuple[int, list[int]]], S: int = 16, **sizes: Any
) -> Case:
    """Requests, each of whose first slots, as many as its prefix has, lie in the pages of the first one."""
    if isinstance(prefixes, int):
        prefixes = [prefixes] * len(requests)
    options = {"H": 4, "G": 2, "D": 16, "q_dtype": "bf16", "dtype": "bf16", **sizes}
    case = make_case("", S=S, requests=[(max(prefixes) + L, parents) for L, parents in requests], **options)
    args = list(case.args)
    args[3] = args[3].clone()
    for row, prefix in zip(args[3], prefixes, strict=True):
        row[: prefix // S] = args[3][0, : prefix // S]
    return Case("", tuple(args), case.kwargs)


def launch(case: Case, bug: str = "", *, shared_programs: int = 5) -> tuple[Tensor, Tensor]:
    """Two parts of own spans, and some programs for shared ones; or, without these, nothing stored."""
    (T, H, D), (_, S, G, _), (B, W) = case.args[0].shape, case.args[1].shape, case.args[3].shape
    c = kernels.pick_config(T, H, G, D, B, W * S, case.args[0].dtype, case.args[1].dtype)
    spans, parts = -(-W * S // SPAN), 2 if shared_programs else 1
    c = replace(c, span=SPAN, spans=spans, parts=parts, shared_programs=shared_programs)
    kwargs = {"window": 0, "softcap": 0.0, **case.kwargs}
    kwargs.pop("kv_layout", None)
    return kernels._launch(*case.args, c, **kwargs, bug=bug)


CASES = {  # and the spans that each request shares with the one before it
    "two-spans": (group(270, REQUESTS), [0, 2, 2, 2, 2]),
    "four-spans": (group(512, REQUESTS, q_dtype="f32", dtype="i8", sinks=True), [0, 4, 4, 4, 4]),
    "two-groups": (
        group(270, [*REQUESTS, (3, []), *REQUESTS], S=5, H=3, G=1),
        [0, 2, 2, 2, 2, 0, 0, 2, 2, 2, 2],
    ),
    "several-tiles": (group(144, [(2, chain(12))] * 4 + [(3, TREE)] * 3, H=6, G=2), [0, *[1] * 6]),
    "uneven": (group([400, 400, 300, 400, 150], REQUESTS), [0, 3, 2, 2, 1]),
    "less-than-a-span": (group(120, REQUESTS), [0] * 5),
}


@pytest.mark.parametrize("name", CASES)
def test_a_group_has_the_bits_of_its_requests(name: str) -> None:
    """With as many programs as row tiles, and with more, which are no multiple."""
    case, _ = CASES[name]
    want = launch(case, shared_programs=0)
    for one, other in zip(launch(case, shared_programs=4 + (name == "uneven")), want, strict=True):
        same_bits(one, other)


def common(case: Case, bug: str = "") -> list[int]:
    table, kv_len, cu_t = case.args[3:6]
    found = torch.empty_like(kv_len)
    common_kernel[(len(kv_len),)](
        table, kv_len, cu_t, found, table.stride(0), S=case.args[1].size(1), SPAN=SPAN, BLOCK_W=BLOCK_W,
        PLANTED_BUG=bug,
    )  # fmt: skip
    return found.tolist()


def test_common_spans() -> None:
    """Whole spans of whole pages that both have committed; none with a request without nodes."""
    for case, want in CASES.values():
        assert common(case) == want
    long = group(600, [(7, chain(1))] * 3, S=1)  # more columns than are compared at once
    assert common(long) == [0, 4, 4]
    long.args[3][1, 300] += 1
    assert common(long) == [0, 2, 2]
    assert common(CASES["two-spans"][0], bug="long prefix") == [0, 3, 3, 3, 3]


def test_config_shares_where_rows_of_requests_fit_a_tile() -> None:
    c = kernels.pick_config(16, 32, 8, 128, 16, 8192)
    assert (c.tiles, c.parts, c.shared_programs, c.programs) == (16, 2, 33, 65)
    assert c.stores
    assert kernels.pick_config(2, 32, 8, 128, 2, 1024).shared_programs == 2  # a tile of two spans
    assert kernels.pick_config(512, 32, 8, 128, 256, 8192).shared_programs == 158  # of up to 128 groups
    for more in (
        {"window": 900},
        {"B": 1},
        {"slots": 512},  # no more than a span
        {"T": 16 * 9},  # tiles are full
        {"T": 128, "slots": 1 << 20},  # too much to store
    ):
        sizes = {"T": 16, "H": 32, "G": 8, "D": 128, "B": 16, "slots": 8192, **more}
        assert kernels.pick_config(**sizes).shared_programs == 0, more


@pytest.mark.skipif(not INTERPRETED, reason="loads are counted in the interpreter")
def test_shared_kv_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 plain decodes of four heads are the 64 rows of one tile, of two KV heads."""
    case = group(512, [(10, chain(1))] * 16, H=8)
    begin, end = case.args[1].data_ptr(), case.args[1].data_ptr() + case.args[1].nbytes
    read, stock = 0, interpreter.InterpreterBuilder.create_masked_load

    def counted(builder: Any, ptrs: Any, mask: Any, *others: Any, **named: Any) -> Any:
        nonlocal read
        read += 2 * int(np.count_nonzero((ptrs.data >= begin) & (ptrs.data < end) & mask.data))
        return stock(builder, ptrs, mask, *others, **named)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", counted)
    bytes_per_slot = 2 * 2 * 16
    launch(case)
    assert read == bytes_per_slot * (512 + 16 * 11)
    read = 0
    launch(case, shared_programs=0)
    assert read == bytes_per_slot * 16 * (512 + 11)


@needs_ttsem
def test_planted_shared_span_is_found() -> None:
    with faults("race"):
        launch(CASES["two-spans"][0], bug="shared span")


def test_a_prefix_that_is_too_long_is_found() -> None:
    case = group(270, [(200, chain(1)), (300, chain(1)), (170, chain(3))])
    assert not torch.equal(launch(case, bug="long prefix")[0], launch(case)[0])
