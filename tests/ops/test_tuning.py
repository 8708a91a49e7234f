# SPDX-License-Identifier: Apache-2.0
"""`pyspec tune` without a GPU: it says so, the search keeps equal bits alone, and kernels read what it has written."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyspec import tuning
from pyspec.cli.app import run
from pyspec.contract import OPS

A, B, C, D = ({"block_m": 16, "num_warps": warps, "num_stages": 2} for warps in (1, 2, 4, 8))
TIMES = {(): 1.0, 1: 0.5, 2: 0.1, 4: 0.4, 8: 0.99}


def seconds(fields: dict[str, int]) -> float:
    return TIMES[fields["num_warps"] if fields else ()]  # type: ignore[index]


def result(fields: dict[str, int]) -> torch.Tensor:
    if fields == B:
        return torch.tensor([1.0, -0.0])  # equal numbers, other bits
    if fields == A:
        raise RuntimeError("out of resource: shared memory")
    return torch.tensor([1.0, 0.0])


@pytest.mark.parametrize(
    ("candidates", "want"), [([A, B, C, D], C), ([A, B, D], {}), ([D, C], C), ([], {}), ([B], {})]
)
def test_the_fastest_of_equal_bits_is_kept(candidates: list[dict[str, int]], want: dict[str, int]) -> None:
    """A does not launch, B has other bits, D is faster by less than noise."""
    assert tuning.best(result, seconds, candidates) == want


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: it would be tuned")
def test_without_a_gpu_it_says_so_and_exits_with_3(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["tune"]) == 3
    out, error = capfd.readouterr()
    assert out == ""
    assert error.startswith("error: tune: ")
    assert "must be" in error


@pytest.mark.parametrize("shape", ["4096", "4096,0", "a,b", "1,2,3"])
def test_bad_shapes_are_usage_errors(shape: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["tune", "--shape", shape]) == 2
    assert f"must be N,K, got '{shape}'" in capfd.readouterr().err


def test_the_table_is_merged(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    tuning.save(path, "GPU 1", [("linear", "1, 8, 8", A), ("linear", "2, 8, 8", B)])
    tuning.save(path, "GPU 1", [("linear", "2, 8, 8", {})])
    tuning.save(path, "GPU 2", [("linear", "1, 8, 8", C)])
    assert json.loads(path.read_text()) == {
        "GPU 1": {"linear": {"1, 8, 8": A}}, "GPU 2": {"linear": {"1, 8, 8": C}},
    }  # fmt: skip


def test_calls_keep_their_contracts() -> None:
    made = list(tuning.calls((1, 3), [(6, 256), (4, 64)], "cpu"))
    for call in made:
        OPS[call.kernel].run(*call.args, **call.kwargs)
    assert {call.kernel for call in made} == {
        "linear", "fp8_linear", "w8a8_linear", "w4a16_linear", "quant_linear",
    }  # fmt: skip


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Any]:
    """kernels/tuned.py on a GPU named "here" with a given table."""
    pytest.importorskip("triton", reason="triton is not installed")
    module = importlib.import_module("pyspec.kernels.tuned")
    monkeypatch.setattr(module, "gpu", lambda: "here")

    def with_table(table: dict[str, Any]) -> Any:
        monkeypatch.setattr(module, "table", lambda: table)
        return module

    return with_table


@pytest.mark.parametrize("call", list(tuning.calls((3,), [(48, 256)], "cpu")), ids=lambda call: call.kernel)
def test_every_kernel_reads_the_table(call: tuning.Call, tuned: Callable[[dict[str, Any]], Any]) -> None:
    fields = {"block_m": 32, "num_warps": 2, "num_stages": 5}
    module = tuned({})
    key = module.key(*call.pick)
    pick = importlib.import_module(f"pyspec.kernels.{call.kernel}").pick_config
    plain = pick(*call.pick)
    tuned({"elsewhere": {call.kernel: {key: fields}}, "here": {call.kernel: {"64, 1": fields}}})
    assert pick(*call.pick) == plain
    tuned({"here": {call.kernel: {key: fields}}})
    found = pick(*call.pick)
    assert {name: getattr(found, name) for name in fields} == fields
    for name in ("block_n", "block_k", "part_k", "parts", "unroll"):
        assert getattr(found, name, None) == getattr(plain, name, None)


def test_rows_share_a_key_up_to_the_next_power_of_two(tuned: Callable[[dict[str, Any]], Any]) -> None:
    module = tuned({})
    assert module.key(5, 48, torch.float32) == module.key(8, 48, torch.float32) == "8, 48, float32"
    assert module.key(9, 48) == "16, 48"


def test_while_measuring_every_kernel_takes_the_candidate(tuned: Callable[[dict[str, Any]], Any]) -> None:
    module = tuned({"here": {"linear": {}}})
    linear = importlib.import_module("pyspec.kernels.linear")
    with module.trying(A):
        assert linear.pick_config(1, 64, 64, torch.float32, torch.bfloat16).num_warps == 1
    assert linear.pick_config(1, 64, 64, torch.float32, torch.bfloat16).num_warps != 1
