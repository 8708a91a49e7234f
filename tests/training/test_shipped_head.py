# SPDX-License-Identifier: Apache-2.0
"""The head that comes with the package: complete, small, readable, and the one of its model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyspec import env
from pyspec.drafts.heads.eagle3_checkpoint import Eagle3Checkpoint
from pyspec.drafts.heads.shipped import FOLDER, shipped
from pyspec.models.checkpoint import open_checkpoint
from pyspec.training.log import read_log

HEADS = sorted(path.parent for path in FOLDER.glob("*/target.json"))
NAMES = {"config.json", "curves.png", "log.csv", "model.safetensors", "target.json", "training.json"}
MODEL = env.cache_dir() / "models" / "smollm2-135m-instruct.gguf"


def test_heads_are_small() -> None:
    assert HEADS
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) <= 12_000_000


@pytest.mark.parametrize("folder", HEADS, ids=lambda path: path.name)
def test_head_is_complete_and_what_its_log_says(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == NAMES
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    head, report = (
        Eagle3Checkpoint(folder),
        json.loads((folder / "training.json").read_text(encoding="utf-8")),
    )
    assert head.config.draft_vocab_size == report["options"]["draft_vocab_size"]
    assert all(head.weight(name).shape is not None for name in head.names())
    last = [row for row in read_log(folder / "log.csv") if row["split"] == "validation"][-1]
    assert int(last["step"]) == report["steps"] == report["options"]["steps"]
    reached = report["validation"]["mean_accepted_length"]
    assert float(last["mean_accepted_length"]) == pytest.approx(reached, abs=1e-3)


@pytest.mark.skipif(not MODEL.exists(), reason="smollm2-135m-instruct is not in the cache (pyspec fetch)")
def test_head_of_smollm2_is_found() -> None:
    checkpoint = open_checkpoint(MODEL)
    folder = shipped(checkpoint)
    assert folder is not None
    assert folder.name == "smollm2-135m-instruct-eagle3"
    assert Eagle3Checkpoint(folder).config.taps_of(checkpoint.config) == (2, 15, 27)
