# SPDX-License-Identifier: Apache-2.0
"""ModelConfig: what it refuses, and what both generations of config.json mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pyspec.models import ModelConfig, RopeScaling, weight_shapes
from pyspec.models.hf_config import config_from_hf

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}
SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture
def config() -> ModelConfig:
    return config_from_hf(LLAMA)


def test_reads_llama(config: ModelConfig) -> None:
    assert (config.architecture, config.head_dim, config.attn_scale) == ("llama", 16, 0.25)
    assert (config.bos_id, config.eos_ids, config.tie_embeddings) == (1, (2, 3), False)
    assert config.layer_types == ("full", "full")
    assert config.rope_scaling is None
    assert config_from_hf(LLAMA, (7,)).eos_ids == (2, 3, 7)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("num_layers", 0, "an integer in [1, 1024]"),
        ("hidden_size", -1, "an integer in [1, 131072]"),
        ("hidden_size", True, "an integer in [1, 131072]"),
        ("hidden_size", 64.0, "an integer in [1, 131072]"),
        ("vocab_size", 1 << 40, "an integer in [1, 4194304]"),
        ("max_position", 0, "an integer in [1, 16777216]"),
        ("num_heads", 3, "a multiple of num_kv_heads=2"),
        ("head_dim", 15, "even"),
        ("rms_eps", float("nan"), "in (0, 1]"),
        ("rope_theta", float("inf"), "in (1, 1e12]"),
        ("rope_local_theta", 0.5, "in (1, 1e12]"),
        ("attn_scale", 0.0, "in (0, 1e3]"),
        ("attn_softcap", -1.0, "in [0, 1e6]"),
        ("logit_softcap", "x", "in [0, 1e6]"),
        ("embed_scale", 0, "in (0, 1e6]"),
        ("activation", "relu", "silu or gelu_tanh"),
        ("architecture", "gpt2", "one of llama, mistral, qwen2, qwen3, gemma3"),
        ("layer_types", ("full",), "a tuple of num_layers=2"),
        ("layer_types", ("full", "chunked"), "full or sliding"),
        ("layer_types", ("full", "sliding"), "an integer, at least 1 for these layer_types"),
        ("bos_id", 128, "token ids in [0, 128)"),
        ("eos_ids", (2, -1), "token ids in [0, 128)"),
    ],
)
def test_refuses(config: ModelConfig, field: str, value: object, rule: str) -> None:
    with pytest.raises(ValueError, match=r"config: \w+ must be ") as error:
        replace(config, **{field: value})  # type: ignore[arg-type]
    assert f"must be {rule}, got " in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "dynamic", "factor": 2.0}, "one of linear, llama3, yarn, got 'dynamic'"),
        ({"kind": "linear", "factor": 0.0}, "rope_scaling.factor must be in (0, 1e6], got 0.0"),
        ({"kind": "yarn", "factor": 2.0}, "original_max_position must be an integer in [1, 16777216], got 0"),
        (
            {"kind": "llama3", "factor": 2.0, "original_max_position": 8, "low_freq_factor": 4.0},
            "low_freq_factor must be below 4, got 4.0",
        ),
    ],
)
def test_refuses_rope_scaling(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="config: rope_scaling") as error:
        RopeScaling(**values)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["BertModel"]}, "got 'BertModel'"),
        ({"architectures": []}, "architectures must be one of"),
        ({"architectures": None}, "architectures must be an array, got nothing"),
        ({"hidden_size": None}, "hidden_size must be an integer, got nothing"),
        ({"hidden_size": "64"}, "hidden_size must be an integer, got '64'"),
        ({"hidden_size": 10**400}, "hidden_size must be below 2**63"),
        ({"num_attention_heads": 0}, "hidden_size must be in [heads=0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be in [1, 1024]"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps must be below 2**63"),
        ({"attention_bias": True}, "attention_bias must be False or absent, got True"),
        ({"mlp_bias": True}, "mlp_bias must be False"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config must be None"),
        ({"hidden_act": "relu"}, "hidden_act must be one of silu, got 'relu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1.0"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "got 'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor must be a number"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "got 'longrope'"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"eos_token_id": [999]}, "eos_ids must be token ids in [0, 128), got 999"),
        ({"eos_token_id": "x"}, "eos_token_id must be a token id"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
        ({"rope_scaling": {"type": "yarn", "factor": float("inf")}}, "rope_scaling.factor"),
    ],
)
def test_refuses_config_json(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"^config: ") as error:
        config_from_hf({**LLAMA, **changes})
    assert words in str(error.value)


def test_old_and_new_rope_formats_agree() -> None:
    old = {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **SCALING}}
    new = {**LLAMA, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **SCALING}}
    assert config_from_hf(old) == config_from_hf(new)
    assert config_from_hf(old).rope_scaling == RopeScaling("llama3", 8.0, 64)
    assert config_from_hf(old).rope_theta == 5e5


def test_gemma3_formats_agree() -> None:
    old = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 7,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window": 1024,
    }
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    layers = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    new = {**old, "rope_scaling": None, "rope_parameters": rope, "layer_types": layers}
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106]}
    config = config_from_hf({**outer, "text_config": old})
    assert config == config_from_hf({**outer, "text_config": new})
    assert config == config_from_hf({**new, "architectures": ["Gemma3ForCausalLM"], "eos_token_id": [1, 106]})
    assert (config.rope_theta, config.rope_local_theta) == (1e6, 1e4)
    assert (config.num_heads, config.num_kv_heads, config.vocab_size) == (8, 4, 262208)
    assert config.layer_types.index("full") == 5
    assert (config.embed_scale, config.attn_scale, config.tie_embeddings) == (2560**0.5, 1 / 16, True)


def test_sliding_window_rules() -> None:
    mistral = {**LLAMA, "architectures": ["MistralForCausalLM"]}
    assert config_from_hf({**mistral, "sliding_window": 8}).layer_types == ("sliding", "sliding")
    assert config_from_hf({**mistral, "sliding_window": None}).layer_types == ("full", "full")
    qwen = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 8, "max_window_layers": 1}
    assert config_from_hf({**qwen, "use_sliding_window": False}).sliding_window == 0
    assert config_from_hf({**qwen, "use_sliding_window": True}).layer_types == ("full", "sliding")


def test_weight_shapes(config: ModelConfig) -> None:
    shapes = weight_shapes(replace(config, head_dim=32, qkv_bias=True, qk_norm=True, post_norms=True))
    assert shapes["layers.1.q_proj"] == (128, 64)
    assert shapes["layers.0.k_bias"] == (64,)
    assert shapes["layers.0.o_proj"] == (64, 128)
    assert shapes["layers.0.q_norm"] == (32,)
    assert shapes["lm_head"] == shapes["embed"] == (128, 64)
    assert "layers.0.post_mlp_norm" in shapes
    assert "layers.0.post_mlp_norm" not in weight_shapes(config)
    assert "lm_head" not in weight_shapes(replace(config, tie_embeddings=True))
