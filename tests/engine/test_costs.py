# SPDX-License-Identifier: Apache-2.0
"""The cost meter on a double of the executor: which steps it runs, and that it never leaves its pages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pyspec import backends
from pyspec.engine import costs
from pyspec.engine.batch import StepBatch
from pyspec.engine.costs import KINDS, ROUNDS, CostMeter, sampling_kind
from pyspec.engine.sampling_params import SamplingParams


class Double:
    """Notes what the batch holds whenever it is run or verified."""

    def __init__(self, batch: StepBatch, num_pages: int) -> None:
        self._batch, self._num_pages = batch, num_pages
        self.ran: list[tuple[int, int, int]] = []
        self.verified: list[tuple[int, float]] = []
        self.waited = 0

    def run(self) -> None:
        batch = self._batch
        slots = batch.arrays["slots"][: batch.T]
        assert (slots < self._num_pages * batch.page_size).all()
        assert (slots >= 0).all()
        self.ran.append((batch.T, int(batch.arrays["kv_len"][0]), batch.B))

    def wait(self) -> None:
        self.waited += 1

    def verify(self, num_logprobs: int | None) -> None:
        assert num_logprobs is None  # as steps of requests that want none
        self.verified.append((self._batch.R, float(self._batch.arrays["temperature"][0])))


def meter(num_pages: int, max_batch: int = 4) -> tuple[CostMeter, Double]:
    batch = StepBatch(64, 64, max_batch, 40, 4)
    double = Double(batch, num_pages)
    return CostMeter(double, batch, num_pages), double  # type: ignore[arg-type]


@pytest.mark.parametrize("num_pages", [160, 30])
def test_every_size_and_batch_is_measured(
    num_pages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSPEC_CACHE", str(tmp_path))
    cost_meter, double = meter(num_pages)
    cost = cost_meter.measure("key", 8, 4, 140)
    room = min(num_pages * 4, 140) - 8
    contexts = [min(64, room), room]
    assert cost.table.nodes == (1, 2, 3, 4, 5, 6, 8)
    assert cost.table.contexts == tuple(contexts)
    assert cost.table.batches == (1, 2, 4)
    points = {(n, c, 1) for n in (1, 2, 3, 4, 5, 6, 8) for c in contexts} | {
        (b, c, b) for b in (2, 4) for c in contexts
    }
    assert set(double.ran) - {(1, 1, 1), (8, 1, 1)} == points
    assert double.waited == (1 + ROUNDS) * len(points)
    assert {rows for rows, _ in double.verified} == {1, 8}
    assert {temperature for _, temperature in double.verified} == {0.0, 1.0}
    assert set(cost.verify) == set(KINDS)
    again, second = meter(num_pages)
    assert again.measure("key", 8, 4, 140).table == cost.table
    assert not second.waited  # from the cache


def test_new_kernels_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPEC_CACHE", str(tmp_path / "cache"))
    extension = tmp_path / "kernels.so"
    monkeypatch.setattr(backends, "native", SimpleNamespace(__file__=str(extension)))
    waited = []
    for content in (b"old", b"new", b"old"):
        extension.write_bytes(content)
        costs.kernels_digest.cache_clear()
        cost_meter, double = meter(160)
        cost_meter.measure("key", 4, 1, 140)
        waited.append(double.waited > 0)
    costs.kernels_digest.cache_clear()
    assert waited == [True, True, False]


def test_the_largest_tree_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPEC_CACHE", str(tmp_path))
    assert meter(160)[0].measure("key", 11, 1, 140).table.nodes == (1, 2, 3, 4, 5, 6, 8, 9, 11)


def test_kinds_of_sampling() -> None:
    for params, kind in [
        (SamplingParams(), "greedy"),
        (SamplingParams(temperature=1e-6, top_k=3), "greedy"),
        (SamplingParams(temperature=0.7), "sampled"),
        (SamplingParams(temperature=0.7, top_k=3), "filtered"),
        (SamplingParams(temperature=0.7, top_p=0.5), "filtered"),
        (SamplingParams(temperature=0.7, min_p=0.1), "filtered"),
        (SamplingParams(temperature=0.7, typical_p=0.9), "filtered"),
        (SamplingParams(repetition_penalty=1.1), "greedy+edits"),
        (SamplingParams(temperature=1.0, logit_bias={3: 1.0}), "sampled+edits"),
    ]:
        assert sampling_kind(params) == kind
