# SPDX-License-Identifier: Apache-2.0
"""CUDA sample under the emulator: the specification's bits, wide nuclei and close cuts, every schedule, planted bugs, traffic."""

from __future__ import annotations

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
from sampling_edges import EDGES, Call, knife_edge_call, rows_of, wide_call
from sampling_fuzz import bits, sample_call

from pyspec import spec
from pyspec.contract import Case
from pyspec.spec.pipeline import Law

ROOT = Path(__file__).parent.parent.parent
NVCC = Path("/usr/local/cuda/bin/nvcc")
CASES = [case for case in spec.sample.cases() if case.args[0].size(1) <= 49152]


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


@pytest.mark.parametrize("name", EDGES)
def test_equals_specification_on_the_edge(name: str) -> None:
    assert agree(EDGES[name])


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("tied draw", [567]), ("tied draw of one CUDA thread", [75767]), ("close cut", [3752]), ("last of top-k", [177, None]),
     ("last of top-k, tied", [1049, None]), ("last of top-p", [25, None]), ("last of top-p, tied", [989, None])],
)  # fmt: skip
def test_what_the_edges_decide(name: str, tokens: list[int | None]) -> None:
    """None: the token that would be drawn if the filters kept one more."""
    drawn = emulator.call("sample", *EDGES[name][0])[0].tolist()
    more = {
        "last of top-k": 950,
        "last of top-k, tied": 1050,
        "last of top-p": 798,
        "last of top-p, tied": 990,
    }
    for token, want in zip(drawn, tokens, strict=True):
        assert token == want if want is not None else token != more[name]


def test_any_alignment_and_stride() -> None:
    (logits, *law), kwargs = sample_call(random.Random(3), full=False)
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
    2: EDGES["tied draw"],
    3: EDGES["flat"],
    5: EDGES["peaked"],
    6: EDGES["close cut"],
    7: EDGES["close typical cut from below"],
    8: wide_call(random.Random(1)),
    9: EDGES["close typical sum from below"],
    10: next((case.args, case.kwargs) for case in CASES if case.args[-1] is not None),
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
        agree(EDGES["ascending"], bug=bug, checked=True)
    assert "race" in error.value.kinds


PASSES = {  # over a row: the largest logit and the sum for the logprob are always two
    "greedy": (Law(0.0, 0, 1.0, 0.0, 1, 0), 2),
    "plain": (Law(1.0, 0, 1.0, 0.0, 1, 0), 3),
    "top-k": (Law(1.0, 50, 1.0, 0.0, 1, 0), 3),
    "top-k and top-p": (Law(0.8, 50, 0.9, 0.0, 1, 0), 3),
    "narrow top-p": (Law(0.25, 0, 0.9, 0.0, 1, 0), 4),
    "wide top-p": (Law(2.0, 0, 0.9, 0.0, 1, 0), 13),
    "typical-p": (Law(1.0, 0, 1.0, 0.0, 1, 0, 0.9), 21),
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
