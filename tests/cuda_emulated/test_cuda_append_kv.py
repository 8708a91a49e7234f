# SPDX-License-Identifier: Apache-2.0
"""CUDA rope and append_kv: rotated bits of the CPU, written and quantised bits of the specification, nothing else touched."""

from __future__ import annotations

import pytest
import torch
from contract_tests import copies, error_of, needs_native
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
from torch import Tensor

from pyspec import spec
from pyspec.contract import Case
from pyspec.spec.rope import rope_angles

F32, BF16, F16, F8, I8 = torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8


def append_case(
    T: int, G: int, D: int, S: int, *, source: torch.dtype = F32, dtype: torch.dtype = BF16, rotary: int = 0,
    interleaved: bool = False,
) -> Case:  # fmt: skip
    g = torch.Generator().manual_seed(T + G + D)
    P = T // S + 2
    k, v = torch.randn(2, T, G, D, generator=g).to(source)
    k_pages, v_pages = torch.randn(2, P, S, G, D, generator=g).to(dtype)
    k_scale, v_scale = torch.rand(2, P, S, G, generator=g) if dtype in (F8, I8) else (None, None)
    slots = torch.randperm(P * S, generator=g)[:T]
    positions = torch.randint(0, 40, (T,), generator=g, dtype=torch.int32)
    args = (k, v, k_pages, v_pages, slots, positions, rope_angles(40, rotary) if rotary else None)
    return Case(f"{source}-{dtype}-D{D}", (*args, k_scale, v_scale), {"interleaved": interleaved})


PAGED = [case for case in spec.append_kv.cases() if case.kwargs["kv_layout"] == "paged"]
MORE = [  # heads wider than the 256 elements that a group of threads holds; one head; many
    append_case(2, 2, 384, 4, dtype=I8, rotary=64), append_case(3, 1, 512, 2, dtype=F16, rotary=512),
    append_case(2, 1, 330, 3, dtype=F8, rotary=34, interleaved=True), append_case(1, 40, 32, 1, rotary=16),
    append_case(5, 3, 12, 2, source=F16, dtype=F8, rotary=8), append_case(4, 2, 7, 3, source=BF16, dtype=I8),
    append_case(3, 2, 128, 16, source=BF16, rotary=128, interleaved=True),
]  # fmt: skip
CASES = [pytest.param(case, id=f"{i}-{case.name}") for i, case in enumerate(PAGED + MORE)]
ROPE_CASES = [pytest.param(case, id=case.name) for case in spec.rope.cases()]


def rotated(x: Tensor, case: Case) -> Tensor:
    """Keys with the emulated kernel's RoPE in f32; as they are without a table."""
    _, _, _, _, _, positions, table, *_ = case.args
    if table is None:
        return x.float()
    return emulator.call("rope", x.float(), positions, table, interleaved=case.kwargs["interleaved"])


def written_plainly(case: Case) -> list[Tensor]:
    args = copies(case)
    args[0], args[1], args[6] = rotated(args[0], case), args[1].float(), None
    return by_specification("append_kv", Case("", tuple(args), case.kwargs))


@needs_native
@pytest.mark.parametrize("case", ROPE_CASES)
def test_rope_has_the_bits_of_the_cpu(case: Case) -> None:
    assert same(emulated("rope", case)[0], torch.ops.pyspec.rope(*case.args, **case.kwargs))
    assert is_the_same_strided("rope", case)


@pytest.mark.parametrize("case", ROPE_CASES)
def test_rope_error_at_most_twice_that_of_the_plain_computation(case: Case) -> None:
    x, positions, table = case.args
    exact = spec.rope.reference(x.double(), positions, table.double(), **case.kwargs)
    plain, got = spec.rope.reference(*case.args, **case.kwargs), emulated("rope", case)[0]
    if x.numel():
        tiny = 1e-7 * exact.abs().max()
        assert (got - exact).abs().max() <= 2 * (plain - exact).abs().max() + tiny


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_rows_with_strides_are_read_in_place(dtype: torch.dtype, interleaved: bool) -> None:
    """Queries as columns of a wider buffer: at offsets that fit 16 bytes, and that do not."""
    wide = torch.randn(40, 3 * 64 + 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    positions = torch.arange(40, dtype=torch.int32)
    for offset in (0, 8, 3):
        x = wide[:, offset : offset + 3 * 64].unflatten(1, (3, 64))
        for T in (2, 40):  # few tokens: one head a thread; many: four
            args = (x[:T], positions[:T], rope_angles(40, 48))
            got = emulator.call("rope", *args, interleaved=interleaved)
            want = emulator.call("rope", args[0].contiguous(), *args[1:], interleaved=interleaved)
            assert same(got, want)


@pytest.mark.parametrize("case", CASES)
def test_equals_rope_and_a_write_of_the_specification(case: Case) -> None:
    assert all_same(emulated("append_kv", case), written_plainly(case))


@pytest.mark.parametrize("case", CASES[:3] + CASES[8:])
def test_views(case: Case) -> None:
    assert is_the_same_strided("append_kv", case)
    want, args = emulated("append_kv", case), copies(case)
    args[:4] = [*map(shifted, args[:2]), *map(shifted, args[2:4])]
    emulator.call("append_kv", *args, **case.kwargs)
    assert all_same(args[2:4], want[:2])


def test_pages_of_two_caches_in_one_tensor() -> None:
    case = append_case(9, 3, 64, 4, dtype=I8, rotary=64)
    want, args = emulated("append_kv", case), copies(case)
    both, scales = torch.stack(args[2:4], 1), torch.stack(args[7:9], 1)
    args[2:4], args[7:9] = both.unbind(1), scales.unbind(1)
    emulator.call("append_kv", *args, **case.kwargs)
    assert all_same([both[:, 0], both[:, 1], scales[:, 0], scales[:, 1]], want)


@pytest.mark.parametrize("dtype", [BF16, I8])
def test_tokens_are_independent(dtype: torch.dtype) -> None:
    case = append_case(7, 2, 96, 3, dtype=dtype, rotary=64)
    want, args = emulated("append_kv", case), copies(case)
    for t in range(7):
        one = [*(x[t : t + 1] for x in args[:2]), *args[2:4], *(x[t : t + 1] for x in args[4:6]), *args[6:]]
        emulator.call("append_kv", *one, **case.kwargs)
    assert all_same([args[2], args[3], *(x for x in args[7:] if x is not None)], want)


@pytest.mark.parametrize("dtype", [F8, I8])
def test_extreme_rows_poison_themselves_alone(dtype: torch.dtype) -> None:
    case = append_case(8, 2, 32, 3, dtype=dtype)
    k, v = case.args[:2]
    k[0, 0, 3], k[1, 1, 7], k[2, 0], k[3, 0] = torch.nan, -torch.inf, 0, 1e-31
    k[4, 1], v[5, 0], v[6, 1, :2] = torch.linspace(-2, 2, 32), k[0, 0], torch.tensor([3e38, -1e-40])
    assert all_same(emulated("append_kv", case), by_specification("append_kv", case))


@pytest.mark.parametrize(
    "case", [append_case(3, 2, 64, 4, dtype=I8, rotary=64), append_case(2, 3, 10, 2, rotary=6)]
)
def test_any_order_of_threads(case: Case) -> None:
    assert is_the_same_in_every_order("append_kv", case)
    x, positions, table = case.args[0], case.args[5], case.args[6]
    assert is_the_same_in_every_order("rope", Case("", (x, positions, table)))


def test_no_tokens() -> None:
    assert all_same(*(2 * [emulated("append_kv", append_case(0, 2, 64, 4, rotary=64))]))
    assert emulated("rope", append_free(torch.empty(0, 3, 64)))[0].shape == (0, 3, 64)
    assert emulated("rope", append_free(torch.empty(2, 0, 64)))[0].shape == (2, 0, 64)


def append_free(x: Tensor) -> Case:
    return Case("", (x, torch.zeros(len(x), dtype=torch.int32), rope_angles(4, 64)))


def test_the_tiled_layout_is_refused() -> None:
    case = next(case for case in spec.append_kv.cases() if case.kwargs["kv_layout"] == "tiled")
    want = (ValueError, "append_kv: kv_layout must be paged on GPUs, got tiled")
    assert error_of(lambda: emulator.call("append_kv", *copies(case), **case.kwargs)) == want
    assert spec.append_kv.limits["cuda"](spec.append_kv.bind(case.args), *case.args, **case.kwargs)


ROPE_BUGS = {1: "result", 2: "out of bounds", 3: "result", 4: "result"}
APPEND_BUGS = {1: "result", 2: "result", 3: "race", 4: "result", 5: "out of bounds"}


@pytest.mark.parametrize("bug", ROPE_BUGS)
def test_planted_bugs_of_rope_are_caught(bug: int) -> None:
    x = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(2))
    case = Case("", (x, torch.tensor([7, 0, 11], dtype=torch.int32), rope_angles(12, 16)))
    assert ROPE_BUGS[bug] in how_caught("rope", [case], bug)


@pytest.mark.parametrize("bug", APPEND_BUGS)
def test_planted_bugs_of_append_kv_are_caught(bug: int) -> None:
    cases = [append_case(3, 3, 64, 4, dtype=I8, rotary=64), append_case(3, 3, 10, 4, rotary=6)]
    assert APPEND_BUGS[bug] in how_caught("append_kv", cases, bug)
