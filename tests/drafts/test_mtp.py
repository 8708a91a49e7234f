# SPDX-License-Identifier: Apache-2.0
"""MTP modules: the four families of names, the step programs against the plain module, and folders that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from head_runner import DRAFTED, EXECUTORS, TOKENS, HeadRunner
from reference_heads import mtp
from safetensors.torch import load_file, save_file
from tiny import tiny_checkpoint
from tiny_heads import mtp_folder
from torch import Tensor

from pyspec.drafts.heads.mtp import MtpCheckpoint, mtp_program, mtp_shapes
from pyspec.models import ModelConfig, open_checkpoint

FORMS = {"speculators": "qwen3", "qwen": "qwen3", "mimo": "qwen2", "deepseek": "llama"}


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelConfig]:
    root = tmp_path_factory.mktemp("targets")
    configs: dict[str, ModelConfig] = {}

    def get(name: str) -> ModelConfig:
        if name not in configs:
            found = open_checkpoint(tiny_checkpoint(name, root / name)).config
            configs[name] = replace(found, rope_scaling=None, tie_embeddings=True)
        return configs[name]

    return get


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("form", FORMS)
def test_logits_equal_the_plain_module(
    form: str, executor: str, targets: Callable[[str], ModelConfig], tmp_path: Path
) -> None:
    target = targets(FORMS[form])
    checkpoint = MtpCheckpoint(mtp_folder(tmp_path, target, form), target)
    assert set(checkpoint.names()) == set(mtp_shapes(checkpoint.layer))
    generator = torch.Generator().manual_seed(7)
    random = lambda *shape: torch.randn(shape, generator=generator).bfloat16().float()
    weights = {name: checkpoint.weight(name).bfloat16().float() for name in checkpoint.names()}
    weights |= {"embed": random(320, 64), "final_norm": 1 + 0.2 * random(64).bfloat16().float()}
    weights["final_norm"] = weights["final_norm"].bfloat16().float()
    features = random(len(TOKENS), 64)

    def plain(dtype: torch.dtype) -> Tensor:
        w = {name: weight.to(dtype) for name, weight in weights.items()}
        return mtp(
            w, checkpoint.layer, checkpoint.form, features.to(dtype), TOKENS, DRAFTED, w["embed"]
        ).double()

    exact, low = plain(torch.float64), plain(torch.bfloat16)
    programs = (mtp_program(checkpoint.layer, target, checkpoint.form, first) for first in (True, False))
    got = (
        HeadRunner(checkpoint.layer, *programs, weights, executor).logits(features, TOKENS, DRAFTED).double()
    )
    assert (got - exact).abs().max() <= 1e-4 * exact.abs().max()
    assert (got - exact).abs().max() <= 2 * (low - exact).abs().max()


def test_forms_are_different_modules(targets: Callable[[str], ModelConfig], tmp_path: Path) -> None:
    """MiMo's projection has the hidden state first; DeepSeek's next step takes what is not normed."""
    target = targets("llama")
    forms = {form: MtpCheckpoint(mtp_folder(tmp_path / form, target, form), target).form for form in FORMS}
    assert [forms[form].token_first for form in FORMS] == [True, True, False, True]
    assert [forms[form].norm_output for form in FORMS] == [True, True, True, False]


@pytest.mark.parametrize(
    ("form", "change", "words"),
    [
        ("speculators", {"speculators_model_type": "eagle3"}, "speculators_model_type must be one of mtp"),
        ("speculators", {"num_nextn_predict_layers": 2}, "num_nextn_predict_layers must be 1, got 2"),
        ("speculators", {"transformer_layer_config": {"model_type": "qwen3_next"}}, "model_type must be one of qwen2"),
        ("speculators", {"transformer_layer_config": {"model_type": "qwen3"}}, "vocab_size must be the target's 320"),
        ("qwen", {"num_nextn_predict_layers": 3}, "num_nextn_predict_layers must be 1, got 3"),
    ],
)  # fmt: skip
def test_bad_configs(
    form: str, change: dict[str, Any], words: str, targets: Callable[[str], ModelConfig], tmp_path: Path
) -> None:
    target = targets(FORMS[form])
    file = mtp_folder(tmp_path, target, form) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=words):
        MtpCheckpoint(tmp_path, target)


@pytest.mark.parametrize(
    ("form", "edit", "words"),
    [
        ("qwen", lambda t: t.pop("mtp.fc.weight"), r"tensors must be one of mtp.fc.weight, model.mtp_layers.0.input"),
        ("mimo", lambda t: t.pop("model.mtp_layers.0.mlp.up_proj.weight"), r"up_proj.weight must be \[96, 64\]"),
        ("qwen", lambda t: t.update({"mtp.layers.0.mlp.experts.0.up_proj.weight": torch.ones(1)}), "of one qwen3 layer"),
        # a gated attention has q_proj twice as high
        ("qwen", lambda t: t.update({"mtp.layers.0.self_attn.q_proj.weight": torch.ones(256, 64)}), "q_proj.weight must be"),
        ("deepseek", lambda t: t.update({"model.layers.2.enorm.weight": torch.ones(32)}), r"enorm.weight must be \[64\]"),
        ("deepseek", lambda t: t.update({"model.layers.2.enorm.weight": torch.ones(64).int()}), "enorm.weight must be F32"),
    ],
)  # fmt: skip
def test_bad_tensors(
    form: str,
    edit: Callable[[dict[str, Tensor]], None],
    words: str,
    targets: Callable[[str], ModelConfig],
    tmp_path: Path,
) -> None:
    target = targets(FORMS[form])
    file = mtp_folder(tmp_path, target, form) / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=words):
        MtpCheckpoint(tmp_path, target)


def test_shared_copies_are_known_and_gemma_is_refused(
    targets: Callable[[str], ModelConfig], tmp_path: Path
) -> None:
    target = targets("llama")
    file = mtp_folder(tmp_path, target, "deepseek") / "model.safetensors"
    copies = {f"model.layers.2.{name}.weight": torch.ones(1) for name in ("embed_tokens", "shared_head.head")}
    save_file({**load_file(file), **copies}, file)
    MtpCheckpoint(tmp_path, target)
    with pytest.raises(ValueError, match="target must be without norms behind its blocks"):
        MtpCheckpoint(tmp_path, targets("gemma3"))
