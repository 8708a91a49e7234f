# SPDX-License-Identifier: Apache-2.0
"""The commands with a fake model: what goes to which stream, exit codes, Ctrl-C, and errors in one line."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_llm import WORDS, FakeLLM

from pyspec.drafts.heads import shipped
from pyspec.engine import Grammar, SamplingParams

TEXT = "".join(WORDS)
Command = Callable[..., object]


def test_generate_prints_the_text_alone(fake: type[FakeLLM], pyspec_command: Command) -> None:
    result = pyspec_command("generate", "Where do they go?")
    assert (result.code, result.out) == (0, TEXT + "\n")
    assert "2.0 tokens/s" in result.err
    assert "fake/isa" in result.err
    (llm,) = fake.made
    assert llm.prompts[0][0] == "<user>Where do they go?"
    assert llm.closed == 1


def test_generate_quiet_says_nothing_else(fake: type[FakeLLM], pyspec_command: Command) -> None:
    result = pyspec_command("generate", "x", "--quiet")
    assert (result.out, result.err) == (TEXT + "\n", "")


def test_generate_reads_standard_input_and_passes_options(
    fake: type[FakeLLM], pyspec_command: Command
) -> None:
    result = pyspec_command(
        "generate", "-", "--raw", "--temperature", "0.7", "--top-k", "5", "--top-p", "0.9", "--min-p", "0.1",
        "--max-tokens", "3", "--seed", "11", "--stop", "a", "--stop", "b", "--speculation", "ngram",
        "--draft", "suffix", "--draft", "layer_skip:0,1",
        "--model", "m.gguf", "--context", "64", stdin="from a pipe",
    )  # fmt: skip
    assert result.out == "".join(WORDS[:3]) + "\n"
    (llm,) = fake.made
    assert llm.settings["model"] == "m.gguf"
    assert llm.settings["speculation"] == "ngram"
    assert llm.settings["draft"] == ["suffix", "layer_skip:0,1"]
    assert llm.settings["max_context"] == 64
    prompt, params = llm.prompts[0]
    assert prompt == "from a pipe"
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.7, 5, 0.9, 0.1)
    assert (params.max_tokens, params.seed, params.stop) == (3, 11, ("a", "b"))


def test_generate_passes_every_sampling_parameter(
    fake: type[FakeLLM], pyspec_command: Command, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    result = pyspec_command(
        "generate", "x", "--typical-p", "0.8", "--repetition-penalty", "1.2", "--presence-penalty", "0.5",
        "--frequency-penalty", "-0.5", "--logit-bias", "7=-2.5", "--logit-bias", "3=-inf", "--banned-token", "4",
        "--allowed-token", "3", "--allowed-token", "5", "--min-tokens", "2", "--stop-token", "9", "--stream-index", "6",
        "--json-schema", f"@{schema}",
    )  # fmt: skip
    assert result.code == 0
    want = SamplingParams(
        typical_p=0.8, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=-0.5, max_tokens=256,
        logit_bias={7: -2.5, 3: float("-inf")}, banned_tokens=[4], allowed_tokens=[3, 5], min_tokens=2,
        stop_token_ids=[9], stream_index=6, grammar=Grammar.json_schema({"type": "object"}),
    )  # fmt: skip
    assert fake.made[0].prompts[0][1] == want
    for name, text in (("regex", "[a-z]+"), ("lark", 'start: "a"')):
        assert pyspec_command("generate", "x", f"--{name}", text).code == 0
        assert fake.made[-1].prompts[0][1].grammar == Grammar(name, text)
    assert pyspec_command("generate", "x", "--ignore-eos").code == 0
    assert fake.made[-1].prompts[0][1].ignore_eos


def test_generate_prints_several_samples(fake: type[FakeLLM], pyspec_command: Command) -> None:
    result = pyspec_command("generate", "x", "--n", "3", "--temperature", "1")
    assert (result.code, result.out) == (0, 3 * (TEXT + "\n"))
    assert fake.made[0].settings["max_batch"] == 3
    lines = pyspec_command("generate", "x", "--n", "2", "--json", "--logprobs", "0").out.splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["sample_index"] for record in records] == [0, 1]
    assert [record["logprobs"] for record in records] == 2 * [[0.0, -0.5, -1.0, -1.5, -2.0]]


def test_an_answer_that_ends_with_an_error_says_so(fake: type[FakeLLM], pyspec_command: Command) -> None:
    fake.failing = 1
    result = pyspec_command("generate", "x", "--n", "2", "--quiet")
    assert (result.code, result.out, result.err) == (1, 2 * (TEXT + "\n"), "error: no token is left\n")
    fake.failing = 0
    result = pyspec_command("chat", "--quiet", stdin="one\n")
    assert (result.code, result.err) == (0, "error: no token is left\n")


def test_generate_without_template_is_raw(fake: type[FakeLLM], pyspec_command: Command) -> None:
    fake.template = None
    assert pyspec_command("generate", "x").code == 0
    assert fake.made[0].prompts[0][0] == "x"


def test_generate_json_is_one_object(fake: type[FakeLLM], pyspec_command: Command) -> None:
    record = json.loads(pyspec_command("generate", "x", "--json").out)
    assert record["text"] == TEXT
    assert record["token_ids"] == [0, 1, 2, 3, 4]
    assert record["finish_reason"] == "eos"
    assert record["stats"]["mean_accepted_length"] == 2.0
    assert record["backend"] == "fake/isa"


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("generate",), 2, "PROMPT"),
        (("generate", "x", "--speculation", "magic"), 2, "magic"),
        (("generate", "x", "--temperature", "-1"), 1, "temperature must be in [0, 1e6), got -1.0"),
        (("generate", "x", "--max-tokens", "0"), 1, "max_tokens must be in [1, 2147483647], got 0"),
        (("generate", "x", "--threads", "0"), 2, "0"),
        (("generate", "x", "--logit-bias", "7:1"), 2, "must be ID=BIAS such as 15=-2.5, got '7:1'"),
        (("generate", "x", "--logit-bias", "7=nan"), 1, "logit_bias must be -inf or in [-1e6, 1e6], got nan"),
        (
            ("generate", "x", "--regex", "a", "--lark", "b"),
            2,
            "only one grammar may be given, got --regex and --lark",
        ),
        (("generate", "x", "--json-schema", "@/no/such/file"), 1, "/no/such/file"),
        (("generate", "x", "--n", "0"), 1, "n must be in [1, 1024], got 0"),
        (("chat", "--repetition-penalty", "0"), 1, "repetition_penalty must be in [0.001, 1000], got 0.0"),
        (("nonsense",), 2, "nonsense"),
        (("bench", "nonsense"), 2, "nonsense"),
    ],
)
def test_bad_usage_is_one_line(
    fake: type[FakeLLM], pyspec_command: Command, arguments: tuple[str, ...], code: int, part: str
) -> None:
    result = pyspec_command(*arguments)
    assert result.code == code
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert part in result.err
    assert fake.made == []


def test_engine_errors_are_one_line(fake: type[FakeLLM], pyspec_command: Command) -> None:
    fake.error = ValueError("LLM: prompt must be short, got 9\n  spec: because")
    result = pyspec_command("generate", "x")
    assert (result.code, result.out) == (1, "")
    assert result.err == "error: LLM: prompt must be short, got 9; spec: because\n"


def test_ctrl_c_ends_generate(fake: type[FakeLLM], pyspec_command: Command) -> None:
    fake.interrupt_after = 2
    result = pyspec_command("generate", "x")
    assert result.code == 130
    assert result.out == "".join(WORDS[:2])
    assert result.err == ""
    assert fake.made[0].closed == 1


def test_chat_keeps_the_conversation(fake: type[FakeLLM], pyspec_command: Command) -> None:
    result = pyspec_command("chat", "--system", "Be brief.", stdin="one\n\ntwo\n/reset\nthree\n/exit\nfour\n")
    assert (result.code, result.out) == (0, 3 * (TEXT + "\n"))
    prompts = [prompt for prompt, _ in fake.made[0].prompts]
    assert prompts == [
        "<system>Be brief.<user>one",
        f"<system>Be brief.<user>one<assistant>{TEXT}<user>two",
        "<system>Be brief.<user>three",
    ]


def test_chat_survives_ctrl_c_and_keeps_what_was_said(fake: type[FakeLLM], pyspec_command: Command) -> None:
    fake.interrupt_after = 1
    result = pyspec_command("chat", stdin="one\ntwo\n")
    assert result.code == 0
    assert [prompt for prompt, _ in fake.made[0].prompts][1] == "<user>one<assistant>Herring<user>two"
    assert fake.made[0].closed == 2


def test_chat_takes_back_a_refused_message(fake: type[FakeLLM], pyspec_command: Command) -> None:
    fake.error = ValueError("LLM: prompt must have fewer tokens, got 99")
    result = pyspec_command("chat", stdin="one\n")
    assert result.code == 0
    assert "error: LLM: prompt must have fewer tokens" in result.err


def test_chat_needs_a_template(fake: type[FakeLLM], pyspec_command: Command) -> None:
    fake.template = None
    result = pyspec_command("chat", stdin="one\n")
    assert result.code == 1
    assert "must have a chat template" in result.err


def test_demo_compares(fake: type[FakeLLM], pyspec_command: Command) -> None:
    result = pyspec_command("demo")
    assert result.code == 0
    assert result.out.count(TEXT) == 2
    for part in ("fake/isa", "1.00x", "identical text", "yes"):
        assert part in result.out
    speculation = [params.speculation for _, params in fake.made[0].prompts]
    assert speculation == ["suffix", "suffix", "off", "off"]  # each warmed up before its clock runs


def test_demo_shows_the_head_that_comes_with_the_model(
    fake: type[FakeLLM], pyspec_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "shipped", lambda checkpoint: Path("head"))
    result = pyspec_command("demo", "--quiet")
    assert result.code == 0
    assert "with draft head" in result.out
    assert fake.made[1].settings["draft"] == ("suffix", "eagle3")
    assert [params.speculation for _, params in fake.made[1].prompts] == ["auto", "auto"]


def test_demo_fails_if_the_texts_differ(fake: type[FakeLLM], pyspec_command: Command) -> None:
    fake.differing = True
    result = pyspec_command("demo", "--quiet")
    assert result.code == 1
    assert "NO" in result.out
    assert "must be identical" in result.err


def test_info_is_json_and_text(pyspec_command: Command) -> None:
    facts = json.loads(pyspec_command("info", "--json").out)
    assert facts["cpu"]["cores"] >= 1
    assert facts["backends"][-1] == "spec"
    assert "rms_norm" in facts["ops"]
    text = pyspec_command("info").out
    compiled = [op for op, kernels in facts["ops"].items() if {"cpu", "cuda"} & set(kernels)]
    assert f"{len(compiled)} of {len(facts['ops'])}: {', '.join(compiled) or 'none'}" in text
    assert facts["cpu"]["model"] in text
    for what, why in facts["missing"].items():
        assert f"missing: {what}" in text
        assert why in text


def test_info_without_extensions_says_why() -> None:
    command = [sys.executable, "-m", "pyspec", "info", "--json"]
    done = subprocess.run(
        command, env={"PYSPEC_SPEC_ONLY": "1", "PATH": "/usr/bin"}, capture_output=True, check=True
    )
    facts = json.loads(done.stdout)
    assert facts["isa"] is None
    assert facts["backends"] == ["spec"]
    assert "PYSPEC_SPEC_ONLY=1" in facts["missing"]["cpu kernels"]


def test_info_names_the_extra_for_grammars(pyspec_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "llguidance" else find(name, *args)
    )
    assert "pyspec-kernels[grammar]" in pyspec_command("info").out


def test_fetch_of_an_unknown_name_is_refused(pyspec_command: Command) -> None:
    result = pyspec_command("fetch", "no-such-model")
    assert result.code == 1
    assert "no-such-model" in result.err
    assert result.err.count("\n") == 1


def test_reader_that_leaves_is_no_error() -> None:
    command = [sys.executable, "-m", "pyspec", "info"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert errors == b""


def test_unexpected_errors_are_not_hidden(fake: type[FakeLLM], pyspec_command: Command) -> None:
    fake.error = KeyError("a bug")
    with pytest.raises(KeyError):
        pyspec_command("generate", "x")


@pytest.mark.parametrize("arguments", [("--help",), ("generate", "-h"), ("bench", "--help"), ("--version",)])
def test_help_is_no_error(pyspec_command: Command, arguments: tuple[str, ...]) -> None:
    result = pyspec_command(*arguments)
    assert (result.code, result.err) == (0, "")
    assert "pyspec" in result.out or "bench" in result.out
