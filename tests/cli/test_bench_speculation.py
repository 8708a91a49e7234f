# SPDX-License-Identifier: Apache-2.0
"""`python -m bench speculation` and `acceptance` with a tiny random model: every figure is there, ceilings are right, and a difference
of tokens ends the bench before any time is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contract_tests import native
from tiny import tiny_checkpoint

import pyspec.engine
from bench import bench_acceptance, bench_speculation
from bench.bench_acceptance import Way
from bench.decoding_turns import Answer, Sums, acceptance, answer, ratios
from bench.harness import GateError, Options, Row
from bench.prompts import Prompt
from pyspec.engine import LLM, SamplingParams

pytestmark = pytest.mark.skipif(
    native is None, reason="the specification of a model takes minutes: pyspec._C is missing"
)
TEXTS = ("one fish two fish red fish", "abcabcabcabc", "x y z x y z")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("model") / "llama", max_position_embeddings=2048)


@pytest.fixture
def options(model: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """Options for the tiny model, with short prompts in place of the sets, and some of its layers in place of the head."""
    prompts = lambda name, count: [Prompt(name, text, False) for text in TEXTS][:count]
    for module in (bench_acceptance, bench_speculation):
        monkeypatch.setattr(module, "load_set", prompts)
    monkeypatch.setattr(bench_speculation, "CLASSES", dict.fromkeys(bench_speculation.COPYING, TEXTS))
    monkeypatch.setattr(
        bench_speculation, "DRAFTS", {"suffix": "suffix", "suffix+layers": ["suffix", ("layer_skip", [0])]}
    )
    monkeypatch.setattr(
        pyspec.engine.LLM, "chat_prompt", lambda llm, messages: llm.tokenizer.encode(messages[0]["content"])
    )
    return Options(model=str(model), prompts=2, max_tokens=24, quick=True)


def by_case(rows: list[Row]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["case"], {})[row["metric"]] = row["value"]
    return found


def test_speculation_gives_every_figure(options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(bench_speculation.rows(options))
    found = by_case(rows)
    assert found["step/nodes1"]["step_ms"] > 0
    cases = [f"{name}/T{t}/batch1" for name in ("humaneval", "code-copying") for t in (0.0, 1.0)]
    for case in [*cases, "mixed/T0.0/batch2"]:
        assert found[f"{case}/plain/off"]["groups"] == 1
        assert found[f"{case}/plain/off"]["tokens_per_s"] > 0
        for draft in bench_speculation.DRAFTS:
            row = found[f"{case}/{draft}/auto"]
            assert all(row[kind] > 0 for kind in bench_speculation.AGAINST_PLAIN)
            parts = row["share_draft"] + row["share_verify"] + row["share_around"]
            assert row["overhead"] == pytest.approx(parts, rel=1e-3)
    for draft in bench_speculation.DRAFTS:
        assert found[f"mean_of_sets/T1.0/batch1/{draft}/auto"]["ratio"] > 0
    always = found["code-copying/T0.0/batch1/suffix/always"]
    assert 0 <= always["accepted_depth_1"] <= 1
    assert always["ceiling"] > 0
    capsys.readouterr()
    bench_speculation.print_rows(rows)
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line.split() for line in lines[1:] if not line.startswith(" ")}
    assert shown["code-copying/T0.0/batch1/suffix/always"][-1] == f"{always['ceiling']:.2f}"
    assert set(shown) == set(found)


def test_cases_are_picked_by_patterns_and_ended_by_time(
    options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    picked = replace(options, only=("*sm8k/T1.0/*suffix/auto",))
    cases = {row["case"] for row in bench_speculation.rows(picked) if not row["case"].startswith("step/")}
    assert cases == {"gsm8k/T1.0/batch1/plain/off", "gsm8k/T1.0/batch1/suffix/auto"}
    rows = list(bench_speculation.rows(replace(picked, seconds=0.0)))
    assert {row["metric"] for row in rows} == {"step_ms"}
    assert "stopped before gsm8k at T = 1.0" in capsys.readouterr().err


def test_a_difference_ends_the_bench_before_any_time(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(llm: LLM, texts: list[list[int]], params: list[SamplingParams]) -> Answer:
        found = answer(llm, texts, params)
        if params[0].speculation == "always":
            found.outputs[0][-1] += 1
        return found

    monkeypatch.setattr(bench_speculation, "answer", broken)
    rows: list[Row] = []
    with pytest.raises(GateError, match="got others from humaneval/T0.0/batch1/suffix/always"):
        rows.extend(bench_speculation.rows(options))
    assert {row["metric"] for row in rows} == {"step_ms"}


def test_an_answer_is_timed_behind_its_first_token(model: Path) -> None:
    llm = LLM(model, speculation="suffix", calibrate=False, max_batch=2, max_context=256)
    texts = [llm.tokenizer.encode(text) for text in TEXTS[:2]]
    params = [SamplingParams(max_tokens=20, ignore_eos=True)] * 2
    want = [one.token_ids for one in llm.generate(texts, params)]
    cells = acceptance(llm)
    one = answer(llm, texts, params)
    assert one.outputs == want
    assert 20 <= one.tokens < 40  # the first request decodes while the second one's prompt is computed
    assert 0 < sum(one.phases.values()) <= one.wall
    assert len(one.depths) >= len(cells) > 0
    alone = answer(llm, texts[:1], params[:1])
    assert (alone.tokens, alone.outputs) == (19, want[:1])
    accepted = sum(cell[1] for cell in alone.depths)
    assert accepted <= alone.verified
    assert alone.steps <= alone.tokens <= alone.steps + accepted


def turn(**changes: Any) -> Answer:
    phases = {"draft": 0.1, "model": 0.8, "verify": 0.1}
    return replace(Answer([[1]], 10, 5, 1.0, 1.5, phases, [(5, 3), (3, 2)], 7), **changes)


def test_ratios_are_of_tokens_a_second() -> None:
    assert ratios(turn(tokens=12, wall=0.5, cpu=1.0), turn()) == (2.4, pytest.approx(1.8))


def test_the_ceiling_counts_steps_of_accepted_nodes_alone() -> None:
    sums = Sums()
    sums.add(turn())
    sums.add(turn(depths=[(5, 1)]))
    assert sums.depths == [(10, 4), (3, 2)]
    assert sums.verified == 14
    assert sums.phases["model"] == pytest.approx(1.6)
    costs = {
        1: 1.0,
        2: 1.5,
        4: 3.5,
    }  # ten steps: six of one node, two of two, two of three (between those measured: 2.5)
    assert sums.ceiling(costs) == pytest.approx(20 / (6 + 2 * 1.5 + 2 * 2.5))


def test_acceptance_of_chosen_ways(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    layers: Callable[[str], Way] = lambda name: Way(name, ("layer_skip", [0]))
    monkeypatch.setattr(bench_acceptance, "ways", lambda: [Way("suffix", "suffix"), layers("layers")])
    rows = list(bench_acceptance.rows(replace(options, only=("layers/*/T0.0/*",))))
    assert [row["case"].split("/")[-1] for row in rows] == list(bench_acceptance.SETS)
    assert all(row["case"].startswith("layers/shared_noise/T0.0/") and row["value"] >= 1 for row in rows)
    assert list(bench_acceptance.rows(replace(options, seconds=-1.0))) == []
