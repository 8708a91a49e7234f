# SPDX-License-Identifier: Apache-2.0
"""The commands and benches with a real engine and a tiny random model; and benches that must fail when they should."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_checkpoint

import pyspec.engine
from bench import bench_e2e, bench_equality, prompts
from bench.harness import GateError, Options, Row
from pyspec import backends

needs_kernels = pytest.mark.skipif(
    backends.native is None, reason="equality of bits is the compiled kernels' promise: pyspec._C is missing"
)
MESSAGES = [
    prompts.Prompt("set", text, chat=False)
    for text in ("one fish two fish red fish", "abcabcabcabc", "x y z")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("model") / "llama", max_position_embeddings=2048)


@pytest.fixture
def options(model: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """A bench's options for the tiny model, with three prompts in place of the downloaded ones."""
    monkeypatch.setattr(bench_equality, "load", lambda count: MESSAGES[:count])
    return Options(model=str(model), prompts=3, max_tokens=8, batch=(1, 2))


def test_generate_is_the_same_with_and_without_speculation(model: Path, pyspec_command: Callable) -> None:
    common = (
        "generate",
        "abcabcabc",
        "--raw",
        "--model",
        str(model),
        "--max-tokens",
        "12",
        "--json",
        "--quiet",
    )
    answers = [
        json.loads(pyspec_command(*common, "--speculation", s, *sampling).out)
        for sampling in ((), ("--temperature", "0.9", "--seed", "4"))
        for s in ("off", "suffix", "ngram")
    ]
    assert answers[0]["token_ids"] == answers[1]["token_ids"] == answers[2]["token_ids"]
    assert answers[3]["token_ids"] == answers[4]["token_ids"] == answers[5]["token_ids"]
    assert answers[0]["token_ids"] != answers[3]["token_ids"]


def test_generate_samples_that_match_a_grammar(model: Path, pyspec_command: Callable) -> None:
    pytest.importorskip("llguidance")
    result = pyspec_command(
        "generate", "abcabc", "--raw", "--model", str(model), "--regex", "[a-c]{4,9}x", "--n", "3", "--temperature", "1",
        "--repetition-penalty", "1.2", "--json", "--logprobs", "1", "--quiet",
    )  # fmt: skip
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert result.code == 0
    assert len({answer["text"] for answer in answers}) == 3
    for answer in answers:
        assert re.fullmatch("[a-c]{4,9}x", answer["text"])
        assert answer["finish_reason"] == "stop"
        assert len(answer["logprobs"]) == len(answer["top_logprobs"]) == len(answer["token_ids"])
    refused = pyspec_command("generate", "a", "--raw", "--model", str(model), "--lark", "start: nothing")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("error: LLM: grammar must be a valid lark, got: ")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--model", "no-such-file.gguf"), "no-such-file.gguf"),
        (("--max-tokens", "4", "--context", "16"), "max_context=16"),
        (("--context", "100000"), "max_context"),
    ],
)
def test_what_the_engine_refuses_is_one_line(
    model: Path, pyspec_command: Callable, arguments: tuple[str, ...], part: str
) -> None:
    result = pyspec_command("generate", "x" * 40, "--raw", "--model", str(model), *arguments)
    assert (result.code, result.out) == (1, "")
    assert result.err.count("\n") == 1
    assert part in result.err


def test_demo_with_a_real_engine(model: Path, pyspec_command: Callable) -> None:
    result = pyspec_command("demo", "--model", str(model), "--max-tokens", "8", "--quiet")
    assert result.code == 0, result.err
    assert "identical text" in result.out


@needs_kernels
def test_equality_finds_no_difference(options: Options) -> None:
    rows = list(bench_equality.rows(options))
    found = {row["metric"]: 0.0 for row in rows}
    for row in rows:
        found[row["metric"]] += row["value"]
    assert found["differing_tokens"] == found["differing_logprob_bits"] == 0
    assert found["prompts"] == 3 * len(bench_equality.ways(options))
    assert found["tokens"] > 0


@needs_kernels
def test_equality_sees_a_planted_difference(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    class Biased(pyspec.engine.LLM):
        """Gives the second prompt's speculative answer a logprob that is one bit off."""

        def generate(self, texts, params):
            done = super().generate(texts, params)
            second = bench_equality.prompt_ids(self, MESSAGES[1], options.max_tokens)
            for i, one in enumerate(done):
                if one.logprobs and params[i].speculation == "random" and texts[i] == second:
                    nudged = [
                        -0.0 if one.logprobs[0] == 0 else one.logprobs[0] * (1 + 2**-22),
                        *one.logprobs[1:],
                    ]
                    done[i] = replace(one, logprobs=nudged)
            return done

    monkeypatch.setattr(pyspec.engine, "LLM", Biased)
    rows: list[Row] = []  # extend() keeps what came before the error
    with pytest.raises(GateError, match="greedy/random/batch1, greedy/random/batch2$"):
        rows.extend(bench_equality.rows(replace(options, mode=("tree", "random"))))
    bits = {row["case"]: row["value"] for row in rows if row["metric"] == "differing_logprob_bits"}
    assert bits.pop("greedy/random/batch1") > 0
    assert bits.pop("greedy/random/batch2") > 0
    assert set(bits.values()) == {0}


@needs_kernels
def test_equality_reports_what_it_had_time_for(options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(bench_equality.rows(replace(options, seconds=0.0, mode=("tree",))))
    assert {row["value"] for row in rows if row["metric"] == "prompts"} == {2}
    assert "--skip 2" in capsys.readouterr().err
    rest = list(bench_equality.rows(replace(options, skip=2, prompts=1, mode=("tree",))))
    assert {row["value"] for row in rest if row["metric"] == "prompts"} == {1}


@needs_kernels
def test_equality_reports_what_was_done_before_an_error(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = bench_equality.compare

    def failing(llms, block, first, options, tallies):
        if first:
            raise OSError("the disk is gone")
        compare(llms, block, first, options, tallies)

    monkeypatch.setattr(bench_equality, "compare", failing)
    rows: list[Row] = []
    with pytest.raises(OSError, match="the disk is gone"):
        rows.extend(bench_equality.rows(replace(options, mode=("tree",))))
    assert {row["value"] for row in rows if row["metric"] == "prompts"} == {2}


def test_unknown_mode_is_refused(options: Options) -> None:
    with pytest.raises(ValueError, match=r"mode must be of tree\|random\|sampled\|turns, got wild"):
        list(bench_equality.rows(replace(options, mode=("wild",))))


def test_e2e_gives_every_figure(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_e2e, "CLASSES", {"copying": ("abcabcabcabc",)})
    monkeypatch.setattr(bench_e2e, "CONTEXT", 640)
    monkeypatch.setattr(
        pyspec.engine.LLM, "chat_prompt", lambda llm, messages: llm.tokenizer.encode(messages[0]["content"])
    )
    rows = {(row["case"], row["metric"]): row for row in bench_e2e.rows(replace(options, quick=True))}
    assert rows["copying", "spec_tokens_per_s"]["ratio"] > 0
    assert rows["copying", "mean_accepted_length"]["value"] >= 1
    assert rows["prompt 512", "prefill_tokens_per_s"]["value"] > 0
    assert rows["context 640", "peak_memory"]["ratio"] > 0
