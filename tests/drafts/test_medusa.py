# SPDX-License-Identifier: Apache-2.0
"""Medusa heads: both forms of checkpoints, logits of every head against the plain heads, and folders that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_heads import medusa, rms
from safetensors.torch import load_file, save_file
from tiny import tiny_checkpoint
from tiny_heads import medusa_folder
from torch import Tensor

from pyspec.drafts.heads.medusa import MedusaCheckpoint
from pyspec.drafts.heads.medusa_runner import MedusaRunner
from pyspec.models import ModelConfig, open_checkpoint
from pyspec.models.quantize import quantize

FORMS = ("repository", "version 2", "vllm", "truncated")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return open_checkpoint(tiny_checkpoint("llama", tmp_path_factory.mktemp("target"))).config


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_logits_equal_the_plain_heads(form: str, blocks: int, target: ModelConfig, tmp_path: Path) -> None:
    checkpoint = MedusaCheckpoint(medusa_folder(tmp_path, target, form, blocks=blocks), target)
    config, norm, target_head = checkpoint.config, 1 + 0.1 * random(64), random(320, 64)
    load = lambda name: target_head if name == "target_head" else checkpoint.weight(name)
    runner = MedusaRunner(config, load, norm, 1e-5, 99, 4)
    assert runner.sizes.max_depth == config.num_heads == 3
    features = [random(4, 64), random(2, 64)]
    x = torch.stack([rows[-1] for rows in features])
    weights = {name: checkpoint.weight(name).double() for name in checkpoint.names()}
    for i in range(config.num_heads):  # the heads' own, the one they share, or the target's
        head = weights.get(f"{i}.lm_head", weights.get("lm_head", target_head.double()))
        weights[f"{i}.lm_head"] = head
    normed = rms(x.double(), norm.double(), 1e-5)
    want = [medusa(weights, blocks, i, normed) for i in range(config.num_heads)]
    texts = [runner.open(), runner.open()]
    logits, output = runner.follow(texts, [[1, 2, 3, 4], [5, 6]], features)
    assert [text.length for text in texts] == [4, 2]
    torch.testing.assert_close(logits.double(), want[0], rtol=1e-4, atol=1e-5)
    rows = torch.tensor([0, 0, 1, 1, 1])
    for i in (1, 2):
        places = [
            runner.branches(text).advance([0] * count) for text, count in zip(texts, (2, 3), strict=True)
        ]
        lengths, tables = (np.concatenate(part) for part in zip(*places, strict=True))
        logits, output = runner.step(lengths, lengths, tables, output[rows] if i == 1 else output)
        torch.testing.assert_close(logits.double(), want[i][rows], rtol=1e-4, atol=1e-5)
        assert logits.shape == (5, config.columns)


def test_quantised_heads_are_close(target: ModelConfig, tmp_path: Path) -> None:
    checkpoint = MedusaCheckpoint(medusa_folder(tmp_path, target, "repository"), target)
    compact = lambda name: quantize(w, "q8_0") if (w := checkpoint.weight(name)).dim() == 2 else w
    exact, close = (
        MedusaRunner(checkpoint.config, load, torch.ones(64), 1e-5, 9, 2).follow([], [], [random(3, 64)])[0]
        for load in (checkpoint.weight, compact)
    )
    assert 0 < (exact - close).abs().max() < 0.05 * exact.abs().max()


def test_the_columns_of_a_reduced_vocabulary(target: ModelConfig, tmp_path: Path) -> None:
    checkpoint = MedusaCheckpoint(medusa_folder(tmp_path, target, "truncated"), target)
    assert torch.equal(checkpoint.target_ids, load_file(tmp_path / "model.safetensors")["token_map"])
    assert checkpoint.config.columns == 40


@pytest.mark.parametrize(
    ("form", "change", "words"),
    [
        ("repository", {"medusa_num_heads": 0}, r"num_heads must be an integer in \[1, 32\], got 0"),
        ("repository", {"medusa_num_heads": 1 << 40}, "num_heads must be an integer"),
        ("repository", {"medusa_num_layers": 17}, "num_blocks must be an integer"),
        ("repository", {"medusa_num_heads": 2}, "tensors must be weights of Medusa heads"),
        ("repository", {"medusa_num_heads": 4}, r"3.0.linear.weight must be \[64, 64\], got nothing"),
        ("vllm", {"hidden_size": 32}, "hidden_size must be the target's 64"),
        ("vllm", {"vocab_size": 300}, "vocab_size must be the target's 320"),
        ("vllm", {"logit_scale": 2.0}, "logit_scale must be 1"),
        ("vllm", {"truncated_vocab_size": 400}, r"columns must be an integer in \[1, 320\]"),
        ("vllm", {"medusa_fc_bias": True}, r"blocks.0.layers.0.bias must be \[64\]"),
        ("vllm", {"model_type": "llama"}, "model_type must be one of medusa"),
    ],
)
def test_bad_configs(
    form: str, change: dict[str, Any], words: str, target: ModelConfig, tmp_path: Path
) -> None:
    file = medusa_folder(tmp_path, target, form) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=words):
        MedusaCheckpoint(tmp_path, target)


def _map(values: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update(token_map=values(tensors["token_map"]))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("token_map"), "token_map must be present where truncated_vocab_size=40 is below"),
        (_map(lambda ids: ids.float()), "token_map must be I64"),
        (_map(lambda ids: ids - 320), "token_map must be 40 distinct ids"),
        (_map(lambda ids: ids * 0), "token_map must be 40 distinct ids"),
        (_map(lambda ids: ids[1:].clone()), r"token_map must be \[40\]"),
        (
            lambda t: t.update({"blocks.0.layers.0.weight": torch.ones(64)}),
            r"layers.0.weight must be \[64, 64\]",
        ),
        (lambda t: t.update({"lm_head.weight": torch.ones(40, 64).int()}), "lm_head.weight must be F32"),
    ],
)
def test_bad_tensors(
    edit: Callable[[dict[str, Tensor]], None], words: str, target: ModelConfig, tmp_path: Path
) -> None:
    file = medusa_folder(tmp_path, target, "truncated") / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=words):
        MedusaCheckpoint(tmp_path, target)


def test_pickles_are_refused(target: ModelConfig, tmp_path: Path) -> None:
    (medusa_folder(tmp_path, target, "repository") / "model.safetensors").unlink()
    (tmp_path / "medusa_lm_head.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a pickle can run any code.*medusa_lm_head.pt"):
        MedusaCheckpoint(tmp_path, target)
