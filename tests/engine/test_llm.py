# SPDX-License-Identifier: Apache-2.0
"""LLM end to end: streaming, endings, bad input, and that nothing is ever lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contract_tests import native
from tiny import tiny_checkpoint

from pyspec import UnsupportedError
from pyspec.engine import LLM, SamplingParams

EXECUTOR = "compiled" if native is not None else "spec"


@pytest.fixture(scope="module")
def llm(tiny_model: Callable[[str], Path]) -> LLM:
    return LLM(
        tiny_model("llama"), executor=EXECUTOR, max_batch=2, max_context=96, num_pages=10, calibrate=False
    )


def test_stream_equals_generate(llm: LLM) -> None:
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    whole = llm.generate("the thing in the ring", params)[0]
    chunks = list(llm.stream("the thing in the ring", params))
    assert [t for c in chunks for t in c.token_ids] == whole.token_ids
    assert "".join(c.text for c in chunks) == whole.text
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].stats is not None
    assert chunks[-1].stats.output_tokens == 20


def test_a_stream_and_a_call_between_its_chunks_share_the_engine(llm: LLM) -> None:
    params = SamplingParams(max_tokens=9, ignore_eos=True)
    whole = llm.generate("the thing", params)[0]
    stream = llm.stream("the thing", params)
    first = next(stream)
    assert len(llm.generate("in the ring", SamplingParams(max_tokens=30, ignore_eos=True))[0].token_ids) == 30
    rest = list(stream)
    assert [t for c in [first, *rest] for t in c.token_ids] == whole.token_ids
    assert rest[-1].finish_reason == "length"
    assert llm.free_pages == llm.num_pages


def test_stop_string_cuts_the_text(llm: LLM) -> None:
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    whole = llm.generate("the thing", params)[0].text
    stop = whole[4:7]
    cut = llm.generate("the thing", SamplingParams(max_tokens=30, ignore_eos=True, stop=(stop,)))[0]
    assert cut.finish_reason == "stop"
    assert cut.text == whole[: whole.find(stop)]
    assert (
        "".join(
            c.text
            for c in llm.stream("the thing", SamplingParams(max_tokens=30, ignore_eos=True, stop=(stop,)))
        )
        == cut.text
    )


def test_top_logprobs(llm: LLM) -> None:
    done = llm.generate("the", SamplingParams(max_tokens=5, ignore_eos=True, logprobs=3))[0]
    assert done.logprobs is not None
    assert done.top_logprobs is not None
    for token, logprob, top in zip(done.token_ids, done.logprobs, done.top_logprobs, strict=True):
        assert len(top) == 3
        assert top[0] == (token, logprob)  # greedy: the emitted token is the likeliest
        assert top[0][1] >= top[1][1] >= top[2][1]
    assert llm.generate("the", SamplingParams(max_tokens=2))[0].logprobs is None


def test_the_context_ends_an_answer(llm: LLM) -> None:
    done = llm.generate([list(range(1, 90))], SamplingParams(max_tokens=1000, ignore_eos=True))[0]
    assert (done.finish_reason, len(done.token_ids)) == ("length", 96 - 89)


BAD_PROMPTS: list[tuple[Any, str]] = [
    ([[]], r"prompts\[0\] must have at least one token"),
    ([[1, 2], [400]], r"prompts\[1\] must have tokens in \[0, 320\), got 400"),
    ([[1, -1]], r"prompts\[0\] must have tokens in \[0, 320\), got -1"),
    ([[1] * 96], r"prompts\[0\] must have fewer than max_context=96 tokens, got 96"),
]


@pytest.mark.parametrize(("prompts", "message"), BAD_PROMPTS)
def test_bad_prompts_are_refused_before_anything_runs(llm: LLM, prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^LLM: " + message):
        llm.generate(prompts, SamplingParams(max_tokens=4))
    assert llm.free_pages == llm.num_pages
    assert len(llm.generate("fine", SamplingParams(max_tokens=4, ignore_eos=True))[0].token_ids) == 4


@pytest.mark.parametrize("prompt", [[1, 2.5], [[1, "2"]], [[1, None]], 7])
def test_prompts_that_are_no_token_ids_are_refused(llm: LLM, prompt: Any) -> None:
    with pytest.raises(TypeError, match=r"^LLM: prompts\[.\] must be a text or token ids, got |not iterable"):
        llm.generate(prompt)
    assert llm.free_pages == llm.num_pages


def test_a_request_larger_than_the_pool_is_refused_and_others_wait_for_pages(
    llm: LLM, tiny_model: Callable[[str], Path]
) -> None:
    small = LLM(
        tiny_model("llama"),
        executor=EXECUTOR,
        max_batch=4,
        max_context=256,
        num_pages=6,
        max_nodes=8,
        calibrate=False,
    )
    with pytest.raises(ValueError, match=r"must fit num_pages=6 of 16 tokens"):
        small.generate([[1] * 90], SamplingParams(max_tokens=50))
    prompts = [[1 + i] * 20 for i in range(5)]  # 3 pages each: two at a time
    done = small.generate(prompts, SamplingParams(max_tokens=12, ignore_eos=True))
    assert [len(c.token_ids) for c in done] == [12] * 5
    assert small.free_pages == 6


def test_closing_a_stream_and_errors_free_every_page(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = llm.stream("the thing", SamplingParams(max_tokens=30, ignore_eos=True))
    next(stream)
    assert llm.free_pages < llm.num_pages
    stream.close()
    assert llm.free_pages == llm.num_pages
    run, calls = llm._executor.run, [0]

    def interrupted() -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        run()

    monkeypatch.setattr(llm._executor, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b", "c"], SamplingParams(max_tokens=30, ignore_eos=True))
    assert llm.free_pages == llm.num_pages
    assert len(llm.generate("fine", SamplingParams(max_tokens=4, ignore_eos=True))[0].token_ids) == 4


@pytest.mark.parametrize(
    ("option", "value"),
    [("speculation", "magic"), ("kv_dtype", "int3"), ("max_batch", 0), ("max_context", 10**9), ("page_size", -1),
     ("num_pages", 0), ("executor", "gpu"), ("max_nodes", 1025), ("prefill_chunk", 1.5)],
)  # fmt: skip
def test_bad_options_are_named(option: str, value: Any, tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=rf"^LLM: {option} must be .*, got "):
        LLM(tiny_model("llama"), **{option: value})


@pytest.mark.skipif(native is None, reason="pyspec._C is not compiled")
def test_a_head_that_the_kernels_cannot_compute_is_refused(tmp_path: Path) -> None:
    tiny_checkpoint("llama", tmp_path / "odd", head_dim=24)
    with pytest.raises(UnsupportedError, match="head_dim must be a multiple of 16 up to 256 .*, got 24"):
        LLM(tmp_path / "odd", executor="compiled", max_context=64)
    llm = LLM(tmp_path / "odd", executor="spec", max_context=64)
    assert len(llm.generate([[1, 2, 3]], SamplingParams(max_tokens=3, ignore_eos=True))[0].token_ids) == 3


def test_unknown_model_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="got 'no-such-model'"):
        LLM("no-such-model")


def test_a_model_without_tokenizer_answers_token_ids_and_names_what_is_missing(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    for file in tiny_model("llama").iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    llm = LLM(tmp_path, executor=EXECUTOR, max_context=64, calibrate=False)
    with pytest.raises(ValueError, match="tokenizer"):
        llm.generate("text", SamplingParams(max_tokens=3))
    done = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=3, ignore_eos=True))[0]
    assert (len(done.token_ids), done.text) == (3, "")
    with pytest.raises(ValueError, match="tokenizer"):
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=3, stop=("x",)))
    assert llm.free_pages == llm.num_pages
