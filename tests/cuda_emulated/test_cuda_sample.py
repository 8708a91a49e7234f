# SPDX-License-Identifier: Apache-2.0
"""CUDA sample under the emulator: the specification's bits, wide nuclei and close cuts, every schedule, planted bugs, traffic."""

from __future__ import annotations

import math
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_tests import broken_calls, error_of
from cuda_emulator import emulator
from sampling_fuzz import bits, sample_call
from torch import Tensor

from pyspec import spec
from pyspec.contract import Case
from pyspec.spec import noise, pipeline
from pyspec.spec.pipeline import Law

ROOT = Path(__file__).parent.parent.parent
NVCC = Path("/usr/local/cuda/bin/nvcc")
Call = tuple[tuple[Tensor, ...], dict[str, int]]
CASES = [case for case in spec.sample.cases() if case.args[0].size(1) <= 49152]


def rows_of(logits: Tensor, position: int, law: Law) -> tuple[Tensor, ...]:
    """Arguments of `sample`: every row under one law."""
    n = logits.size(0)
    many = lambda value, dtype: torch.full((n,), value, dtype=dtype)
    return (
        logits, many(position, torch.int32), many(law.temperature, torch.float32), many(law.top_k, torch.int32),
        many(law.top_p, torch.float32), many(law.min_p, torch.float32), many(law.seed, torch.int64),
        many(law.stream, torch.int32),
    )  # fmt: skip


def wide_call(rng: random.Random) -> Call:
    """Rows of 1025 to 9000 tokens whose filters keep thousands: smooth, tied, sorted either way, mostly masked."""
    vocab, rows = rng.choice([1025, 2047, 2048, 2049, 4097, 9000]), 2
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    z = torch.randn(rows, vocab, generator=g) * rng.choice([0.0, 0.01, 0.3, 1.0, 3.0])
    if steps := rng.choice([0, 1, 4, 64]):
        z = (z * steps).round() / steps
    if rng.random() < 0.3:
        z = z.sort(-1, descending=rng.random() < 0.3).values
    if rng.random() < 0.3:
        masked = torch.rand(vocab, generator=g) < rng.choice([0.1, 0.9])
        z[:, masked] = rng.choice([-torch.inf, torch.nan, torch.inf])
    many = lambda values, dtype: torch.tensor([rng.choice(values) for _ in range(rows)], dtype=dtype)
    law = (
        many([0.3, 1.0, 1.0, 7.0, 100.0], torch.float32),
        many([0, 0, 1000, 1024, 1025, min(1500, vocab), vocab - 1, vocab], torch.int32),
        many([1.0, 0.999, 0.95, 0.7, 0.5, 0.25, 0.125], torch.float32),
        many([0.0, 0.0, 0.1, 0.9], torch.float32),
        torch.randint(0, 2**62, (rows,), generator=g),
        many([0, 1], torch.int32),
    )
    positions = many([0, 5, 99], torch.int32)
    return (z, positions, *law), {"num_logprobs": rng.choice([0, 3, 1000, 1024])}


def close_call() -> Call:
    """2000 weights 1 and 3000 weights 2/3: top_p 7/8 cuts at token 4250 or 4251 of the order. The numbers themselves pass
    the limit by 3e-11 after 4250, their sum in order misses it by 9e-11; at this position token 4251 has the best score."""
    vocab, gap, temperature = 5000, 1136734.0, 2803531.0  # exp(-gap / temperature) = 2/3 to 1e-13
    logits = torch.where(torch.arange(vocab) % 5 < 2, 0.0, -gap)[None]
    return rows_of(logits, 232, Law(temperature, 0, 0.875, 0.0, 7, 1)), {"num_logprobs": 0}


def tied_call() -> Call:
    """Tokens 567 and 2345 have the same random word at this position, above that of 6, the only other candidate."""
    logits = torch.full((1, 4097), -torch.inf)
    logits[0, [6, 567, 2345]] = 1.0
    return rows_of(logits, 1874, Law(1.0, 0, 1.0, 0.0, 3, 0)), {"num_logprobs": 4}


def peaked_call() -> Call:
    """The sum is 1 + n 2^-52, n some thousands: its last bits, and with them the order of its additions, are what a
    logprob of the likeliest token shows."""
    g = torch.Generator().manual_seed(9)
    logits = -36 + torch.rand(4, 5000, generator=g)
    logits[:, 77] = 0
    return rows_of(logits, 1, Law(0.0, 0, 1.0, 0.0, 0, 0)), {"num_logprobs": 0}


def knife_edge_call(top_k: int) -> Call:
    """44 weights whose sum is 2 in the order of lane_sum and 2 + 2^-51 in others: half of it keeps the first token, of
    weight 1, or two tokens."""
    g = torch.Generator().manual_seed(69)
    z = torch.full((200,), -torch.inf)
    ids = torch.randperm(200, generator=g)[:44]
    z[ids] = -3.2 - 2 * torch.rand(44, generator=g)
    z[ids[0]], z[ids[1:4]] = 0.0, -torch.inf
    for i in ids[1:4].tolist():  # each takes what is missing to 2, to 24 bits and not more
        weights = noise.exp2(z.double() * noise.LOG2E)[z > -torch.inf]
        missing = 2 - math.fsum(weights.tolist())
        value = torch.tensor(math.log(missing))
        z[i] = value if math.exp(value) <= missing else value.nextafter(torch.tensor(-torch.inf))
    assert pipeline.lane_sum(noise.exp2(z.double() * noise.LOG2E)) == 2
    logits, _, *law = rows_of(z.repeat(24, 1), 0, Law(1.0, top_k, 0.5, 0.0, 2, 0))
    return (logits, torch.arange(24, dtype=torch.int32), *law), {"num_logprobs": 0}


def flat_call() -> Call:
    """Three equal logits: the draw goes by small differences of the noise."""
    logits, _, *law = rows_of(torch.zeros(64, 3), 0, Law(1.0, 0, 1.0, 0.0, 4, 0))
    return (logits, torch.arange(64, dtype=torch.int32), *law), {"num_logprobs": 0}


def ascending_call() -> Call:
    """Every chunk is better than all before it: the list of the best fills again and again."""
    logits = torch.linspace(-9, 9, 12300)[None].repeat(2, 1)
    return rows_of(logits, 4, Law(1.0, 900, 0.9, 0.0, 1, 1)), {"num_logprobs": 5}


def agree(call: Call, **how: Any) -> bool:
    args, kwargs = call
    want, got = spec.sample.run(*args, **kwargs), emulator.call("sample", *args, **kwargs, **how)
    return all(a.shape == b.shape and torch.equal(bits(a), bits(b)) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_equals_specification_on_the_cases(case: Case) -> None:
    assert agree((case.args, case.kwargs))


def test_equals_specification_at_the_largest_vocabulary() -> None:
    g = torch.Generator().manual_seed(8)
    logits = 3 * torch.randn(1, 262144, generator=g)
    assert agree((rows_of(logits, 77, Law(1.2, 0, 0.98, 0.0, 5, 0)), {"num_logprobs": 20}))


def test_equals_specification_on_random_rows() -> None:
    rng = random.Random(11)
    calls = [sample_call(rng) for _ in range(150)] + [wide_call(rng) for _ in range(40)]
    assert [i for i, call in enumerate(calls) if not agree(call)] == []


def test_ties_of_the_draw_go_to_the_lowest_id() -> None:
    assert agree(tied_call())
    assert emulator.call("sample", *tied_call()[0])[0].tolist() == [567]


def test_a_cut_that_rounding_decides_is_made_in_order() -> None:
    args, _ = close_call()
    assert agree(close_call())
    assert emulator.call("sample", *args)[0].tolist() == [3752]  # the last that is kept


def test_long_lists_and_last_bits() -> None:
    assert agree(ascending_call())
    assert agree(peaked_call())


def test_any_alignment_and_stride() -> None:
    (logits, *law), kwargs = sample_call(random.Random(3))
    want = spec.sample.run(logits, *law, **kwargs)
    rows, vocab = logits.shape
    wide = torch.empty(rows, vocab + 9)
    for offset in (1, 2, 5, 8):
        view = wide[:, offset : offset + vocab].copy_(logits)
        for other in (view, logits.t().contiguous().t()):
            got = emulator.call("sample", other, *law, **kwargs)
            assert all(torch.equal(bits(a), bits(b)) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("order", emulator.ORDERS)
@pytest.mark.parametrize("copies", emulator.COPIES)
def test_every_order_of_threads_with_the_checker(order: str, copies: str) -> None:
    with emulator.schedule(order=order, copies=copies, seed=5):
        assert agree(next((case.args, case.kwargs) for case in CASES), checked=True)
        assert agree(sample_call(random.Random(5)), checked=True)


@pytest.mark.parametrize("seed", range(4))
def test_wide_rows_with_the_checker(seed: int) -> None:
    with emulator.schedule(order="random_warps", seed=seed):
        assert agree(wide_call(random.Random(seed)), checked=True)


PLANTED = {
    1: next((case.args, case.kwargs) for case in CASES if case.name == "T16-V130-N5"),
    2: tied_call(),
    3: flat_call(),
    5: peaked_call(),
    6: close_call(),
}


@pytest.mark.parametrize("top_k", [0, 44])  # the sum of the row, and that of a list
def test_the_order_of_a_sum_decides_what_top_p_keeps(top_k: int) -> None:
    assert agree(knife_edge_call(top_k))
    assert not agree(knife_edge_call(top_k), bug=5)


@pytest.mark.parametrize("bug", sorted(PLANTED))
def test_planted_bug_changes_bits(bug: int) -> None:
    assert not agree(PLANTED[bug], bug=bug)


@pytest.mark.parametrize("bug", [4, 14])
def test_planted_race_is_found(bug: int) -> None:
    with pytest.raises(emulator.EmulatorError) as error:
        agree(ascending_call(), bug=bug, checked=True)
    assert "race" in error.value.kinds


PASSES = {  # over a row: the largest logit and the sum for the logprob are always two
    "greedy": (Law(0.0, 0, 1.0, 0.0, 1, 0), 2),
    "plain": (Law(1.0, 0, 1.0, 0.0, 1, 0), 3),
    "top-k": (Law(1.0, 50, 1.0, 0.0, 1, 0), 3),
    "top-k and top-p": (Law(0.8, 50, 0.9, 0.0, 1, 0), 3),
    "narrow top-p": (Law(0.25, 0, 0.9, 0.0, 1, 0), 4),
    "wide top-p": (Law(2.0, 0, 0.9, 0.0, 1, 0), 13),
}


@pytest.mark.parametrize("name", sorted(PASSES))
def test_bytes_read(name: str) -> None:
    """Memory is read once, each further pass is served by L2."""
    law, passes = PASSES[name]
    logits = 3 * torch.randn(1, 16384, generator=torch.Generator().manual_seed(0))
    args = rows_of(logits, 3, law)
    with emulator.counting() as counters:
        emulator.call("sample", *args, num_logprobs=0)
    least = spec.sample.cost({"T": 1, "V": 16384}).bytes  # type: ignore[misc]
    assert counters.dram_bytes < 1.01 * least
    assert 32 * counters.traffic["logits"].read_sectors <= 1.01 * passes * least


def test_refuses_what_the_specification_refuses() -> None:
    for _, args, kwargs in broken_calls(spec.sample):
        want = error_of(lambda args=args, kwargs=kwargs: spec.sample.run(*args, **kwargs))
        assert error_of(lambda args=args, kwargs=kwargs: emulator.call("sample", *args, **kwargs)) == want


@pytest.mark.skipif(shutil.which("nvcc") is None and not NVCC.exists(), reason="no nvcc to compile with")
@pytest.mark.parametrize("kernel", ["sample", "verify_tree", "build_tree"])
def test_nothing_is_contracted(kernel: str) -> None:
    """Every float64 operation of the specification is one rounding: no fused multiply-add in the code for GPUs."""
    nvcc = shutil.which("nvcc") or str(NVCC)
    flags = re.search(
        r"^NVCC_FLAGS = \[(.*)\]$", (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert flags is not None
    options = [flag for flag in re.findall(r'"([^"]+)"', flags[1]) if not flag.startswith("-X")]
    includes = ["-I", str(ROOT / "csrc"), "-I", str(ROOT / "csrc/include")]
    source = str(ROOT / f"csrc/cuda/{kernel}.cu")
    command = [nvcc, *options, *includes, "-ptx", "-arch=sm_80", source, "-o", "-"]
    ptx = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert ptx.count("mul.f64") + ptx.count("mul.rn.f64") > 100
    assert "fma.rn.f64" not in ptx
