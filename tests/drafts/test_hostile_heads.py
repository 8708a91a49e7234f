# SPDX-License-Identifier: Apache-2.0
"""Configurations of heads with random nonsense in them: every one is read, or refused with a ValueError of bounded length."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_checkpoint
from tiny_heads import eagle3_config, eagle3_folder, medusa_folder, mtp_folder, specforge_folder

from pyspec.drafts.heads.eagle3_checkpoint import Eagle3Checkpoint
from pyspec.drafts.heads.loading import head_kind
from pyspec.drafts.heads.medusa import MedusaCheckpoint
from pyspec.drafts.heads.mtp import MtpCheckpoint
from pyspec.models import ModelConfig, open_checkpoint

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, 10**400, 1.5, float("nan"), float("inf"), -0.0, "", "x", [], [1],
    [[]], ["x"], [None], [-5], [0] * 10000, "a" * 10000, {}, {"a": 1}, {"rope_type": "yarn"}, {"rope_type": "llama3"},
]  # fmt: skip
KEYS = [
    "eagle_config", "quantization_config", "rope_scaling", "rope_parameters", "layer_types", "text_config", "norm_output",
    "model_type", "sliding_window", "head_dim", "rope_theta", "num_nextn_predict_layers",
]  # fmt: skip
OPENED: dict[str, tuple[Callable[[Path, ModelConfig], Path], Callable[[Path, ModelConfig], object]]] = {
    "speculators": (lambda p, t: eagle3_folder(p, eagle3_config()), lambda p, t: Eagle3Checkpoint(p)),
    "specforge": (
        lambda p, t: specforge_folder(p, eagle3_config(taps=(1, 2))),
        lambda p, t: Eagle3Checkpoint(p),
    ),
    "mtp": (lambda p, t: mtp_folder(p, t, "speculators"), MtpCheckpoint),
    "mtp qwen": (lambda p, t: mtp_folder(p, t, "qwen"), MtpCheckpoint),
    "medusa": (lambda p, t: medusa_folder(p, t, "repository"), MedusaCheckpoint),
    "medusa vllm": (lambda p, t: medusa_folder(p, t, "truncated"), MedusaCheckpoint),
}


def spoiled(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy with one to three values replaced, added or removed, at the top or one level down."""
    config = copy.deepcopy(config)
    for _ in range(rng.choice([1, 1, 2, 3])):
        place = config
        key = rng.choice([*config, *KEYS])
        if isinstance(config.get(key), dict) and rng.random() < 0.8:
            place = config[key]
            key = rng.choice([*place, *KEYS])
        if rng.random() < 0.1:
            place.pop(key, None)
        else:
            place[key] = copy.deepcopy(rng.choice(VALUES))
    return config


@pytest.mark.parametrize("name", OPENED)
def test_nonsense_is_refused(name: str, tmp_path: Path) -> None:
    target = open_checkpoint(tiny_checkpoint("qwen3", tmp_path / "target")).config
    make, opened = OPENED[name]
    folder = make(tmp_path / "head", target)
    file, rng = folder / "config.json", random.Random(name)
    refused: list[str] = []
    whole = json.loads(file.read_text())
    for _ in range(200):
        file.write_text(json.dumps(spoiled(whole, rng)))
        for read in (lambda: head_kind(folder), lambda: opened(folder, target)):
            try:
                read()
            except ValueError as error:
                refused.append(str(error))
    assert 20 < len(refused) < 400
    assert max(map(len, refused)) < 1000
