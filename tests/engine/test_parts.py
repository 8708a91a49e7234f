# SPDX-License-Identifier: Apache-2.0
"""Parts of the engine by themselves: sampling parameters, pages, scheduler, text with stop strings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyspec.engine.edits import History
from pyspec.engine.grammar import Grammar
from pyspec.engine.kv_pages import PagePool
from pyspec.engine.request import Request
from pyspec.engine.sampling_params import SamplingParams
from pyspec.engine.scheduler import Scheduler
from pyspec.engine.text import TextStream


@pytest.mark.parametrize(
    ("field_name", "value", "error"),
    [
        ("temperature", -0.1, ValueError), ("temperature", float("nan"), ValueError), ("temperature", "hot", TypeError),
        ("top_p", 0.0, ValueError), ("top_p", 1.1, ValueError), ("min_p", -1.0, ValueError), ("top_k", -1, ValueError),
        ("top_k", 1.5, TypeError), ("max_tokens", 0, ValueError), ("seed", 2**63, ValueError), ("stop", ("",), ValueError),
        ("logprobs", 21, ValueError), ("speculation", "magic", ValueError), ("stream_index", -1, ValueError),
        ("temperature", 10**400, ValueError), ("typical_p", 0.0, ValueError), ("typical_p", "x", TypeError),
        ("repetition_penalty", 0.0, ValueError), ("repetition_penalty", float("inf"), ValueError),
        ("repetition_penalty", None, TypeError), ("presence_penalty", 1e9, ValueError), ("frequency_penalty", True, TypeError),
        ("logit_bias", {5: float("nan")}, ValueError), ("logit_bias", {5: float("inf")}, ValueError),
        ("logit_bias", {-1: 0.0}, ValueError), ("logit_bias", {"a": 0.0}, TypeError), ("logit_bias", {5: "x"}, TypeError),
        ("logit_bias", 7, TypeError), ("logit_bias", [1, 2], TypeError), ("banned_tokens", 5, TypeError),
        ("banned_tokens", "57", TypeError), ("banned_tokens", [2**31], ValueError), ("banned_tokens", [1.5], TypeError),
        ("banned_tokens", range(2**19 + 1), ValueError), ("allowed_tokens", [], ValueError), ("allowed_tokens", [-3], ValueError),
        ("min_tokens", -1, ValueError), ("min_tokens", 129, ValueError), ("min_tokens", 2.0, TypeError),
        ("stop", ["a"] * 17, ValueError), ("stop", ["a" * 4097], ValueError), ("stop", [b"a"], ValueError),
        ("stop_token_ids", [True], TypeError), ("n", 0, ValueError), ("n", 1025, ValueError), ("n", "2", TypeError),
        ("grammar", "[a-z]+", TypeError), ("logprobs", 1.0, TypeError),
    ],
)  # fmt: skip
def test_bad_sampling_params_name_field_rule_and_value(field_name: str, value: Any, error: type) -> None:
    with pytest.raises(error, match=rf"^SamplingParams: {field_name} must be .*, got "):
        SamplingParams(**{field_name: value})


def test_sampling_params_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="ignore_eos must be False with a grammar"):
        SamplingParams(ignore_eos=True, grammar=Grammar.regex("a"))
    with pytest.raises(ValueError, match=r"stream_index must be in \[0, 2147483645\], got 2147483646"):
        SamplingParams(stream_index=2**31 - 2, n=3)
    with pytest.raises(ValueError, match=r"min_tokens must be in \[0, 5\], got 6"):
        SamplingParams(max_tokens=5, min_tokens=6)


def test_sampling_params_are_values() -> None:
    """Whatever collections they are made from, equal ones compare and hash as equal, and no later change reaches them."""
    bias = {5: 1, 3: -2.0}
    params = SamplingParams(logit_bias=bias, banned_tokens={9, 7}, allowed_tokens=[4, 3, 4], stop="x")
    bias[5] = 9
    same = SamplingParams(
        logit_bias=((3, -2.0), (5, 1.0)), banned_tokens=[7, 9, 9], allowed_tokens=(3, 4), stop=["x"]
    )
    assert params == same
    assert hash(params) == hash(same)
    assert replace(params, seed=1).edits == ("logit_bias", "banned_tokens", "allowed_tokens")
    assert SamplingParams().edits == ()


def test_history_counts_what_it_is_given() -> None:
    history = History([5, 3, 5])
    emitted = [7, 3, *range(100, 300), 7]
    for token in emitted:
        history.add(token)
    counts = dict(zip(history.tokens.tolist(), history.counts.tolist(), strict=True))
    assert counts == {5: 0, 3: 1, 7: 2, **dict.fromkeys(range(100, 300), 1)}


def test_page_pool_takes_all_or_nothing() -> None:
    pool = PagePool(5)
    first = pool.take(3)
    assert first is not None
    assert pool.take(3) is None
    assert pool.free_pages == 2
    pool.give_back(first)
    again = pool.take(5)
    assert again is not None
    assert sorted(again) == [0, 1, 2, 3, 4]


def request(prompt: int, max_output: int = 10) -> Request:
    return Request(list(range(prompt)), SamplingParams(), TextStream(None, ()), None, max_output)


def test_scheduler_admits_in_order_and_only_with_pages() -> None:
    pool = PagePool(4)
    scheduler = Scheduler(pool, max_batch=8, page_size=16, max_nodes=6, prefill_chunk=20)
    big, small = request(30), request(4)  # 30 + 10 + 6 tokens: 3 pages; 4 + 10 + 6: 2 pages
    scheduler.waiting.extend([big, small])
    scheduler.admit()
    assert scheduler.running == [big]
    assert pool.free_pages == 1
    assert scheduler.prefill_sizes() == {big: 20}
    scheduler.release(big)
    scheduler.release(big)  # twice is harmless
    scheduler.admit()
    assert scheduler.running == [small]
    scheduler.release(small)
    assert pool.free_pages == 4


@dataclass
class Letters:
    """A decoder whose token t is the letter chr(97 + t), `lag` letters late, as incomplete characters are."""

    lag: int = 0
    held: list[str] = field(default_factory=list)

    def push(self, token: int) -> str:
        self.held.append(chr(97 + token))
        return self.held.pop(0) if len(self.held) > self.lag else ""

    def finish(self) -> str:
        rest, self.held = "".join(self.held), []
        return rest


@given(
    st.lists(st.integers(0, 2), max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.integers(0, 2),
)
def test_text_ends_before_the_first_stop_string_and_streams_the_same(
    tokens: list[int], stop: list[str], lag: int
) -> None:
    stream, streamed, stopped = TextStream(Letters(lag), tuple(stop)), "", False  # type: ignore[arg-type]
    for token in tokens:
        stopped = stream.push(token)
        streamed += stream.take()
        if stopped:
            break
    stream.finish()
    streamed += stream.take()
    whole = "".join(chr(97 + token) for token in tokens)
    ends = [n for n in range(len(whole) + 1) if any(s in whole[:n] for s in stop)]
    cuts = [whole[: ends[0]].find(s) for s in stop if s in whole[: ends[0]]] if ends else [len(whole)]
    assert stream.text == whole[: min(cuts)]
    assert streamed == stream.text
