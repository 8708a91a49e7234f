# SPDX-License-Identifier: Apache-2.0
"""Plans of tree_attention: values are checked once, runs compare sizes alone and give the op's bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pyspec
from pyspec import backends, ops
from pyspec.contract import OPS, Case
from pyspec.plans import TreeAttentionPlan, plan_tree_attention
from pyspec.spec.tree_attention import cases

CASES = {case.name: case for case in cases()}


def plan(case: Case, **changes: Any) -> TreeAttentionPlan:
    q, k_pages, _, page_table, kv_len, cu_t, parents, _, _, sinks = case.args
    arguments = {
        "q_shape": q.shape, "pages_shape": k_pages.shape, "page_table": page_table, "kv_len": kv_len, "cu_t": cu_t,
        "parents": parents, "q_dtype": q.dtype, "kv_dtype": k_pages.dtype, "sinks": sinks is not None, **case.kwargs, **changes,
    }  # fmt: skip
    return plan_tree_attention(**arguments)


def inputs(case: Case) -> list[Tensor | None]:
    """What `run` takes."""
    q, k_pages, v_pages, *_, k_scale, v_scale, sinks = case.args
    return [q, k_pages, v_pages, k_scale, v_scale, sinks]


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_the_op(name: str) -> None:
    case = CASES[name]
    made = plan(case)
    got, want = made.run(*inputs(case)), ops.tree_attention(*case.args, **case.kwargs, backend=made.backend)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_values_are_checked_once_and_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["mixed"]
    broken = case.args[6].clone()
    broken[1] = 1
    with pytest.raises(ValueError, match=r"tree_attention: parents must be in \[0, 1\) at index 1"):
        plan(case, parents=broken)
    made = plan(case, backend="spec")
    monkeypatch.setattr(backends, "check_values", lambda *args: pytest.fail("a run checked values"))
    made.run(*inputs(case))


Change = Callable[[list[Any]], None]


@pytest.mark.parametrize(
    ("index", "change", "error", "text"),
    [
        (0, lambda x: x[:-1], ValueError, r"q must be \[12, 6, 32\] as in the plan, got \[11, 6, 32\]"),
        (0, lambda x: x.bfloat16(), TypeError, "q must be f32 as in the plan, got bf16"),
        (1, lambda x: x[1:], ValueError, r"k_pages must be \[\d+, 5, 2, 32\] as in the plan"),
        (2, lambda x: x.to("meta"), ValueError, "v_pages must be on cpu as the plan, got meta"),
        (
            3,
            lambda x: torch.ones(1, 1, 1),
            ValueError,
            r"k_scale must be None as in the plan, got \[1, 1, 1\]",
        ),
        (5, lambda x: torch.ones(6), ValueError, r"sinks must be None as in the plan, got \[6\]"),
    ],
)
def test_other_tensors_are_refused(
    index: int, change: Callable[[Any], Any], error: type[Exception], text: str
) -> None:
    case = CASES["mixed"]
    tensors = inputs(case)
    tensors[index] = change(tensors[index])
    with pytest.raises(error, match="^tree_attention: " + text):
        plan(case).run(*tensors)


def test_what_the_plan_has_must_be_given() -> None:
    case = CASES["sinks"]
    with pytest.raises(ValueError, match=r"sinks must be \[6\] as in the plan, got None"):
        plan(case).run(*inputs(case)[:5])


def test_a_backend_that_cannot_run_it_is_refused_with_reasons() -> None:
    with pytest.raises(
        pyspec.UnsupportedError, match=r"(?s)backend 'cuda' cannot run this plan.*cuda: .*spec: can run"
    ):
        plan(CASES["mixed"], backend="cuda")


def test_cuda_runs_share_a_workspace_and_check_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def call(op: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(op)
        if op == "tree_attention_plan":
            return torch.zeros(3, dtype=torch.uint8)
        assert args[-1] is made.workspace
        return OPS["tree_attention"].reference(*args[:-1], **kwargs)

    monkeypatch.setattr(backends, "_emulators", {})
    backends.register_emulator("cuda-emulated", call)
    case = CASES["float8"]
    made = plan(case, backend="cuda-emulated")
    for _ in range(2):
        made.run(*inputs(case))
    assert calls == ["tree_attention_plan", "tree_attention_run", "tree_attention_run"]
