# SPDX-License-Identifier: Apache-2.0
"""A GGUF file as a Checkpoint: weights stay quantised and, but for permuted ones, in the mapped file."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from pyspec.models.checkpoint import Checkpoint
from pyspec.models.config import weight_shapes
from pyspec.models.fields import is_int
from pyspec.models.gguf import GGUFFile, TensorInfo
from pyspec.models.gguf_config import config_from_gguf
from pyspec.models.gguf_tokenizer import tokenizer_from_gguf
from pyspec.models.quant_formats import QUANT_FORMATS, QuantTensor
from pyspec.models.tokenizer import Tokenizer

_TOP = {"embed": "token_embd.weight", "final_norm": "output_norm.weight", "lm_head": "output.weight"}
_LAYER = {
    "attn_norm": "attn_norm.weight",
    "q_proj": "attn_q.weight",
    "k_proj": "attn_k.weight",
    "v_proj": "attn_v.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "o_proj": "attn_output.weight",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "gate_proj": "ffn_gate.weight",
    "up_proj": "ffn_up.weight",
    "down_proj": "ffn_down.weight",
    "post_attn_norm": "post_attention_norm.weight",
    "post_mlp_norm": "post_ffw_norm.weight",
}
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def _gguf_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, layer, part = name.split(".")
    return f"blk.{layer}.{_LAYER[part]}"


class GGUFCheckpoint(Checkpoint):
    """See Checkpoint. Files of architecture llama interleave the rows of q and k; they are put in order."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = GGUFFile(path)
        try:
            self.config = config_from_gguf(self._file)
            self._tensors = self._find_tensors()
        except ValueError as error:
            raise ValueError(f"{error} (file {self.path})") from None
        template = self._file.metadata.get("tokenizer.chat_template")
        self.chat_template = template if isinstance(template, str) else None
        self.template_tokens = self._template_tokens()

    def release_pages(self) -> None:
        self._file.release_pages()

    def _find_tensors(self) -> dict[str, TensorInfo]:
        shapes = weight_shapes(self.config)
        wanted = {name: _gguf_name(name) for name in shapes}
        if "rope_freqs.weight" in self._file.tensors:
            shapes["rope_factors"], wanted["rope_factors"] = (self.config.head_dim // 2,), "rope_freqs.weight"
        found = {}
        for name, stored in wanted.items():
            info = self._file.tensors.get(stored)
            if info is None or info.shape != shapes[name]:
                got = "nothing" if info is None else list(info.shape)
                raise ValueError(f"gguf: {stored} must be {list(shapes[name])}, got {got}")
            if info.format in QUANT_FORMATS and len(info.shape) != 2:
                raise ValueError(f"gguf: {stored} must be F32, F16 or BF16, got {info.format.upper()}")
            found[name] = info
        known = {*wanted.values(), "output.weight"}
        extra = next((name for name in self._file.tensors if name not in known), None)
        if extra is not None:
            raise ValueError(f"gguf: tensors must be those of {self.config.architecture}, got {extra}")
        return found

    def _template_tokens(self) -> dict[str, str]:
        metadata, found = self._file.metadata, {}
        tokens = metadata.get("tokenizer.ggml.tokens")
        for name in ("bos", "eos"):
            token = metadata.get(f"tokenizer.ggml.{name}_token_id")
            if isinstance(tokens, list) and is_int(token) and 0 <= token < len(tokens):
                found[f"{name}_token"] = tokens[token]
        return found

    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def weight(self, name: str) -> torch.Tensor | QuantTensor:
        info = self._tensors.get(name)
        if info is None:
            raise ValueError(f"weight: name must be one of names(), got {name!r}")
        data = torch.from_numpy(self._file.data(info.name))
        if info.format in _DTYPES:
            return self._rotary_order(name, data.view(_DTYPES[info.format]).view(info.shape))
        rows = self._rotary_order(name, data.view(info.shape[0], -1))
        return QuantTensor(info.format, (info.shape[0], info.shape[1]), rows)

    def _rotary_order(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        part = name.rpartition(".")[2]
        if self.config.architecture != "llama" or part not in ("q_proj", "k_proj", "q_bias", "k_bias"):
            return rows
        # Stored row 2 d + half of a head is row half * D/2 + d.
        heads = self.config.num_heads if part[0] == "q" else self.config.num_kv_heads
        order = torch.arange(rows.shape[0]).view(heads, -1, 2).transpose(1, 2).reshape(-1)
        return rows[order]

    def _load_tokenizer(self) -> Tokenizer:
        try:
            return tokenizer_from_gguf(self._file.metadata, self.config.eos_ids)
        except ValueError as error:
            raise ValueError(f"{error} (file {self.path})") from None
