# SPDX-License-Identifier: Apache-2.0
"""Cost tables: interpolation, measurement, and their cache."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pyspec.trees.cost import CostTable

FLAT = CostTable((1, 64), (0,), ((1.0, 1.0),))
STEEP = CostTable((1, 2), (0,), ((1.0, 2.0),))


def test_curve_interpolates_is_monotone_and_extrapolates() -> None:
    table = CostTable((1, 3, 5), (0, 100), ((1.0, 3.0, 2.0), (2.0, 6.0, 8.0)))
    assert table.curve(6).tolist() == [1.0, 2.0, 3.0, 3.0, 3.0, 3.0]
    assert table.curve(6, 100).tolist() == [2.0, 4.0, 6.0, 7.0, 8.0, 9.0]
    assert table.curve(1, 50).tolist() == [1.5]
    assert table.curve(1, 10**6).tolist() == [2.0]
    assert CostTable((1,), (0,), ((0.5,),)).curve(3).tolist() == [0.5, 0.5, 0.5]


def test_measure_visits_every_point() -> None:
    seen = []
    table = CostTable.measure(lambda *point: seen.append(point), [1, 4], [0, 9], [1, 2], repeats=3)
    assert seen == [(1, 0, 1), (4, 0, 1), (1, 9, 1), (4, 9, 1), (2, 0, 2), (2, 9, 2)] * 4
    assert (table.nodes, table.contexts, table.batches) == ((1, 4), (0, 9), (1, 2))


def test_more_requests_cost_more_than_their_nodes() -> None:
    table = CostTable(
        (1, 3), (0, 100), ((1.0, 3.0), (2.0, 6.0)), (1, 2, 4), ((0.0, 1.0, 2.0), (0.0, 3.0, 2.0))
    )
    assert table.curve(3).tolist() == [1.0, 2.0, 3.0]
    assert table.curve(3, 0, 2).tolist() == [2.0, 3.0, 4.0]
    assert table.curve(3, 0, 3).tolist() == [2.5, 3.5, 4.5]
    assert table.curve(1, 0, 8).tolist() == [5.0]  # the last slope goes on
    assert table.curve(1, 100, 4).tolist() == [5.0]  # never less for more requests
    assert table.curve(1, 50, 2).tolist() == [3.5]
    assert CostTable.from_json(table.to_json()) == table


def test_tables_are_cached_by_key_and_corrupt_files_measured_anew(tmp_path: Path) -> None:
    tables = iter([STEEP, FLAT, FLAT, FLAT, FLAT, FLAT, FLAT])
    folder = tmp_path / "new" / "cost"

    def get(key: str) -> CostTable:
        return CostTable.cached(key, lambda: next(tables), folder)

    assert get("a") == STEEP
    assert get("a") == STEEP
    assert get("b") == FLAT
    (first,) = (path for path in folder.iterdir() if "2.0" in path.read_text())
    for text in ("", "[]", "{", '{"format": 1}', first.read_text().replace("2.0", "NaN")):
        first.write_text(text)
        assert get("a") == FLAT
        assert CostTable.from_json(first.read_text()) == FLAT
    assert len(list(folder.iterdir())) == 2
    assert next(tables, None) is None


def test_a_cache_that_cannot_be_written_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert CostTable.cached("a", lambda: FLAT, tmp_path / "file") == FLAT


def test_the_default_cache_folder_is_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPEC_CACHE", str(tmp_path))
    CostTable.cached("a", lambda: FLAT)
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "cost"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": [2, 3]}, "CostTable: nodes must ascend from 1, got [2, 3]"),
        ({"nodes": [1, 1]}, "CostTable: nodes must ascend from 1, got [1, 1]"),
        ({"contexts": []}, "CostTable: contexts must ascend from >= 0, got []"),
        ({"contexts": [-1]}, "CostTable: contexts must ascend from >= 0, got [-1]"),
        ({"seconds": [[1.0]]}, "CostTable: seconds must be [1, 2], got [1]"),
        ({"seconds": [[1.0, 0.0]]}, "CostTable: seconds must be finite and positive, got 0.0"),
        ({"seconds": [[1.0, 10**400]]}, "CostTable.from_json: text must be a cost table, got OverflowError("),
        ({"nodes": [1, 2.5]}, "CostTable.from_json: text must be a cost table, got TypeError("),
        ({"format": 9}, "CostTable.from_json: format must be 2, got 9"),
        ({"batches": [2]}, "CostTable: batches must ascend from 1, got [2]"),
        ({"surcharge": [[0.0, 1.0]]}, "CostTable: surcharge must be [1, 1], got [2]"),
        ({"surcharge": [[-1.0]]}, "CostTable: surcharge must be finite and >= 0, got -1.0"),
    ],
)
def test_bad_tables_are_refused(change: dict, message: str) -> None:
    text = json.dumps({**json.loads(STEEP.to_json()), **change})
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        CostTable.from_json(text)


def test_a_measurement_needs_rounds() -> None:
    with pytest.raises(ValueError, match="^CostTable.measure: repeats must be >= 1, got 0$"):
        CostTable.measure(lambda nodes, context, batch: None, [1], repeats=0)
