# SPDX-License-Identifier: Apache-2.0
"""`--verifier`: it reaches the engine from every command, and what would be biased is refused in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from contract_tests import native
from fake_llm import FakeLLM
from tiny import tiny_checkpoint

from pyspec.cli.options import VERIFIERS
from pyspec.trees import verifiers

needs_kernels = pytest.mark.skipif(
    native is None, reason="the specification of a model takes minutes: pyspec._C is missing"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_checkpoint("llama", tmp_path_factory.mktemp("model") / "llama"))


def test_the_option_offers_every_verifier() -> None:
    assert tuple(verifiers.VERIFIERS) == VERIFIERS


@pytest.mark.parametrize("command", [("generate", "x"), ("chat",)])
def test_commands_pass_the_verifier(
    fake: type[FakeLLM], pyspec_command: Callable, command: tuple[str, ...]
) -> None:
    assert pyspec_command(*command).code == 0
    assert pyspec_command(*command, "--verifier", "traversal").code == 0
    assert [llm.settings["verifier"] for llm in fake.made] == ["shared_noise", "traversal"]


def test_an_unknown_verifier_is_wrong_usage(fake: type[FakeLLM], pyspec_command: Callable) -> None:
    result = pyspec_command("generate", "x", "--verifier", "typical")
    assert (result.code, result.out, fake.made) == (2, "", [])
    assert "'typical' is not one of 'shared_noise', 'greedy', 'target', 'block'" in result.err


@needs_kernels
@pytest.mark.parametrize("command", ["generate", "explain"])
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--verifier", "block"), "LLM: verifier must be exact for trees .* block verification is for chains"),
        (("--verifier", "greedy", "--temperature", "0.5"), "temperature must be 0 with verifier 'greedy', got 0.5"),
    ],
)  # fmt: skip
def test_pairs_that_are_not_exact_are_refused(
    model: str, pyspec_command: Callable, command: str, arguments: tuple[str, ...], reason: str
) -> None:
    result = pyspec_command(command, "abcabc", "--raw", "--model", model, *arguments)
    assert (result.code, result.out) == (1, "")
    assert re.search(reason, result.err)
    assert result.err.count("\n") == 1


@needs_kernels
def test_fresh_randomness_gives_the_greedy_answer_and_other_samples(
    model: str, pyspec_command: Callable
) -> None:
    def tokens(*options: str) -> list[int]:
        common = ("abcabcabc", "--raw", "--model", model, "--max-tokens", "24", "--json", "--quiet")
        result = pyspec_command("generate", *common, "--speculation", "ngram", *options)
        assert result.code == 0, result.err
        return json.loads(result.out)["token_ids"]

    hot = ("--temperature", "1", "--seed", "3", "--ignore-eos")
    for verifier in ("target", "block", "top_down", "traversal"):
        assert tokens("--verifier", verifier) == tokens()
        assert tokens("--verifier", verifier, *hot) != tokens(*hot)


@needs_kernels
def test_trace_names_the_verifier(model: str, pyspec_command: Callable, tmp_path: Path) -> None:
    out = tmp_path / "trace.html"
    common = ("abcabcabc", "--raw", "--model", model, "--max-tokens", "8", "--out", str(out), "--quiet")
    result = pyspec_command("trace", *common, "--verifier", "traversal", "--speculation", "suffix")
    assert (result.code, result.err) == (0, "")
    assert '"verifier":"traversal"' in out.read_text("utf-8")
