# SPDX-License-Identifier: Apache-2.0
"""`pyspec trace` and `pyspec explain` with a real engine and a tiny random model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_checkpoint("llama", tmp_path_factory.mktemp("model") / "llama"))


def generated(command: Callable, model: str, *options: str) -> dict:
    result = command("generate", "abcabcabc", "--raw", "--model", model, "--json", "--quiet", *options)
    return json.loads(result.out)


@pytest.mark.parametrize("sampling", [(), ("--temperature", "0.2", "--seed", "5")])
def test_trace_shows_the_answer(
    model: str, sampling: tuple[str, ...], pyspec_command: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "trace.html"
    common = ("--max-tokens", "14", "--speculation", "suffix", *sampling)
    result = pyspec_command("trace", "abcabcabc", "--raw", "--model", model, "--out", str(out), *common)
    assert result.code == 0
    page = out.read_text("utf-8")
    match = re.search(r'<script id="trace" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    found = json.loads(match[1])
    expected = generated(pyspec_command, model, *common)
    names = [token for token, _ in found["tokens"]]
    emitted = [names[index] for step in found["steps"] for index in step["emitted"]]
    assert emitted == expected["token_ids"][1:]  # the first comes from the prompt
    assert f"{len(found['steps'])} steps in {out}" in result.err
    assert len(found["steps"]) == expected["stats"]["steps"]
    assert sum(len(step["tokens"]) - 1 for step in found["steps"]) == expected["stats"]["drafted_nodes"] > 0
    text = found["first"] + "".join(piece for step in found["steps"] for piece in step["texts"])
    assert text == expected["text"]
    assert found["prompt"] == "<s>abcabcabc"  # special tokens are shown
    assert found["about"]["sampling"] == ("temperature 0.2, seed 5" if sampling else "greedy")
    positions = [step["position"] for step in found["steps"]]
    assert positions[0] == expected["stats"]["prompt_tokens"]
    assert positions == sorted(set(positions))
    for step in found["steps"]:
        assert all(len(row) == 10 for row in step["top"])
        assert sum(step["seconds"]) > 0
    assert found["totals"]["steps"] == len(found["steps"])


def test_trace_without_speculation_and_to_a_folder_that_is_not_there(
    model: str, pyspec_command: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "trace.html"
    common = ("trace", "x", "--raw", "--model", model, "--speculation", "off", "--max-tokens", "3", "--quiet")
    assert pyspec_command(*common, "--out", str(out)).code == 0
    assert '"verified":0' in out.read_text("utf-8")
    result = pyspec_command(*common, "--out", str(tmp_path / "no" / "trace.html"))
    assert result.code == 1
    assert "no/trace.html" in result.err


def test_explain_says_what_was_chosen(model: str, pyspec_command: Callable) -> None:
    common = ("explain", "abcabcabc", "--raw", "--model", model, "--max-tokens", "12")
    result = pyspec_command(*common, "--speculation", "suffix")
    assert result.code == 0
    assert "Draft suffix: " in result.out
    assert "Accepted by depth: " in result.out
    assert "What a step costs" in result.out
    expected = generated(pyspec_command, model, "--max-tokens", "12")
    assert expected["text"] in result.err
    counts = json.loads(pyspec_command(*common, "--speculation", "off", "--json").out)
    assert counts["emitted"] == 11
    assert counts["reasons"] == {"speculation is off": 11}
