# SPDX-License-Identifier: Apache-2.0
"""Small GGUF files: from the gguf package's writer, from a tiny transformers model, and lying ones by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tiny import VOCAB_SIZE, tiny_tokenizer

from pyspec.models.quant_formats import QUANT_FORMATS

STRING, ARRAY, UINT32 = 8, 9, 4


def string(text: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key.encode()) + struct.pack("<I", kind) + value


def info(
    name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0, num_dims: int | None = None
) -> bytes:
    """One tensor's description; dims with the row length first, as in the file."""
    count = len(dims) if num_dims is None else num_dims
    return string(name.encode()) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def raw_gguf(
    entries: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_entries: int | None = None,
) -> bytes:
    """A file put together by hand, with counts that may lie; data starts at the next multiple of 32."""
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(entries) if num_entries is None else num_entries,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def sample_gguf(path: Path) -> Path:
    """Every kind of metadata and every tensor format, by the gguf package's own writer."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (
        ("uint8", 7),
        ("int8", -7),
        ("uint16", 7),
        ("int16", -7),
        ("uint32", 7),
        ("int32", -7),
    ):
        getattr(writer, f"add_{name}")(f"x.{name}", value)
    writer.add_uint64("x.uint64", 1 << 40)
    writer.add_int64("x.int64", -(1 << 40))
    writer.add_float32("x.float32", 0.5)
    writer.add_float64("x.float64", 0.1)
    writer.add_bool("x.bool", True)
    writer.add_string("x.string", "na\u00efve \U0001f916")
    writer.add_array("x.strings", ["a", "", "\u00df"])
    writer.add_array("x.ints", [1, -2, 3])
    writer.add_array("x.floats", [0.5, 1.5])
    writer.add_array("x.bools", [True, False])
    rng = np.random.default_rng(0)
    writer.add_tensor("f32", rng.standard_normal((3, 5)).astype(np.float32))
    writer.add_tensor("f16", rng.standard_normal((2, 3, 4)).astype(np.float16))
    for fmt, (_, size) in QUANT_FORMATS.items():
        data = rng.integers(0, 256, (2, 2 * size), dtype=np.uint8)
        writer.add_tensor(fmt, data, raw_dtype=gguf.GGMLQuantizationType[fmt.upper()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    """The tokenizer of tiny.py, a beginning and an end token, and a chat template."""
    inner = tiny_tokenizer()
    tokens = [inner.id_to_token(i) or f"[PAD{i}]" for i in range(VOCAB_SIZE)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in (256, 257, 258) else 1 if i < 264 else 5 for i in range(VOCAB_SIZE)])
    writer.add_token_merges(["t h", "th e", "\u0120 the", "i n", "in g"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")


_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
_LLAMA_NORMS = {"post_attention_layernorm": "ffn_norm"}
_GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def model_gguf(
    path: Path,
    model: Any,
    architecture: str,
    *,
    extra: dict[str, np.ndarray] | None = None,
    tokenizer: bool = False,
    quantise: Callable[[str], str] | None = None,
) -> Path:
    """A transformers model as GGUF by the conventions of its converters: llama interleaves rows of q and k,
    Gemma's norms get their 1 added. F32, or matrices in the format that quantise(name) gives."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(2)
        writer.add_rope_freq_base(1e6)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)
    norms = _GEMMA_NORMS if architecture == "gemma3" else _LLAMA_NORMS
    for name, weight in model.state_dict().items():
        array = weight.float()
        stem, kind = name.rsplit(".", 1)
        if architecture == "gemma3" and "norm" in name:
            array = array + 1
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            # Row half * D/2 + d of a head goes to 2 d + half.
            array = array.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).reshape(array.shape)
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
        if stem in top:
            stored = top[stem]
        else:
            _, _, layer, part = stem.split(".", 3)
            stored = f"blk.{layer}.{ {**_PARTS, **norms}[part] }"
        values = torch.as_tensor(array).contiguous().numpy()
        if quantise and values.ndim == 2:
            format = gguf.GGMLQuantizationType[quantise(stored).upper()]
            writer.add_tensor(f"{stored}.{kind}", gguf.quants.quantize(values, format), raw_dtype=format)
        else:
            writer.add_tensor(f"{stored}.{kind}", values)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    if tokenizer:
        add_tokenizer(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
