# SPDX-License-Identifier: Apache-2.0
"""The kernels' own draws over several steps have the target's distribution; those of wrong engines have not.

Every cell is a chi-square test of the joint law of the first three tokens against a textbook, at fixed seeds.
Over all cells Holm's correction is applied, whose smallest adjusted p-value is the smallest p times the
number of cells.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from contract_tests import needs_native
from drawn_decoding import LENGTH, VOCAB, Cell, Edits, law_of, sampled
from numpy.typing import NDArray
from scipy.stats import chisquare

pytestmark = needs_native

SHAPES = [(1, 1, 1), (2, 1), (2, 2), (3,)]  # the vocabulary is larger than any number of children by two
TEMPERATURES = [0.5, 0.8, 1.0, 1.4]
FILTERS: list[dict[str, float]] = [
    {}, {"top_k": 3}, {"top_p": 0.85}, {"min_p": 0.15}, {"typical_p": 0.8},
    {"top_k": 4, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.9},
]  # fmt: skip
GRAMMAR = ((1, 2, 3), (0, 2, 4), (0, 1, 2, 3, 4), (3, 4), (0, 1))
EDITS = [
    None, None, Edits(repetition=1.3, presence=0.4, frequency=0.2), Edits(bias=((2, 1.0), (4, -math.inf))),
    Edits(allowed=GRAMMAR), Edits(0.8, -0.3, 0.3, ((1, 0.5),), GRAMMAR),
]  # fmt: skip
RULES = ["deterministic", "shared_noise", "iid", "without_replacement", "hybrid"]
SAMPLERS = ["shared_noise", "target", "top_down", "traversal"]
EACH, REQUESTS = 12, 150_000  # cells per pair of verifier and rule, and requests per cell
SMALLEST = 1e-6  # Holm-adjusted p-value


def cells_of(verifier: str, rule: str) -> list[Cell]:
    rng = random.Random(f"{verifier} {rule}")
    return [
        Cell(
            SHAPES[i % 4], TEMPERATURES[i // 4 % 4], FILTERS[i % 6], EDITS[(i + i // 6) % 6], rule, verifier,
            rng.choice([1.0, 1.0, 0.7, 1.5]), rng.randrange(1000),
        )
        for i in range(EACH)
    ]  # fmt: skip


def greedy_cells() -> Iterator[Cell]:
    for verifier in ("greedy", "target", "top_down", "traversal"):
        for rule in RULES:
            yield Cell((2, 2), 0.0, {}, EDITS[2], rule, verifier, 1.0, 3)


CELLS = {(verifier, rule): cells_of(verifier, rule) for verifier in SAMPLERS for rule in RULES}
NUMBER = sum(map(len, CELLS.values()))


def p_value(counts: NDArray[np.int64], law: NDArray[np.float64]) -> float:
    """Of a chi-square test; texts expected less than five times are one."""
    if counts[law == 0].any():
        return 0.0
    expected = law * counts.sum()
    rare = (expected < 5) & (law > 0)
    often = expected >= 5
    found, wanted = counts[often].tolist(), expected[often].tolist()
    if expected[rare].sum() >= 5:
        found.append(counts[rare].sum())
        wanted.append(expected[rare].sum())
    elif rare.any():  # with the least of the others
        i = int(np.argmin(wanted))
        found[i] += counts[rare].sum()
        wanted[i] += expected[rare].sum()
    return float(chisquare(found, wanted).pvalue) if len(found) > 1 else 1.0


def p_of(cell: Cell, requests: int, first_seed: int = 1, **options: Any) -> float:
    return p_value(sampled(cell, requests, first_seed, **options), law_of(cell))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("verifier", SAMPLERS)
def test_a_cell_of_every_pair_has_the_targets_distribution(verifier: str, rule: str) -> None:
    rng = random.Random(f"{rule} {verifier}")
    cell = CELLS[verifier, rule][rng.randrange(EACH)]
    assert p_of(cell, 10_000) > 1e-4, cell.name


@pytest.mark.parametrize("cell", list(greedy_cells()), ids=lambda cell: cell.name)
def test_at_temperature_zero_the_distribution_is_one_text(cell: Cell) -> None:
    assert np.array_equal(sampled(cell, 200, 1), 200 * law_of(cell))


@pytest.mark.distribution
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("verifier", SAMPLERS)
def test_all_cells_have_the_targets_distribution(verifier: str, rule: str) -> None:
    for cell in CELLS[verifier, rule]:
        p = p_of(cell, REQUESTS)
        print(f"{cell.name}: {REQUESTS * LENGTH} tokens, p = {p:.3g}")
        assert NUMBER * p > SMALLEST, cell.name


def test_the_cells_are_many_and_all_values_occur_in_the_distribution() -> None:
    cells = [cell for group in CELLS.values() for cell in group]
    assert len({cell.name for cell in cells}) == NUMBER >= 200
    assert NUMBER * REQUESTS * LENGTH >= 10**8
    for group in CELLS.values():
        assert {cell.shape for cell in group} == set(SHAPES)
        assert {str(cell.filters) for cell in group} == set(map(str, FILTERS))
        assert {cell.edits for cell in group} == set(EDITS)


@pytest.mark.distribution
@pytest.mark.parametrize(
    "pair", [("traversal", "hybrid"), ("top_down", "without_replacement"), ("shared_noise", "shared_noise")]
)
def test_ten_million_draws_are_within_5e_4_of_the_distribution(pair: tuple[str, str]) -> None:
    """Total variation of the token at each place, over ten million requests."""
    cell = Cell((2, 1), 0.8, {"top_p": 0.95}, EDITS[2], pair[1], pair[0], 1.2, 5)
    counts, law = sampled(cell, 10**7, 1).reshape([VOCAB] * LENGTH), law_of(cell).reshape([VOCAB] * LENGTH)
    assert p_value(counts.reshape(-1), law.reshape(-1)) > 1e-4
    for place in range(LENGTH):
        others = tuple(axis for axis in range(LENGTH) if axis != place)
        tv = 0.5 * abs(counts.sum(others) / counts.sum() - law.sum(others)).sum()
        print(f"{cell.name}: token {place}, total variation {tv:.1e}")
        assert tv <= 5e-4


# ------------------------------------------------------------------------------------------------------ wrong engines
def taken_for(kind: int) -> Callable[[dict[str, Any]], None]:
    def wrong(call: dict[str, Any]) -> None:
        call["drawn"] = call["drawn"].new_full(call["drawn"].shape, kind)

    return wrong


def colder(call: dict[str, Any]) -> None:
    call["draft_temperature"] = 0.7 * call["draft_temperature"]


def unfiltered(call: dict[str, Any]) -> None:
    call["top_k"] = 0 * call["top_k"]


def unedited(call: dict[str, Any]) -> None:
    call["edited"] = None


def rows_of_others(call: dict[str, Any]) -> None:
    call["draft_row"] = call["draft_row"].roll(1)


def one_step(call: dict[str, Any]) -> None:
    call["step"] = 0 * call["step"]


def cell(rule: str, walk: str = "traversal", shape: tuple[int, ...] = (2, 1), **values: Any) -> Cell:
    return Cell(
        shape, 1.0, values.get("filters", {}), values.get("edits"), rule, walk, 1.0, values.get("model", 0)
    )


WRONG: dict[str, tuple[Cell, dict[str, Any]]] = {
    "children without replacement taken for independent ones": (cell("without_replacement", shape=(3,), model=1), {"wrong": taken_for(1)}),
    "fixed children taken for drawn ones": (cell("deterministic"), {"wrong": taken_for(2)}),
    "hybrid children all taken for drawn ones": (cell("hybrid", "top_down"), {"wrong": taken_for(2)}),
    "draft's law at another temperature": (cell("without_replacement"), {"wrong": colder}),
    "no filter in the verification": (cell("hybrid", filters={"top_k": 3}), {"wrong": unfiltered}),
    "no penalties in the verification": (cell("iid", edits=EDITS[2]), {"wrong": unedited}),
    "no grammar in the verification": (cell("iid", edits=EDITS[4]), {"wrong": unedited}),
    "draft rows of other nodes": (cell("hybrid"), {"wrong": rows_of_others}),
    "every step verified with the numbers of the first": (cell("without_replacement", "top_down"), {"wrong": one_step}),
    "draws keyed by the position": (cell("without_replacement", shape=(1, 1), model=1), {"keyed_by_position": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_engines_are_seen_in_the_distribution(name: str) -> None:
    wrong, options = WRONG[name]
    assert p_of(wrong, 40_000, **options) < 1e-9
    assert p_of(wrong, 40_000) > 1e-4  # the same without the defect
