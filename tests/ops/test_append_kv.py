# SPDX-License-Identifier: Apache-2.0
"""append_kv: equals rope and a plain write; other slots keep their bits; bad values write nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract_tests import copies, error_of, needs_native
from torch import Tensor

from pyspec import spec
from pyspec.contract import Case

CASES = [pytest.param(case, id=case.name) for case in spec.append_kv.cases()]
native = torch.ops.pyspec.append_kv


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@needs_native
@pytest.mark.parametrize("case", CASES)
def test_equals_rope_and_a_write(case: Case) -> None:
    args = copies(case)
    k, v, k_pages, v_pages, slots, positions, table = copies(case)
    native(*args, **case.kwargs)
    if table is not None:
        k = torch.ops.pyspec.rope(k, positions, table, interleaved=case.kwargs["interleaved"])
    no_rope = {**case.kwargs, "interleaved": False}
    spec.append_kv.run(k, v, k_pages, v_pages, slots, positions, None, **no_rope)
    assert same(args[2], k_pages)
    assert same(args[3], v_pages)


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
        native(*one, args[6], **case.kwargs)
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
