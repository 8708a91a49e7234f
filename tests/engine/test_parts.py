# SPDX-License-Identifier: Apache-2.0
"""Parts of the engine by themselves: sampling parameters, pages, scheduler, text with stop strings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    ],
)  # fmt: skip
def test_bad_sampling_params_name_field_rule_and_value(field_name: str, value: Any, error: type) -> None:
    with pytest.raises(error, match=rf"^SamplingParams: {field_name} must be .*, got "):
        SamplingParams(**{field_name: value})


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
