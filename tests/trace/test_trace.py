# SPDX-License-Identifier: Apache-2.0
"""Traces: every step is there, numbers survive, and no text of a model or prompt can leave its block of data."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyspec.engine.statistics import PhaseSeconds, StepRecord
from pyspec.trace import Recorder, render_page, trace_data
from pyspec.trace.page import embedded_json
from pyspec.trees import TokenTree
from pyspec.trees.builders import random_tree

HOSTILE = [
    "</script><img src=x onerror=alert(1)>", "<!--", "]]>", "<script>", "{{script}}", "{{data}}", "\u2028", "\u202e", "\x00",
    "&lt;/script&gt;", "'\"`${1}\\", "</SCRIPT\n>", "é", "", "\ud800",
]  # fmt: skip
VOID = {"meta", "input", "br", "link", "img"}


class Page(HTMLParser):
    """Elements in order and the text of scripts and styles; raises for tags that do not close in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[int, str] = {}
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            at = len(self.tags)
            self.texts[at] = self.texts.get(at, "") + data


def step(number: int, tree: TokenTree, path: list[int], **changes: object) -> StepRecord:
    emitted = [*tree.tokens[path[1:]].tolist(), 3]
    return StepRecord(
        request=0, step=number, root_position=number, tokens=tree.tokens, parents=tree.parents,
        path_probability=np.ones(len(tree), dtype=np.float32), path=path, emitted=emitted, logprobs=[-0.25] * len(emitted),
        seconds=PhaseSeconds(1e-4, 5e-3, 1e-3), batch=1, nodes=len(tree), draft="suffix", drafted=len(tree) - 1, reason="pays",
    )._replace(**changes)  # fmt: skip


def data_of(records: list[StepRecord], words: list[str], prompt: tuple[int, ...] = (0, 1)) -> dict:
    recorder = Recorder()
    for record in records:
        recorder.record(record)
    output = [2, *(token for record in records for token in record.emitted)]
    pieces = lambda ids: [words[i] for i in ids]
    return trace_data(recorder, prompt, output, lambda i: words[i], pieces, {"model": words[0]})


def embedded(page: str) -> dict:
    parsed = Page(page)
    (at,) = (i for i, (tag, attrs) in enumerate(parsed.tags, 1) if attrs.get("type") == "application/json")
    return json.loads(parsed.texts[at])


WORDS = [*HOSTILE, *(f" word{i}" for i in range(40))]


def records(count: int) -> list[StepRecord]:
    generator = np.random.default_rng(count)
    made = []
    for i in range(count):
        tree = random_tree(int(generator.integers(1, 20)), len(WORDS), i)
        path = [0]
        while tree.children[path[-1]] and generator.random() < 0.7:
            path.append(int(generator.choice(tree.children[path[-1]])))
        made.append(step(i, tree, path))
    return made


def test_every_step_is_there() -> None:
    made = records(1000)
    found = embedded(render_page(data_of(made, WORDS)))
    assert len(found["steps"]) == 1000
    for record, entry in zip(made, found["steps"], strict=True):
        ids = [found["tokens"][index][0] for index in entry["tokens"]]
        assert ids == record.tokens.tolist()
        assert entry["parents"] == record.parents.tolist()
        assert entry["path"] == record.path
        assert [found["tokens"][index][0] for index in entry["emitted"]] == list(record.emitted)
        assert entry["texts"] == [WORDS[token] for token in record.emitted]
        assert entry["seconds"] == list(record.seconds)
    assert all(WORDS[token] == text for token, text in found["tokens"])
    assert found["prompt"] == WORDS[0] + WORDS[1]
    assert found["first"] == WORDS[2]
    assert found["totals"]["steps"] == 1000


def test_page_holds_its_own_markup_alone() -> None:
    """Whatever the texts are, the elements are the same, one of the scripts is data, and nothing is asked from outside."""
    hostile = render_page(data_of(records(50), WORDS))
    tame = render_page(data_of([], ["x"] * len(WORDS)))
    assert Page(hostile).tags == Page(tame).tags
    page = Page(hostile)
    assert [tag for tag, _ in page.tags].count("script") == 2
    for _, attrs in page.tags:
        assert not {"src", "href", "srcset", "action"} & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
    rest = hostile.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|url\(", rest)
    assert "innerHTML" not in rest
    assert "outerHTML" not in rest
    assert "document.write" not in rest
    assert "{{" not in re.sub(r'<script id="trace".*?</script>', "", hostile, flags=re.DOTALL)


def test_policy_allows_this_script_and_style_alone() -> None:
    page = Page(render_page(data_of(records(3), WORDS)))
    (policy,) = (
        attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    allowed = {}
    for at, (tag, attrs) in enumerate(page.tags, 1):
        if tag in ("style", "script") and "type" not in attrs:
            digest = hashlib.sha256(page.texts[at].encode()).digest()
            allowed[f"{tag}-src"] = f"'sha256-{base64.b64encode(digest).decode()}'"
    assert allowed == {name: rules[name] for name in ("style-src", "script-src")}


@given(st.lists(st.text(), max_size=5))
def test_embedded_json_cannot_be_left(texts: list[str]) -> None:
    text = embedded_json({"texts": texts})
    assert not re.search("[<>&\u2028\u2029\x00-\x1f]", text)
    assert text.isascii()
    assert json.loads(text) == {"texts": texts}


def test_what_json_cannot_hold_is_left_out() -> None:
    tree = TokenTree.chain([1, 2])
    said = np.array([1.0, np.nan], dtype=np.float32)
    top = [[(4, -math.inf), (5, -0.123456)]]
    record = step(0, tree, [0, 1], path_probability=said, logprobs=[math.nan, -math.inf], top_logprobs=top)
    (entry,) = embedded(render_page(data_of([record], WORDS)))["steps"]
    assert entry["said"] == [1.0, None]
    assert entry["logprobs"] == [None, None]
    assert entry["top"][0][1][1] == -0.1235
    assert entry["top"][0][0][1] is None
    assert entry["plain"] is None
    with pytest.raises(ValueError, match="JSON"):
        embedded_json({"x": math.nan})


def test_recorder_keeps_one_request_and_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyspec.trace.recorder.MAX_STEPS", 2)
    recorder = Recorder(request=1)
    tree = TokenTree.chain([1])
    for request in (0, 1, 1, 1, 1):
        recorder.record(step(0, tree, [0], request=request))
    assert len(recorder.records) == 2
    assert recorder.dropped == 2
    assert recorder.statistics.steps == 4


def test_an_answer_without_steps_is_a_page_too() -> None:
    found = embedded(render_page(data_of([], WORDS)))
    assert found["steps"] == []
    assert found["first"] == WORDS[2]
