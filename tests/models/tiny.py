# SPDX-License-Identifier: Apache-2.0
"""Tiny random Hugging Face checkpoints of every architecture, with a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB_SIZE = 320  # 256 bytes, 3 special tokens, some merges; the rest is padding
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 4.0,
}
_LINEAR = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
_QWEN_SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
# name -> (configuration class, model class, what differs from the common sizes)
TINY: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": _LLAMA3}),
    "llama-tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True, "head_dim": 32}),
    "llama-yarn": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": _YARN}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 8}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen2-sliding": (Qwen2Config, Qwen2ForCausalLM, _QWEN_SLIDING),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32}),
    "qwen3-mqa": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            "num_hidden_layers": 4,
            "head_dim": 32,
            "sliding_window": 8,
            "sliding_window_pattern": 2,
            "rope_parameters": _LINEAR,
            "query_pre_attn_scalar": 24,
            "final_logit_softcapping": 30.0,
        },
    ),
}


def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE with a few merges; <s> = 256, </s> = 257, <|user|> = 258."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    for i, token in enumerate(("<s>", "</s>", "<|user|>", "th", "the", "\u0120the", "in", "ing")):
        vocab[token] = 256 + i
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("i", "n"), ("in", "g")]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<s>", "</s>", "<|user|>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return tokenizer


def tiny_model(architecture: str, **overrides: Any) -> Any:
    """A seeded random transformers model in eval mode, f32: hidden 64, heads 4, KV heads 2, vocabulary 320.

    Norm weights and biases are random too, so that forgetting one shows.
    """
    config_class, model_class, changes = TINY[architecture]
    config = config_class(
        **{
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": 256,
            "bos_token_id": 256,
            "eos_token_id": 257,
            "pad_token_id": None,
            "attn_implementation": "eager",
            **changes,
            **overrides,
        }
    )
    generator = torch.Generator().manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            scale = 0.2 if weight.dim() == 1 else 0.1
            centre = 1.0 if name.endswith("norm.weight") and architecture != "gemma3" else 0.0
            weight.copy_(centre + scale * torch.randn(weight.shape, generator=generator))
    return model


def tiny_checkpoint(architecture: str, path: Path, max_shard_size: str = "1GB", **overrides: Any) -> Path:
    """Writes `tiny_model(architecture, **overrides)` and its tokenizer into the folder `path`."""
    tiny_model(architecture, **overrides).save_pretrained(path, max_shard_size=max_shard_size)
    tiny_tokenizer().save(str(path / "tokenizer.json"))
    return path
