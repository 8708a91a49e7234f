# SPDX-License-Identifier: Apache-2.0
"""What of `python -m bench gpu` runs without a GPU: saying so, comparing results, rows, peers' operands, the plot's data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import bench_gpu, gpu_peers, gpu_plot
from bench.bench_gpu import difference, timing_rows
from bench.gpu_device import GpuPeaks
from bench.harness import GateError, Timing, append_csv, make_row
from pyspec import backends
from pyspec.contract import OPS, Cost
from pyspec.spec.tree_attention import make_case

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: it would be timed")


@no_gpu
def test_without_a_gpu_it_says_so_and_exits_with_3() -> None:
    command = [sys.executable, "-m", "bench", "gpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("error: bench gpu: a CUDA GPU must be here, got none")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("got", "text"),
    [
        (torch.tensor([1.0, 2.0, 4.0]), ""),
        (torch.tensor([1.0, 2.0, 4.0 + 2**-7]), ""),  # twice bf16's rounding of 4 is 2^-6
        (torch.tensor([1.0, 2.0, 4.0 + 2**-5]), "the error"),
        (torch.tensor([1.0, float("nan"), 4.0]), "NaN"),
        (torch.tensor([1.0, 2.0]), "got"),
        (torch.tensor([1.0, 2.0, 4.0]).double(), "got"),
    ],
)
def test_differences_of_floats(got: torch.Tensor, text: str) -> None:
    found = difference(got, torch.tensor([1.0, 2.0, 4.0]))
    assert found.startswith(text) if text else found == ""


def test_infinities_and_integers_must_be_equal() -> None:
    inf = torch.tensor([float("-inf"), 1.0])
    assert difference(inf.clone(), inf) == ""
    assert difference(-inf, inf)
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == "1 of 2 elements differ"


def test_rows_of_a_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "peaks", lambda: GpuPeaks(1000.0, 100.0))
    time, peer = Timing(1e-6, 2e-6, 3e-6, 5), Timing(3e-6, 4e-6, 5e-6, 5)
    rows = list(timing_rows("linear", "M1", "cuda", time, Cost(10**6, 10**7), {"torch": peer}))
    by_metric = {row["metric"]: row for row in rows}
    assert [by_metric[name]["value"] for name in ("p20", "time", "p80")] == [1, 2, 3]
    assert by_metric["time"]["peak_pct"] == 50  # 1 us to copy 1 MB at 1000 GB/s
    assert by_metric["bandwidth"]["value"] == 500
    assert by_metric["throughput"]["value"] == 5
    assert (by_metric["peer"]["peer"], by_metric["peer"]["ratio"]) == ("torch", 0.5)


def test_peers_are_of_ops_that_exist_and_versions_are_said() -> None:
    assert set(gpu_peers.PEERS) <= set(OPS)
    found = gpu_peers.installed()
    assert found["torch"] == torch.__version__
    assert set(found) == {"torch", *gpu_peers.PACKAGES}


@no_gpu
def test_a_peer_that_cannot_run_is_left_out_with_its_reason() -> None:
    case = next(iter(OPS["w4a16_linear"].cases()))  # type: ignore[misc]
    ready, left_out = gpu_peers.peers("w4a16_linear", case)
    assert ready == {}
    assert set(left_out) == set(gpu_peers.PEERS["w4a16_linear"])
    assert all(left_out.values())


def test_gptq_words_hold_the_nibbles() -> None:
    qweight = torch.randint(0, 256, (3, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    words = gpu_peers.gptq_words(qweight)
    assert words.shape == (4, 3)
    for n in range(3):
        for k in range(32):
            nibble = int(qweight[n, k // 2]) >> (4 if k % 2 else 0) & 15
            assert int(words[k // 8, n]) >> 4 * (k % 8) & 15 == nibble


def test_the_dense_peer_of_attention_computes_the_same() -> None:
    case = make_case("tree", 4, 2, 64, 16, "bf16", "bf16", [(20, [-1, 0, 0, 1])])
    out = gpu_peers.torch_sdpa(*case.args, **case.kwargs)()
    want, _ = OPS["tree_attention"].reference(*case.args, **case.kwargs)
    assert difference(out[0].transpose(0, 1), want) == ""


@pytest.mark.parametrize("op", ["rms_norm", "silu_mul"])
def test_peers_of_elementwise_ops_compute_the_same(op: str) -> None:
    case = next(iter(OPS[op].cases()))  # type: ignore[misc]
    got = gpu_peers.PEERS[op]["torch"](*case.args, **case.kwargs)()
    assert difference(got, OPS[op].reference(*case.args, **case.kwargs)) == ""


def test_the_plot_takes_the_last_run(tmp_path: Path) -> None:
    path = tmp_path / "gpu.csv"
    row = lambda metric, value, **rest: make_row("gpu", "linear M1", "cuda", metric, value, "us", **rest)
    append_csv(path, [row("time", 2.0), row("peer", 4.0, peer="torch", ratio=0.5), row("p20", 1.0)], 1)
    assert gpu_plot.bars(path) == {"linear M1": {"cuda": 2.0, "torch": 4.0}}
    assert gpu_plot.main([]) == 2


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Ops in this set give other results on the backend `cuda-emulated`, which otherwise is the specification."""
    ops: set[str] = set()

    def call(op: str, *args: Any, **kwargs: Any) -> Any:
        result = OPS[op].reference(*args, **kwargs)
        if op in ops:
            written = [arg for term, arg in zip(OPS[op].inputs, args, strict=True) if term.mutated]
            first = result if isinstance(result, torch.Tensor) else (result or written)[0]
            first.view(-1)[:1].add_(1)
        return result

    monkeypatch.setattr(backends, "_emulators", {})
    backends.register_emulator("cuda-emulated", call)
    return ops


@pytest.mark.parametrize("op", sorted(OPS))
def test_the_gate_passes_the_specification_and_no_other(op: str, wrong: set[str]) -> None:
    case = next(case for case in OPS[op].cases() if case.args[0].numel() and not case.kwargs.get("sinks"))  # type: ignore[misc]
    bench_gpu.check(op, case, "cuda-emulated", "cpu")
    wrong.add(op)
    with pytest.raises(
        GateError, match=f"gpu: {op} .* on cuda-emulated: result 0 must be the specification's"
    ):
        bench_gpu.check(op, case, "cuda-emulated", "cpu")


def test_timed_cases_keep_their_contracts() -> None:
    ops = set()
    for op, case in bench_gpu.timed_cases(True, "cpu"):
        args = backends.complete(op, case.args)
        sizes = OPS[op].bind(args)
        if OPS[op].check is not None and op != "sample":
            OPS[op].check(sizes, *args, **case.kwargs)
        assert OPS[op].cost(sizes, *args, **case.kwargs).bytes > 0  # type: ignore[misc]
        ops.add(op)
    assert {
        "linear",
        "quant_linear",
        "w4a16_linear",
        "fp8_linear",
        "tree_attention",
        "sample",
        "rms_norm",
    } <= ops
