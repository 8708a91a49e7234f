# SPDX-License-Identifier: Apache-2.0
"""sample: bits on every instruction set, the processed law, its edges, logprobs, and refusals."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contract_tests import error_of, needs_native
from sampling_edges import EDGES, wide_call
from sampling_fuzz import bits, differences, sample_call
from torch import Tensor

from pyspec import ops, spec
from pyspec.backends import native
from pyspec.contract import Case
from pyspec.spec import pipeline
from pyspec.spec.pipeline import Law


def rows_of(logits: Tensor, law: Law, positions: Tensor) -> tuple[Tensor, ...]:
    """Arguments of `sample` for one law and one row of logits at many positions (or a row for each)."""
    n = positions.numel()
    many = lambda value, dtype: torch.full((n,), value, dtype=dtype)
    return (
        logits.expand(n, -1), positions.int(), many(law.temperature, torch.float32), many(law.top_k, torch.int32),
        many(law.top_p, torch.float32), many(law.min_p, torch.float32), many(law.typical_p, torch.float32),
        many(law.seed, torch.int64), many(law.stream, torch.int32),
    )  # fmt: skip


def draw(logits: list[float], n: int = 64, num_logprobs: int = 0, **law: float) -> tuple[Tensor, ...]:
    full = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3, "stream": 0, **law}
    args = rows_of(torch.tensor([logits]), Law(**full), torch.arange(n))  # type: ignore[arg-type]
    return ops.sample(*args, num_logprobs=num_logprobs)


def support(logits: list[float], n: int = 400, **law: float) -> set[int]:
    return set(draw(logits, n, **law)[0].tolist())


@needs_native
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in spec.sample.cases()])
def test_kernel_equals_specification_on_the_cases(case: Case) -> None:
    want, got = spec.sample.run(*case.args, **case.kwargs), torch.ops.pyspec.sample(*case.args, **case.kwargs)
    for a, b in zip(want, got, strict=True):
        assert torch.equal(bits(a), bits(b))


@needs_native
def test_kernels_equal_specification_on_random_rows() -> None:
    assert not list(differences(calls=300, seed=11))


@needs_native
@pytest.mark.parametrize("name", [*EDGES, *(f"wide {seed}" for seed in range(20))])
def test_kernel_equals_specification_on_the_edge(name: str) -> None:
    args, kwargs = EDGES[name] if name in EDGES else wide_call(random.Random(int(name.split()[1])))
    want, got = spec.sample.run(*args, **kwargs), torch.ops.pyspec.sample(*args, **kwargs)
    for a, b in zip(want, got, strict=True):
        assert torch.equal(bits(a), bits(b))


@needs_native
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "neon"])
def test_every_instruction_set_equals_specification(isa: str) -> None:
    env = {**os.environ, "PYSPEC_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(Path(__file__).parent / "sampling_fuzz.py"), "150", "12"]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    if "PYSPEC_ISA: value must be" in run.stderr:
        pytest.skip(f"this machine or build has no {isa}")
    assert run.returncode == 0, run.stdout + run.stderr


@needs_native
def test_threads_do_not_matter() -> None:
    args, kwargs = sample_call(random.Random(4))
    args = tuple(t.repeat(9, *[1] * (t.dim() - 1)) for t in args)
    before, outputs = native.num_threads(), []
    for threads in (1, 2, 5):
        native.set_num_threads(threads)
        outputs.append(torch.ops.pyspec.sample(*args, **kwargs))
    native.set_num_threads(before)
    for other in outputs[1:]:
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(outputs[0], other, strict=True))


def test_greedy_takes_the_lowest_id_of_ties_and_ignores_filters() -> None:
    token, *_ = draw([1.0, 5.0, 2.0, 5.0], temperature=0.0, top_k=1, top_p=0.1, min_p=1.0)
    assert set(token.tolist()) == {1}
    assert support([-0.0, 0.0, 1e-45], temperature=0.0) == {0}  # denormals count as 0
    assert support([0.0, 1.0], temperature=1e-5) == {1}  # below 2^-16 is greedy


def test_special_values() -> None:
    nan, inf = torch.nan, torch.inf
    assert support([nan, 0.0, nan, 0.0]) == {1, 3}
    assert support([-inf, 0.0, -inf]) == {1}
    assert support([3e38, inf, -3e38, inf]) == {1, 3}
    assert support([3e38, -3e38], temperature=3e38) == {0, 1}
    _, logprob, top, top_logprobs = draw([inf, 0.0, inf], n=1, num_logprobs=3)
    assert top.tolist() == [[0, 2, 1]]
    assert top_logprobs[0].tolist() == pytest.approx([-0.6931472, -0.6931472, -inf])
    for dead in ([nan, nan], [-inf, -inf], [nan, -inf]):
        token, logprob, top, top_logprobs = draw(dead, n=1, num_logprobs=2)
        assert token.tolist() == [0]
        assert top.tolist() == [[0, 1]]
        assert logprob.isnan().all()
        assert top_logprobs.isnan().all()


def test_top_k_keeps_exactly_k_with_ties_by_id() -> None:
    tied = [0.0, 1.0, 0.0, 1.0, 0.0]
    assert support(tied, top_k=1) == {1}
    assert support(tied, top_k=3) == {0, 1, 3}
    assert support(tied, top_k=5) == support(tied, top_k=0) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_shortest_head_that_reaches_the_mass() -> None:
    flat = [0.0] * 8  # masses are exact multiples of 1/8
    assert support(flat, top_p=0.5) == {0, 1, 2, 3}
    assert support(flat, top_p=0.5001) == {0, 1, 2, 3, 4}
    assert support(flat, top_p=1e-40) == {0}
    assert support(flat, top_p=0.5, top_k=4) == {0, 1}  # of the mass that top-k left
    assert support([2.0, 1.0, 3.0], top_p=1e-3) == {2}


def test_min_p_is_relative_to_the_most_likely() -> None:
    logits = [0.0, -1.0, -2.0, 0.0, -3.0]
    assert support(logits, min_p=1.0) == {0, 3}
    assert support(logits, min_p=0.36) == {0, 1, 3}  # e^-1 = 0.368
    assert support(logits, min_p=0.37) == {0, 3}
    assert support(logits, min_p=0.36, temperature=2.0) == {0, 1, 2, 3}  # after temperature
    assert support(logits, min_p=1e-40) == {0, 1, 2, 3, 4}


def test_typical_p_keeps_what_is_nearest_the_entropy() -> None:
    """Weights 8, 4, 2, 1, 1: the entropy is 1.875 bits, the surprises are 1, 2, 3, 4, 4."""
    logits = [math.log(weight) for weight in (4, 8, 1, 2, 1)]
    assert support(logits, typical_p=1e-6) == {0}
    assert support(logits, typical_p=0.24) == {0}
    assert support(logits, typical_p=0.26) == {0, 1}
    assert support(logits, typical_p=0.74) == {0, 1}
    assert support(logits, typical_p=0.76) == {0, 1, 3}
    assert support(logits, typical_p=0.89) == {0, 1, 2, 3, 4}  # equally far: both
    assert support(logits, typical_p=0.9, top_k=2) == {0, 1}  # the entropy of what is left
    assert support(logits, typical_p=0.9, min_p=0.2) == {0, 1, 3}
    assert support(logits, typical_p=0.3, temperature=0.0) == {1}
    assert support([0.0, 0.0, -torch.inf], typical_p=0.5) == {0, 1}


def test_tokens_come_from_the_edited_rows_and_logprobs_from_the_raw_ones() -> None:
    logits, edited = torch.randn(2, 50, generator=torch.Generator().manual_seed(2)), torch.zeros(2, 50)
    edited[0, :40], edited[1] = -torch.inf, torch.nan
    args = rows_of(logits, Law(1.0, 0, 0.9, 0.0, 1, 0), torch.arange(2))
    token, logprob, top, top_logprobs = ops.sample(*args, edited, num_logprobs=3)
    assert token[0] >= 40
    assert logprob[0] == logits[0].double().log_softmax(0)[token[0]].float()
    assert top[0].tolist() == logits[0].topk(3).indices.tolist()
    assert token[1] == 0  # no finite value is left
    assert top[1].tolist() == [0, 1, 2]
    assert logprob[1].isnan()
    assert top_logprobs[1].isnan().all()
    same, none, *_ = ops.sample(*args, edited, with_logprobs=False)
    assert torch.equal(same, token)
    assert none[0] == 0
    assert none[1].isnan()


@pytest.mark.parametrize("backend", ["spec", pytest.param("cpu", marks=needs_native)])
def test_edited_rows_and_logprobs_are_checked(backend: str) -> None:
    args = rows_of(torch.zeros(1, 5), Law(1.0, 0, 1.0, 0.0, 1, 0), torch.arange(2))
    for edited, message in (
        (torch.zeros(2, 4), "edited must be [T, V] with V=5 (from logits.size(1)), got [2, 4]"),
        (torch.zeros(1, 5), "edited must be [T, V] with T=2 (from logits.size(0)), got [1, 5]"),
        (torch.zeros(5), "edited must be [T, V], got [5]"),
    ):
        error = error_of(lambda edited=edited: ops.sample(*args, edited, backend=backend))
        assert error == (ValueError, f"sample: {message}")
    with pytest.raises(TypeError, match="sample: edited must be f32, got f64"):
        ops.sample(*args, torch.zeros(2, 5).double(), backend=backend)
    with pytest.raises(ValueError, match="sample: num_logprobs must be 0 without logprobs, got 2"):
        ops.sample(*args, num_logprobs=2, with_logprobs=False, backend=backend)


def test_filters_keep_what_sorting_the_law_keeps() -> None:
    """Against the textbook: softmax, sort, cumulate in float64, on rows whose boundaries are not within rounding."""
    g = torch.Generator().manual_seed(0)
    for law in (
        Law(0.7, 20, 0.8, 0.03, 0, 0), Law(1.3, 0, 0.6, 0.0, 0, 0), Law(1.0, 7, 1.0, 0.2, 0, 0),
        Law(0.8, 0, 1.0, 0.0, 0, 0, 0.6), Law(2.0, 300, 0.98, 0.01, 0, 0, 0.9),
    ):  # fmt: skip
        z = 2 * torch.randn(500, generator=g).double()
        p, order = (z / law.temperature).softmax(0).sort(descending=True)
        p[law.top_k or 500 :] = 0
        p = p / p.sum()
        p[(p.cumsum(0) - p) >= law.top_p] = 0
        p[p < law.min_p * p[0]] = 0
        p = p / p.sum()
        surprise = -p.log()
        nearest = (surprise - torch.special.entr(p).sum()).abs().sort().indices
        cumulated = p[nearest].cumsum(0)
        p[nearest[cumulated - p[nearest] >= law.typical_p]] = 0
        assert set(order[p > 0].tolist()) == set(
            pipeline.kept(z - z.max(), order, law).nonzero().flatten().tolist()
        )


def test_logprobs_are_those_of_the_raw_row() -> None:
    g = torch.Generator().manual_seed(1)
    logits = 6 * torch.randn(20, 3000, generator=g)
    args = (logits, *rows_of(logits[:1], Law(0.9, 5, 0.9, 0.1, 1, 1), torch.arange(20))[1:])
    token, logprob, top, top_logprobs = ops.sample(*args, num_logprobs=9)
    exact = logits.double().log_softmax(-1)
    want, order = exact.sort(descending=True, stable=True)
    assert torch.equal(top.long(), order[:, :9])
    torch.testing.assert_close(top_logprobs.double(), want[:, :9], rtol=2.0**-23, atol=0)
    torch.testing.assert_close(logprob.double(), exact[range(20), token.long()], rtol=2.0**-23, atol=0)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("positions", -1, r"sample: positions\[1\] must be >= 0, got -1"),
        ("temperature", -0.5, r"sample: temperature\[1\] must be finite and >= 0, got -0.5"),
        ("temperature", torch.inf, r"sample: temperature\[1\] must be finite and >= 0, got inf"),
        ("temperature", -torch.nan, r"sample: temperature\[1\] must be finite and >= 0, got nan"),
        ("top_k", -1, r"sample: top_k\[1\] must be in \[0, 41\], got -1"),
        ("top_k", 42, r"sample: top_k\[1\] must be in \[0, 41\], got 42"),
        ("top_p", 0.0, r"sample: top_p\[1\] must be in \(0, 1\], got 0"),
        ("top_p", 1.25, r"sample: top_p\[1\] must be in \(0, 1\], got 1.25"),
        ("top_p", torch.nan, r"sample: top_p\[1\] must be in \(0, 1\], got nan"),
        ("min_p", -1e-6, r"sample: min_p\[1\] must be in \[0, 1\], got -1e-06"),
        ("min_p", torch.nan, r"sample: min_p\[1\] must be in \[0, 1\], got nan"),
        ("typical_p", 0.0, r"sample: typical_p\[1\] must be in \(0, 1\], got 0"),
        ("typical_p", torch.nan, r"sample: typical_p\[1\] must be in \(0, 1\], got nan"),
        ("num_logprobs", 42, r"sample: num_logprobs must be in \[0, 41\], got 42"),
        ("num_logprobs", -1, r"sample: num_logprobs must be in \[0, 41\], got -1"),
    ],
)
@pytest.mark.parametrize("backend", ["spec", pytest.param("cpu", marks=needs_native)])
def test_bad_values_are_refused(name: str, value: float, rule: str, backend: str) -> None:
    case = next(iter(spec.sample.cases()))
    args, kwargs = (
        {t.name: a.clone() for t, a in zip(spec.sample.inputs, case.args, strict=True) if a is not None},
        dict(case.kwargs),
    )
    if name in args:
        args[name][1] = value
    else:
        kwargs[name] = int(value)
    with pytest.raises(ValueError, match=f"^{rule}"):
        ops.sample(**args, **kwargs, backend=backend)


@needs_native
def test_empty_vocabulary_is_refused_alike() -> None:
    args = (torch.empty(2, 0), *rows_of(torch.zeros(1, 1), Law(1.0, 0, 1.0, 0.0, 0, 0), torch.arange(2))[1:])
    want = error_of(lambda: spec.sample.run(*args))
    assert want == (ValueError, "sample: logits must be [T, V] with V >= 1, got V=0")
    assert error_of(lambda: torch.ops.pyspec.sample(*args)) == want
