# SPDX-License-Identifier: Apache-2.0
"""CUDA commit_kv: moves of the specification bit for bit, in place, over pages of any size, with scales or without."""

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

F8, I8 = torch.float8_e4m3fn, torch.int8


def commit_case(
    paths: list[list[int]], S: int, G: int, D: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Case:
    """Requests of different lengths with these paths, over pages in random order."""
    g = torch.Generator().manual_seed(seed)
    B, E = len(paths), max((len(path) for path in paths), default=0)
    kv_len = torch.tensor([3 * b + S // 2 for b in range(B)], dtype=torch.int32)
    slots = max([int(L) + max(path, default=0) + 1 for L, path in zip(kv_len, paths, strict=True)], default=1)
    W = -(-slots // S)
    page_table = torch.randperm(B * W, generator=g, dtype=torch.int32).reshape(B, W)
    padded = torch.tensor([path + [-7] * (E - len(path)) for path in paths], dtype=torch.int32).reshape(B, E)
    pages = torch.randint(-120, 120, (2, B * W + 1, S, G, D), generator=g).to(dtype)
    scales = torch.rand(2, B * W + 1, S, G, generator=g) if dtype in (F8, I8) else (None, None)
    lengths = torch.tensor([len(path) for path in paths], dtype=torch.int32)
    return Case(f"S{S}-G{G}-D{D}-{dtype}", (*pages, page_table, kv_len, padded, lengths, *scales))


LONG = [
    0,
    1,
    2,
    4,
    5,
    7,
    8,
    9,
    13,
    14,
    20,
]  # its targets are sources of moves before them, in every chunk of four
PAGED = [case for case in spec.commit_kv.cases() if case.kwargs["kv_layout"] == "paged"]
MORE = [
    commit_case([LONG, [0], [], [3, 4, 5, 6, 7]], 4, 2, 64), commit_case([LONG, [1]], 1, 1, 128, I8),
    commit_case([[0, 5], LONG], 16, 3, 20, F8), commit_case([[2, 3, 9]], 5, 2, 7, I8),
    commit_case([[0, 2, 3]], 3, 1, 6, torch.float16), commit_case([LONG, LONG], 7, 8, 128, torch.float32),
    commit_case([[0, 1, 2, 3]], 4, 1, 12), commit_case([[0, 3]], 8, 1, 9, torch.float32),
]  # fmt: skip
CASES = [pytest.param(case, id=f"{i}-{case.name}") for i, case in enumerate(PAGED + MORE)]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_specification(case: Case) -> None:
    assert all_same(emulated("commit_kv", case), by_specification("commit_kv", case))


@pytest.mark.parametrize("case", CASES[::2])
def test_views(case: Case) -> None:
    assert is_the_same_strided("commit_kv", case)
    want, args = emulated("commit_kv", case), copies(case)
    args[:2] = map(shifted, args[:2])
    emulator.call("commit_kv", *args, **case.kwargs)
    assert all_same(args[:2], want[:2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, I8])
def test_a_layer_of_a_cache_in_one_tensor(dtype: torch.dtype) -> None:
    case = commit_case([LONG, [2, 4]], 4, 2, 64, dtype)
    want, args = emulated("commit_kv", case), copies(case)
    layers = torch.stack([torch.stack(args[:2]), torch.zeros(2, *args[0].shape).to(dtype)])
    args[:2] = layers[0]
    emulator.call("commit_kv", *args)
    assert all_same([*layers[0]], want[:2])
    assert not layers[1].view(torch.uint8).any()


def test_all_layers_of_a_cache_in_one_call() -> None:
    """[layers, P, S, G, D] seen as pages whose heads are the layers: a slot's heads are one run of G D elements."""
    case = commit_case([LONG, [2, 4], []], 4, 3, 24)
    layers = torch.stack([torch.stack([x.roll(i, 1) for i in range(5)]) for x in case.args[:2]])
    want = layers.clone()
    for i in range(5):
        spec.commit_kv.run(want[0, i], want[1, i], *copies(case)[2:])
    pages = [x.permute(1, 2, 0, 3, 4).flatten(3) for x in layers]
    assert all(page.data_ptr() == x.data_ptr() for page, x in zip(pages, layers, strict=True))
    emulator.call("commit_kv", *pages, *copies(case)[2:])
    assert same(layers, want)


@pytest.mark.parametrize("case", [MORE[1], MORE[2], MORE[0]])
def test_any_order_of_threads(case: Case) -> None:
    assert is_the_same_in_every_order("commit_kv", case)


@pytest.mark.parametrize("case", [commit_case([], 4, 2, 16), commit_case([[], []], 4, 2, 16, I8)])
def test_nothing_to_move(case: Case) -> None:
    args = copies(case)
    emulator.call("commit_kv", *args)
    assert all_same(args[:2], list(case.args[:2]))


def test_the_tiled_layout_is_refused() -> None:
    case = next(case for case in spec.commit_kv.cases() if case.kwargs["kv_layout"] == "tiled")
    want = (ValueError, "commit_kv: kv_layout must be paged on GPUs, got tiled")
    assert error_of(lambda: emulator.call("commit_kv", *copies(case), **case.kwargs)) == want
    assert spec.commit_kv.limits["cuda"](spec.commit_kv.bind(case.args), *case.args, **case.kwargs)


BUGS = {1: "result", 2: "result", 3: "result", 4: "result", 5: "result"}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: int) -> None:
    assert BUGS[bug] in how_caught("commit_kv", MORE[:3], bug)
