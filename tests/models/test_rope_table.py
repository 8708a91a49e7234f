# SPDX-License-Identifier: Apache-2.0
"""rope_table against the rotary embeddings of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import TINY, tiny_model
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pyspec.models import rope_table
from pyspec.models.hf_config import config_from_hf

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
CASES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    TINY["llama"][2]["rope_parameters"],
    TINY["llama-yarn"][2]["rope_parameters"],
    YARN,
    {**YARN, "attention_factor": 0.7},
    {**YARN, "mscale": 0.8, "mscale_all_dim": 0.5},
    {**YARN, "truncate": False, "beta_fast": 16.0, "beta_slow": 2.0},
]


def _close(table: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    half = table.shape[1] // 2
    # transformers rounds frequencies to f32: at position 255 an angle is off by up to 255 * 2**-24.
    torch.testing.assert_close(table[:, :half], cos[0, :, :half], atol=6e-5, rtol=0)
    torch.testing.assert_close(table[:, half:], sin[0, :, :half], atol=6e-5, rtol=0)


@pytest.mark.parametrize("rope", CASES)
def test_matches_transformers(rope: dict[str, Any]) -> None:
    model = tiny_model("llama", rope_parameters=dict(rope), head_dim=64)
    config = config_from_hf(model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]})
    table = rope_table(config, "full", 256)
    assert table.shape == (256, 64)
    assert table.dtype == torch.float32
    _close(table, *LlamaRotaryEmbedding(model.config)(torch.zeros(1), torch.arange(256)[None]))


@pytest.mark.parametrize("layer_type", ["full", "sliding"])
def test_gemma3_has_two_tables(layer_type: str) -> None:
    hf = tiny_model("gemma3").config
    config = config_from_hf(hf.to_dict() | {"architectures": ["Gemma3ForCausalLM"]})
    cos, sin = Gemma3RotaryEmbedding(hf)(torch.zeros(1), torch.arange(256)[None], f"{layer_type}_attention")
    _close(rope_table(config, layer_type, 256), cos, sin)


def test_factors_divide_frequencies() -> None:
    config = config_from_hf(tiny_model("qwen3").config.to_dict() | {"architectures": ["Qwen3ForCausalLM"]})
    plain = rope_table(config, "full", 64)
    divided = rope_table(config, "full", 64, torch.full((16,), 2.0))
    assert torch.equal(divided[::2], plain[:32])
    for factors in (torch.ones(8), torch.zeros(16)):
        with pytest.raises(ValueError, match=r"rope_table: rope_factors must be positive \[16\], got"):
            rope_table(config, "full", 64, factors)


def test_angles_are_exact_far_out() -> None:
    config = config_from_hf(tiny_model("qwen3").config.to_dict() | {"architectures": ["Qwen3ForCausalLM"]})
    table = rope_table(config, "full", 1 << 17)
    position = torch.tensor(float((1 << 17) - 1), dtype=torch.float64)
    assert table[-1, 0] == position.cos().float()  # frequency 1
    assert table[-1, 16] == position.sin().float()


@pytest.mark.parametrize(("layer_type", "length"), [("local", 8), ("full", 0), ("full", 1 << 25)])
def test_refuses(layer_type: str, length: int) -> None:
    config = config_from_hf(tiny_model("qwen3").config.to_dict() | {"architectures": ["Qwen3ForCausalLM"]})
    with pytest.raises(ValueError, match="rope_table: (layer_type|max_position) must be"):
        rope_table(config, layer_type, length)
