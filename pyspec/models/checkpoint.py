# SPDX-License-Identifier: Apache-2.0
"""The interface of every weight format: a configuration, a tokenizer, and weights by canonical name."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

import torch

from pyspec.models.config import ModelConfig
from pyspec.models.quant_formats import QuantTensor
from pyspec.models.tokenizer import Tokenizer


class Checkpoint(ABC):
    """An open model. Every weight that `weight_shapes(config)` lists has been found with that shape.

    Names: embed, final_norm, lm_head (absent when tied), rope_factors [D/2] (where a GGUF file has them), and
    layers.{i}. with attn_norm, q_proj, k_proj, v_proj, q_bias, k_bias, v_bias, o_proj, q_norm, k_norm,
    mlp_norm, gate_proj, up_proj, down_proj, post_attn_norm, post_mlp_norm. Norm weights multiply as they are.
    Rows of q and k are in the half-split order of RoPE: dimensions d and d + D/2 of a head rotate together.
    `template_tokens` has bos_token and eos_token as the chat template expects them, where they are known.
    """

    path: Path
    config: ModelConfig
    chat_template: str | None
    template_tokens: dict[str, str]

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Canonical names of the weights."""

    @abstractmethod
    def weight(self, name: str) -> torch.Tensor | QuantTensor:
        """One weight in its stored dtype (f32, f16, bf16) or quantised. ValueError for an unknown name."""

    def release_pages(self) -> None:
        """Lets go of memory that only caches the file, once weights have been copied; tensors stay valid."""
        return

    @abstractmethod
    def _load_tokenizer(self) -> Tokenizer: ...

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded on first use; ValueError says what is missing from the checkpoint."""
        return self._load_tokenizer()


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a GGUF file or a Hugging Face folder without reading its weights.

    FileNotFoundError if nothing is there; ValueError if it is not a model this package can run exactly.
    """
    from pyspec.models.gguf_checkpoint import GGUFCheckpoint
    from pyspec.models.hf import HFCheckpoint

    path = Path(path)
    if not (path.is_dir() or path.is_file()):
        raise FileNotFoundError(f"open_checkpoint: path must be a GGUF file or a model folder, got '{path}'")
    return HFCheckpoint(path) if path.is_dir() else GGUFCheckpoint(path)
