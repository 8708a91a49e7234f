# SPDX-License-Identifier: Apache-2.0
"""rope: error against float64, norms, relative positions, row independence, bad values."""

from __future__ import annotations

import pytest
import torch
from contract_tests import copies, error_of, needs_native

from pyspec import spec
from pyspec.contract import Case
from pyspec.spec.rope import rope_angles

CASES = [pytest.param(case, id=case.name) for case in spec.rope.cases()]
native = torch.ops.pyspec.rope


@needs_native
@pytest.mark.parametrize("case", CASES)
def test_error_at_most_twice_that_of_the_reference(case: Case) -> None:
    x, positions, table = case.args
    exact = spec.rope.reference(x.double(), positions, table.double(), **case.kwargs)
    low = spec.rope.reference(x, positions, table, **case.kwargs)
    got = native(x, positions, table, **case.kwargs)
    assert got.dtype == x.dtype
    if exact.numel():
        limit = 2 * (low - exact).abs().max() + 1e-7 * exact.abs().max()
        assert (got - exact).abs().max() <= limit


@needs_native
@pytest.mark.parametrize("case", CASES)
def test_tokens_do_not_depend_on_the_batch(case: Case) -> None:
    x, positions, table = case.args
    whole = native(x, positions, table, **case.kwargs)
    for t in range(len(x)):
        assert torch.equal(native(x[t : t + 1], positions[t : t + 1], table, **case.kwargs)[0], whole[t])


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_the_distance_alone(interleaved: bool) -> None:
    q, k = torch.randn(2, 1, 1, 64, dtype=torch.float64)
    table = rope_angles(100, 64).double()

    def score(i: int, j: int) -> float:
        turn = lambda x, at: spec.rope.reference(
            x, torch.tensor([at], dtype=torch.int32), table, interleaved=interleaved
        )
        return float((turn(q, i) * turn(k, j)).sum())

    assert score(7, 3) == pytest.approx(score(90, 86), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-4)


def test_interleaved_is_half_split_in_another_order() -> None:
    x, positions = torch.randn(5, 2, 16), torch.arange(5, dtype=torch.int32)
    order = torch.arange(16).view(8, 2).t().flatten()  # evens, then odds
    half = spec.rope.run(x[..., order], positions, rope_angles(5, 16))
    torch.testing.assert_close(
        spec.rope.run(x, positions, rope_angles(5, 16), interleaved=True)[..., order], half
    )


@pytest.mark.parametrize(
    ("positions", "table", "message"),
    [
        ([0, 40, 1], (40, 6), "positions must be in [0, X=40), got 40 at index 1"),
        ([0, 1, -1], (40, 6), "positions must be in [0, X=40), got -1 at index 2"),
        ([0, 1, 2], (40, 12), "rope_table must be [X, Y] with Y even and at most D=10, got [40, 12]"),
        ([0, 1, 2], (40, 5), "rope_table must be [X, Y] with Y even and at most D=10, got [40, 5]"),
    ],
)
def test_bad_values(positions: list[int], table: tuple[int, int], message: str) -> None:
    args = (
        copies(next(iter(spec.rope.cases())))[0],
        torch.tensor(positions, dtype=torch.int32),
        torch.zeros(table),
    )
    assert error_of(lambda: spec.rope.run(*args)) == (ValueError, f"rope: {message}")
    assert error_of(lambda: native(*args)) == (ValueError, f"rope: {message}")
