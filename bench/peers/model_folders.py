# SPDX-License-Identifier: Apache-2.0
"""The model of a GGUF file for peers that do not read it: its dequantised weights as a Hugging Face folder, and that as ONNX int4."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as TokenizerFile
from tokenizers.models import WordLevel

from pyspec import env
from pyspec.models.checkpoint import Checkpoint
from pyspec.models.config import ModelConfig
from pyspec.models.quant_formats import QuantTensor, dequantize

from .environments import python_of
from .peer_process import PeerError

_TOP = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "lm_head": "lm_head.weight"}
_LAYER = {
    "attn_norm": "input_layernorm", "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj", "mlp_norm": "post_attention_layernorm", "gate_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}  # fmt: skip


def dense_folder(checkpoint: Checkpoint) -> Path:
    """A folder of bf16 weights and their configuration, made once. PeerError for models that are not plain Llamas."""
    folder = _folder("dense", checkpoint)
    if not folder.exists():
        scratch = _scratch(folder)
        config = dense_config(checkpoint.config)
        weights = {dense_name(name): _bf16(checkpoint.weight(name)) for name in checkpoint.names()}
        save_file(weights, scratch / "model.safetensors", metadata={"format": "pt"})
        (scratch / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        # A builder that copies a tokenizer wants to find one; peers are asked with token ids, so nobody uses it.
        TokenizerFile(WordLevel({"": 0}, "")).save(str(scratch / "tokenizer.json"))
        kind = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
        (scratch / "tokenizer_config.json").write_text(kind, encoding="utf-8")
        os.replace(scratch, folder)
    return folder


def onnx_folder(checkpoint: Checkpoint) -> Path:
    """The same as int4 for ONNX Runtime GenAI, made once by its own builder in its own environment."""
    folder = _folder("onnx", checkpoint)
    if not folder.exists():
        scratch = _scratch(folder)
        command = [
            str(python_of("onnxruntime-genai")), "-m", "onnxruntime_genai.models.builder", "-i", str(dense_folder(checkpoint)),
            "-o", str(scratch), "-p", "int4", "-e", "cpu", "-c", str(scratch / "cache"),
            "--extra_options", "int4_accuracy_level=4", "int4_block_size=32",
        ]  # fmt: skip
        offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            command,
            env=offline,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if done.returncode:
            raise PeerError(
                f"onnxruntime-genai: its builder failed: {done.stdout.strip().splitlines()[-1][:300]}"
            )
        os.replace(scratch, folder)
    return folder


def dense_name(name: str) -> str:
    """Hugging Face's name of a canonical weight. PeerError for weights that a plain Llama does not have."""
    if name in _TOP:
        return _TOP[name]
    prefix, _, part = name.rpartition(".")
    if part not in _LAYER:
        raise PeerError(f"peers: weights must be those of a plain Llama, got {name}")
    return f"model.{prefix}.{_LAYER[part]}.weight"


def dense_config(config: ModelConfig) -> dict[str, Any]:
    """config.json of a plain Llama. PeerError for what such a file would not say."""
    for name, plain in (
        ("architecture", "llama"), ("activation", "silu"), ("qkv_bias", False), ("qk_norm", False), ("post_norms", False),
        ("embed_scale", 1), ("attn_softcap", 0), ("logit_softcap", 0), ("rope_scaling", None),
    ):  # fmt: skip
        if getattr(config, name) != plain:
            raise PeerError(
                f"peers: {name} must be {plain!r} for a plain Llama, got {getattr(config, name)!r}"
            )
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
        "num_hidden_layers": config.num_layers, "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim, "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position, "rms_norm_eps": config.rms_eps, "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings, "bos_token_id": config.bos_id, "eos_token_id": config.eos_ids[0],
        "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip


def _bf16(weight: torch.Tensor | QuantTensor) -> torch.Tensor:
    return (dequantize(weight) if isinstance(weight, QuantTensor) else weight).bfloat16().contiguous()


def _folder(kind: str, checkpoint: Checkpoint) -> Path:
    return env.cache_dir() / "peers" / "models" / f"{checkpoint.path.stem}-{kind}"


def _scratch(folder: Path) -> Path:
    """An empty folder beside it: what is made appears under its name only when it is whole."""
    scratch = folder.with_name(f".{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    return scratch
