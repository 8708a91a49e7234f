# SPDX-License-Identifier: Apache-2.0
"""Edited logits on the GPU executor, on a double of its backend, the checked specification; and the refusal where kernels are missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_gpu_executor import OPTIONS, PROMPTS, ReplayedGraphs, ran

from pyspec import UnsupportedError, backends
from pyspec.contract import OPS
from pyspec.engine import LLM, Completion, SamplingParams

__all__ = ["ran"]  # the fixture
EDITED = [
    SamplingParams(
        max_tokens=12,
        temperature=0.8,
        repetition_penalty=1.5,
        frequency_penalty=0.4,
        allowed_tokens=range(50),
    ),
    SamplingParams(
        max_tokens=12, temperature=0.9, typical_p=0.7, logit_bias={5: 6.0, 6: 6.2, 257: 9.0}, min_tokens=5
    ),
    SamplingParams(max_tokens=12, ignore_eos=True),
]


@pytest.fixture
def with_kernels(ran: set[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """As if the kernels of GPUs could run every call of these ops."""
    for op in ("verify_tree", "edit_logits"):
        monkeypatch.setitem(OPS, op, replace(OPS[op], limits={}))
    return ran


def answers(path: Path, executor: str, **options: Any) -> list[tuple[list[int], str]]:
    llm = LLM(path, executor=executor, **{**OPTIONS, "kv_dtype": "f32", **options})
    done: list[Completion] = llm.generate(PROMPTS, EDITED)
    assert llm.free_pages == llm.num_pages
    return [(completion.token_ids, completion.finish_reason) for completion in done]


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("speculation", ["off", "random"])
def test_edited_rows_give_the_tokens_of_the_specification(
    with_kernels: set[str],
    tiny_model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    speculation: str,
    graphs: bool,
) -> None:
    """Batches with and without edits, chunks of prompts and random trees, padded; also where steps are captured."""
    if graphs:
        monkeypatch.setattr("pyspec.engine.gpu.Graphs", ReplayedGraphs)
    got = answers(tiny_model("llama"), "cuda-emulated", speculation=speculation, max_batch=2, prefill_chunk=9)
    assert got == answers(tiny_model("llama"), "spec", speculation="off", max_batch=1)
    assert "edit_logits" in with_kernels


def test_without_edits_nothing_is_allocated_nor_called(
    with_kernels: set[str], tiny_model: Callable[[str], Path]
) -> None:
    llm = LLM(tiny_model("llama"), executor="cuda-emulated", **OPTIONS)
    llm.generate(PROMPTS, EDITED[2])
    assert "edit_logits" not in with_kernels
    assert llm._executor._edited is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(("params", "name"), [(EDITED[0], "repetition_penalty"), (EDITED[1], "typical_p")])
def test_missing_kernels_are_named_when_the_request_is_made(
    ran: set[str],
    tiny_model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    params: SamplingParams,
    name: str,
) -> None:
    def limit(sizes: dict[str, int], *args: Any, **kwargs: Any) -> str | None:
        filtered = ((args[9] > 0) & (args[9] < 1)).any()
        return "only raw rows" if args[-1] is not None or filtered else None

    monkeypatch.setitem(OPS, "verify_tree", replace(OPS["verify_tree"], limits={"cuda": limit}))
    backends.register_emulator(
        "cuda-emulated",
        backends._emulators["cuda-emulated"][0],
        lambda op: "no such kernel" if op == "edit_logits" else "",
    )
    llm = LLM(tiny_model("llama"), executor="cuda-emulated", **OPTIONS)
    with pytest.raises(
        UnsupportedError,
        match=rf"^LLM: executor 'cuda-emulated' cannot run a request with .*{name}.*: edit_logits: no such kernel",
    ):
        llm.generate(PROMPTS[0], params)
    with pytest.raises(
        UnsupportedError, match="with typical_p: verify_tree: only raw rows; executor='compiled'"
    ):
        llm.generate(PROMPTS[0], SamplingParams(typical_p=0.5))
    assert llm.free_pages == llm.num_pages
    assert len(llm.generate(PROMPTS[0], SamplingParams(max_tokens=3, ignore_eos=True))[0].token_ids) == 3
