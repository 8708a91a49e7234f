# SPDX-License-Identifier: Apache-2.0
"""commit_kv: equals moves one by one, in any layout; other slots keep their bits; bad values move nothing."""

from __future__ import annotations

import pytest
import torch
from contract_tests import copies, error_of, needs_native

import pyspec
from pyspec import spec
from pyspec.contract import Case
from pyspec.spec.tree_attention import FLOAT8, QUANTISED

CASES = [
    pytest.param(case, id=case.name) for case in spec.commit_kv.cases() if case.args[0].dtype not in QUANTISED
]
QUANTISED_CASES = [
    pytest.param(case, id=case.name) for case in spec.commit_kv.cases() if case.args[0].dtype in QUANTISED
]
INT8_CASES = [case for case in QUANTISED_CASES if case.values[0].args[0].dtype == torch.int8]
native = torch.ops.pyspec.commit_kv


@needs_native
@pytest.mark.parametrize("case", CASES)
def test_equals_moves_one_by_one(case: Case) -> None:
    args = copies(case)
    tiled = case.kwargs["kv_layout"] == "tiled"
    plain = spec.tile_kv.run(*args[:2], inverse=True) if tiled else [pages.clone() for pages in args[:2]]
    _, _, table, kv_len, path, path_len, *_ = args
    S = plain[0].size(1)
    for b in range(len(kv_len)):
        slot = lambda i, b=b: (int(table[b, (kv_len[b] + i) // S]), int((kv_len[b] + i) % S))
        for j in range(path_len[b]):
            for pages in plain:
                pages[slot(j)] = pages[slot(int(path[b, j]))].clone()
    reference = copies(case)
    spec.commit_kv.run(*reference, **case.kwargs)
    native(*args, **case.kwargs)
    want = spec.tile_kv.run(*plain) if tiled else plain
    for got in (args[:2], reference[:2]):
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])


@needs_native
@pytest.mark.parametrize("case", CASES)
def test_strided_caches(case: Case) -> None:
    want, args = copies(case), copies(case)
    native(*want, **case.kwargs)
    both = torch.stack(args[:2], 1)
    native(both[:, 0], both[:, 1], *args[2:], **case.kwargs)
    assert torch.equal(both[:, 0], want[0])
    assert torch.equal(both[:, 1], want[1])


BAD = {
    "kv_len must be >= 0, got -1 at index 1": (3, 1, -1),
    "path_len must be in [0, E=4], got 5 at index 0": (5, 0, 5),
    "path_len must be in [0, E=4], got -1 at index 1": (5, 1, -1),
    "path must be strictly increasing and >= 0, got 3 at index [0, 3]": (4, (0, 3), 3),
    "path must be strictly increasing and >= 0, got -2 at index [0, 0]": (4, (0, 0), -2),
    "path must be within the W*S=15 slots of a request, got 12 at index [0, 3]": (4, (0, 3), 12),
    "page_table must be in [0, P=7) where used, got 7 at index [0, 1]": (2, (0, 1), 7),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_values_move_nothing(message: str) -> None:
    case = next(iter(spec.commit_kv.cases()))
    argument, index, value = BAD[message]
    for call in (spec.commit_kv.run, native):
        args = copies(case)
        args[argument][index] = value
        assert error_of(lambda call=call, args=args: call(*args, **case.kwargs)) == (
            ValueError,
            f"commit_kv: {message}",
        )
        assert torch.equal(args[0], case.args[0])


@pytest.mark.parametrize("case", QUANTISED_CASES)
def test_scales_move_with_their_slots(case: Case) -> None:
    args, want = copies(case), copies(case)
    spec.commit_kv.run(*args, **case.kwargs)
    if case.kwargs["kv_layout"] == "tiled":
        for tensors in (args, want):
            tensors[:2] = spec.tile_kv.run(*tensors[:2], inverse=True)
    for pages, scale in (
        (0, 6),
        (1, 7),
    ):  # the same moves of f32 pages that carry the scale beside the values
        both = torch.cat([want[pages].float(), want[scale][..., None]], -1)
        spec.commit_kv.run(both, both.clone(), *want[2:6], None, None, kv_layout="paged")
        assert torch.equal(args[pages].float(), both[..., :-1])
        assert torch.equal(args[scale], both[..., -1])


@needs_native
@pytest.mark.parametrize("case", INT8_CASES)
def test_int8_pages_and_scales_move_on_the_cpu(case: Case) -> None:
    got, want = copies(case), copies(case)
    native(*got, **case.kwargs)
    spec.commit_kv.run(*want, **case.kwargs)
    for i in (0, 1, 6, 7):
        assert torch.equal(got[i], want[i])


@needs_native
def test_the_cpu_refuses_float8_pages() -> None:
    (case,) = [c.values[0] for c in QUANTISED_CASES if c.values[0].args[0].dtype == FLOAT8][:1]
    message = "commit_kv: k_pages must be f32|bf16|f16|i8 on the CPU, got f8"
    assert error_of(lambda: native(*copies(case), **case.kwargs)) == (TypeError, message)
    with pytest.raises(pyspec.UnsupportedError, match="cpu: k_pages must be"):
        pyspec.ops.commit_kv(*copies(case), **case.kwargs, backend="cpu")


@pytest.mark.parametrize("i", [6, 7])
def test_scales_are_those_of_the_pages(i: int) -> None:
    name = {6: "k_scale", 7: "v_scale"}[i]
    for case, value in ((QUANTISED_CASES[0], None), (CASES[0], torch.ones(7, 5, 2))):
        args = copies(case.values[0])
        args[i] = value
        got = "None" if value is None else "[7, 5, 2]"
        message = f"commit_kv: {name} must be given exactly when pages are f8|i8, got {got}"
        for call in (spec.commit_kv.run, native):
            assert error_of(lambda call=call, args=args: call(*args)) == (ValueError, message)
