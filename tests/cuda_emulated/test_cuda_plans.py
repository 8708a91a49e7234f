# SPDX-License-Identifier: Apache-2.0
"""Plans of tree_attention on CUDA: the halves of the op under the emulator, one workspace for many runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_emulator import emulator

from pyspec import backends, plans
from pyspec.contract import Case
from pyspec.spec.tree_attention import make_case

TREE = [-1, 0, 0, 1, 1, 2, 5, 0]
REQUESTS = [(37, TREE), (0, list(range(-1, 4))), (90, [-1])]
CASES = {
    "plain": make_case("plain", 4, 2, 64, 16, "f32", "bf16", REQUESTS),
    "window": make_case("window", 4, 1, 64, 16, "bf16", "bf16", REQUESTS, window=20),
    "int8": make_case("int8", 2, 2, 64, 8, "f16", "i8", REQUESTS, sinks=True),
}


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_emulators", {})
    backends.register_emulator("cuda-emulated", emulator.call, emulator.missing)


def plan(case: Case) -> plans.TreeAttentionPlan:
    q, k_pages, _, *indices = case.args[:7]
    return plans.plan_tree_attention(
        q.shape, k_pages.shape, *indices, q_dtype=q.dtype, kv_dtype=k_pages.dtype, sinks=case.args[9] is not None,
        backend="cuda-emulated", **case.kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_runs_in_one_workspace_give_the_op_s_bits(name: str) -> None:
    """Each layer has its own queries and pages; a run leaves the workspace ready for the next."""
    case = CASES[name]
    made = plan(case)
    assert made.workspace is not None
    for layer in range(3):
        q, k_pages, v_pages = (x.roll(layer, 0) if layer else x for x in case.args[:3])
        args = (q, k_pages, v_pages, *case.args[3:])
        want = emulator.call("tree_attention", *args, **case.kwargs)
        got = made.run(q, k_pages, v_pages, *case.args[7:])
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)


def test_a_plan_is_checked_for_races_too() -> None:
    case = CASES["plain"]
    q, k_pages, _, *indices = case.args[:7]
    sizes: dict[str, Any] = {
        "q_shape": q.shape,
        "pages_shape": k_pages.shape,
        "q_dtype": q.dtype,
        "kv_dtype": k_pages.dtype,
    }
    workspace = emulator.call("tree_attention_plan", *indices, **sizes, checked=True)
    out, _ = emulator.call("tree_attention_run", *case.args, workspace, checked=True, **case.kwargs)
    assert torch.equal(out, emulator.call("tree_attention", *case.args, **case.kwargs)[0])


def test_a_workspace_of_another_plan_is_refused() -> None:
    case = CASES["plain"]
    small = torch.zeros(64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"tree_attention: workspace must be \[Z\] with Z=\d+, got \[64\]"):
        emulator.call("tree_attention_run", *case.args, small, **case.kwargs)


def test_no_nodes_need_no_plan() -> None:
    case = make_case("empty", 2, 1, 64, 4, "f32", "f16", [(9, []), (3, [])])
    out, lse = plan(case).run(*case.args[:3])
    assert (out.numel(), lse.numel()) == (0, 0)
