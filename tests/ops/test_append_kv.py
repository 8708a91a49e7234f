# SPDX-License-Identifier: Apache-2.0
"""append_kv: equals rope and a plain write; other slots keep their bits; quantised rows; bad values write nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract_tests import copies, error_of, needs_native
from torch import Tensor

import pyspec
from pyspec import spec
from pyspec.contract import Case
from pyspec.spec.append_kv import quantise_rows
from pyspec.spec.tree_attention import FLOAT8, QUANTISED

CASES = [pytest.param(case, id=case.name) for case in spec.append_kv.cases() if case.args[2].dtype != FLOAT8]
QUANTISED_CASES = [
    pytest.param(case, id=case.name) for case in spec.append_kv.cases() if case.args[2].dtype in QUANTISED
]
native = torch.ops.pyspec.append_kv


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@needs_native
@pytest.mark.parametrize("case", CASES)
def test_equals_rope_and_a_write(case: Case) -> None:
    args = copies(case)
    k, v, k_pages, v_pages, slots, positions, table, *scales = copies(case)
    native(*args, **case.kwargs)
    k, v = k.float(), v.float()
    if table is not None:
        k = torch.ops.pyspec.rope(k, positions, table, interleaved=case.kwargs["interleaved"])
    no_rope = {**case.kwargs, "interleaved": False}
    spec.append_kv.run(k, v, k_pages, v_pages, slots, positions, None, *scales, **no_rope)
    assert same(args[2], k_pages)
    assert same(args[3], v_pages)
    assert all(want is None or same(got, want) for got, want in zip(args[7:], scales, strict=True))


@needs_native
@pytest.mark.parametrize("case", CASES)
def test_strided_caches(case: Case) -> None:
    want, args = copies(case), copies(case)
    native(*want, **case.kwargs)
    both = torch.stack([args[2], args[3]], 1)
    args[2], args[3] = both[:, 0], both[:, 1]
    native(*args, **case.kwargs)
    assert same(args[2].contiguous(), want[2])
    assert same(args[3].contiguous(), want[3])


@needs_native
@pytest.mark.parametrize("case", CASES)
def test_one_token_at_a_time_gives_the_same_bits(case: Case) -> None:
    want, args = copies(case), copies(case)
    native(*want, **case.kwargs)
    for t in range(len(args[0])):
        one = [x[t : t + 1] for x in (args[0], args[1])] + args[2:4] + [x[t : t + 1] for x in args[4:6]]
        native(*one, *args[6:], **case.kwargs)
    assert same(args[2], want[2])
    assert same(args[3], want[3])


BAD: dict[str, tuple[int, Any]] = {
    "slots must be in [0, P*S=20), got 20 at index 1": (4, [3, 20, 1]),
    "slots must be in [0, P*S=20), got -1 at index 0": (4, [-1, 2, 1]),
    "positions must be in [0, X=40), got 40 at index 2": (5, [0, 1, 40]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_values_write_nothing(message: str) -> None:
    case = next(iter(spec.append_kv.cases()))
    for call in (spec.append_kv.run, native):
        args, (i, values) = copies(case), BAD[message]
        args[i] = torch.tensor(values, dtype=args[i].dtype)
        assert error_of(lambda call=call, args=args: call(*args, **case.kwargs)) == (
            ValueError,
            f"append_kv: {message}",
        )
        assert torch.equal(args[2], case.args[2])
        assert torch.equal(args[3], case.args[3])


def test_bad_layouts() -> None:
    case = next(iter(spec.append_kv.cases()))
    for layout in ("tiled", "other"):
        kwargs = {**case.kwargs, "kv_layout": layout}
        want = error_of(lambda kwargs=kwargs: spec.append_kv.run(*copies(case), **kwargs))
        assert error_of(lambda kwargs=kwargs: native(*copies(case), **kwargs)) == want


@pytest.mark.parametrize("case", QUANTISED_CASES)
def test_quantised_rows_are_within_a_step_and_alone(case: Case) -> None:
    args = copies(case)
    spec.append_kv.run(*args, **case.kwargs)
    k, v, k_pages, v_pages, slots, positions, table, k_scale, v_scale = args
    if case.kwargs["kv_layout"] == "tiled":
        k_pages, v_pages = spec.tile_kv.run(k_pages, v_pages, inverse=True)
    wide = spec.rope.run(k.float(), positions, table, interleaved=case.kwargs["interleaved"])
    S = k_pages.size(1)
    for x, pages, scale, old in (
        (wide, k_pages, k_scale, case.args[7]),
        (v.float(), v_pages, v_scale, case.args[8]),
    ):
        got, step = pages[slots // S, slots % S].float(), scale[slots // S, slots % S]
        # half a unit of int8; half a unit in the last place of e4m3's three bits, at least 2^-10 of the scale
        half = 0.5 if pages.dtype == torch.int8 else torch.maximum(got.abs() / 16, torch.tensor(2.0**-10))
        assert ((got - x / step[..., None]).abs() <= half * 1.0001).all()
        assert torch.equal(got.abs().amax(-1), torch.full_like(step, QUANTISED[pages.dtype]))
        others = torch.ones(scale.shape[:2]).index_put((slots // S, slots % S), torch.tensor(0.0)).bool()
        assert torch.equal(scale[others], old[others])


@pytest.mark.parametrize("dtype", QUANTISED)
def test_extreme_rows_poison_themselves_alone(dtype: torch.dtype) -> None:
    x = torch.tensor(
        [[0.0, 0.0], [1.0, torch.nan], [-torch.inf, 1.0], [1e-31, 0.0], [-2e-30, 1e-30], [3.0, -1.5]]
    )
    values, scale = quantise_rows(x, dtype)
    assert torch.equal(scale.isnan(), torch.tensor([False, True, True, False, False, False]))
    assert torch.equal(scale == 0, torch.tensor([True, False, False, True, False, False]))
    assert torch.equal(values[:4].float(), torch.zeros(4, 2))
    most = QUANTISED[dtype]
    half = most / 2 if dtype != torch.int8 else 64.0  # 63.5 is a tie: to even
    assert torch.equal(values[4:].float(), torch.tensor([[-most, half], [most, -half]]))


@needs_native
def test_extreme_rows_are_quantised_alike() -> None:
    x = torch.randn(7, 1, 34, generator=torch.Generator().manual_seed(0))
    x[0], x[1, 0, 33], x[2, 0, 2], x[3] = 0, torch.nan, -torch.inf, x[3] * 1e-31
    x[4], x[5, 0, 20] = (x[4] * 127).round() / 254, 1e-39  # many ties; a denormal
    results = []
    for call in (native, spec.append_kv.run):
        pages, scales = torch.zeros(2, 1, 7, 1, 34, dtype=torch.int8), torch.zeros(2, 1, 7, 1)
        call(x, x, *pages, torch.arange(7), torch.zeros(7, dtype=torch.int32), None, *scales)
        results.append((pages, scales))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=0, equal_nan=True)


@needs_native
def test_the_cpu_refuses_float8_pages() -> None:
    (case,) = [c.values[0] for c in QUANTISED_CASES if c.values[0].args[2].dtype == FLOAT8][:1]
    message = "append_kv: k_pages must be f32|bf16|f16|i8 on the CPU, got f8"
    assert error_of(lambda: native(*copies(case), **case.kwargs)) == (TypeError, message)
    with pytest.raises(pyspec.UnsupportedError, match="cpu: k_pages must be"):
        pyspec.ops.append_kv(*copies(case), **case.kwargs, backend="cpu")


def test_scales_are_those_of_the_pages() -> None:
    case, plain = QUANTISED_CASES[0].values[0], CASES[0].values[0]
    shape = list(case.args[7].shape)
    wrong = {
        "k_scale must be given exactly when pages are f8|i8, got None": (case, 7, None),
        "v_scale must be given exactly when pages are f8|i8, got None": (case, 8, None),
        "k_scale must be given exactly when pages are f8|i8, got [4, 5, 2]": (plain, 7, torch.ones(4, 5, 2)),
        f"v_scale must be [P, S, G] with P={shape[0]} (from k_pages.size(0)), got {[shape[0] - 1, *shape[1:]]}":
            (case, 8, case.args[8][1:]),
    }  # fmt: skip
    for message, (base, i, value) in wrong.items():
        args = copies(base)
        args[i] = value
        for call in (spec.append_kv.run, native):
            assert error_of(lambda call=call, args=args: call(*args)) == (ValueError, f"append_kv: {message}")
    tiled = {"kv_layout": "tiled"}
    args = [*copies(case)[:2], *torch.zeros(2, 1, 16, 3, 64).to(FLOAT8), *copies(case)[4:7]]
    args += [torch.ones(1, 16, 3), torch.ones(1, 16, 3)]
    want = (ValueError, "append_kv: kv_layout must be paged when pages are f8, got tiled")
    for call in (spec.append_kv.run, native):
        assert error_of(lambda call=call: call(*args, **tiled)) == want
