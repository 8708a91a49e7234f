# SPDX-License-Identifier: Apache-2.0
"""A tiny model generates text on the Triton kernels, executed by ttsem or the interpreter (see tests/triton_emulated/emulation.py):
the CPU's tokens, greedy and sampled, with trees."""

from __future__ import annotations

from pathlib import Path

import emulation
import generation
import pytest
import torch

from pyspec import backends

emulation.start()


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' own functions: Triton is emulated underneath them."""
    if not emulation.INTERPRETED:
        # ttsem has tensors say that they are on a GPU; the CPU's executor beside it must know better
        monkeypatch.delattr(torch.Tensor, "device")
        monkeypatch.delattr(torch.Tensor, "is_cuda")
    monkeypatch.setattr(backends, "_emulators", {})
    backends.register_emulator("triton-emulated", backends._run_triton)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generation.folder("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.mark.parametrize("sampling", generation.SAMPLING)
@pytest.mark.parametrize("speculation", generation.SPECULATION)
def test_tokens_are_the_cpu_s(speculation: str, sampling: str, model: Path) -> None:
    generation.check(model, "triton-emulated", sampling, speculation)


def test_a_draft_head_changes_no_token(model: Path, tmp_path: Path) -> None:
    generation.check_head(model, "triton-emulated", generation.head(model, tmp_path))


def test_rejection_gives_the_cpu_s_tokens(model: Path) -> None:
    generation.check_rejection(model, "triton-emulated", "traversal")


def test_rows_of_a_gguf_file(tmp_path: Path) -> None:
    generation.check(generation.gguf(tmp_path / "m.gguf"), "triton-emulated", "greedy", "random")
