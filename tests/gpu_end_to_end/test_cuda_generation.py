# SPDX-License-Identifier: Apache-2.0
"""A tiny model generates text on the CUDA kernels, executed by tests/cuda_emulator: the CPU's tokens, greedy and sampled, with trees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import generation
import pytest
from cuda_emulator import build, emulator

from pyspec import UnsupportedError, backends
from pyspec.engine import LLM

pytestmark = pytest.mark.skipif(bool(build.why_not()), reason=f"the emulator cannot run: {build.why_not()}")


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_emulators", {})
    backends.register_emulator("cuda-emulated", emulator.call, emulator.missing)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("models")
    return {
        "llama": generation.folder("llama", path / "llama"),
        "qwen3": generation.folder("qwen3", path / "qwen3"),
        "gguf": generation.gguf(path / "m.gguf"),
    }


@pytest.mark.parametrize("sampling", generation.SAMPLING)
@pytest.mark.parametrize("speculation", generation.SPECULATION)
@pytest.mark.parametrize("model", ["llama", "gguf"])
def test_tokens_are_the_cpu_s(model: str, speculation: str, sampling: str, models: dict[str, Path]) -> None:
    generation.check(models[model], "cuda-emulated", sampling, speculation)


@pytest.fixture
def ran(emulated: None) -> list[str]:
    """The ops that run, in order."""
    ops: list[str] = []

    def call(op: str, *args: Any, **kwargs: Any) -> Any:
        ops.append(op)
        return emulator.call(op, *args, **kwargs)

    backends.register_emulator("cuda-emulated", call, emulator.missing)
    return ops


def test_a_draft_head_changes_no_token(models: dict[str, Path], tmp_path: Path, ran: list[str]) -> None:
    """A level of its trees is one build_tree over its part of the vocabulary."""
    generation.check_head(models["llama"], "cuda-emulated", generation.head(models["llama"], tmp_path))
    assert {"build_tree", "verify_tree", "quant_linear"} <= set(ran)


@pytest.mark.parametrize("verifier", ["traversal", "top_down"])
def test_rejection_gives_the_cpu_s_tokens(verifier: str, models: dict[str, Path], ran: list[str]) -> None:
    generation.check_rejection(models["llama"], "cuda-emulated", verifier)
    assert {"draw_children", "verify_drawn", "edit_logits"} <= set(ran)


def test_norms_of_heads_and_other_flags(models: dict[str, Path]) -> None:
    generation.check(models["qwen3"], "cuda-emulated", "greedy", "random")


def test_attention_is_planned_once_for_all_layers(models: dict[str, Path], ran: list[str]) -> None:
    generation.generate(models["llama"], "cuda-emulated", generation.SAMPLING["greedy"], speculation="off")
    assert (
        ran.count("tree_attention_run")
        == generation.SIZES["num_hidden_layers"] * ran.count("tree_attention_plan")
        > 0
    )
    assert "tree_attention" not in ran


@pytest.mark.parametrize(("order", "copies"), [("reverse", "late"), ("random_warps", "random")])
def test_no_order_of_threads_changes_a_token(order: str, copies: str, models: dict[str, Path]) -> None:
    with emulator.schedule(order=order, copies=copies, seed=5):
        generation.check(models["llama"], "cuda-emulated", "sampled", "random")


def test_heads_that_the_kernels_do_not_take_are_refused(tmp_path: Path) -> None:
    from tiny import tiny_checkpoint

    with pytest.raises(
        UnsupportedError, match="'cuda-emulated' cannot run this model: tree_attention: D must be"
    ):
        LLM(tiny_checkpoint("llama", tmp_path / "small"), executor="cuda-emulated", max_context=64)
