# SPDX-License-Identifier: Apache-2.0
"""The specification: one file per op with formula, contract, guarantees, reference, cases and cost."""

from __future__ import annotations

from pyspec.spec.add_rms_norm import add_rms_norm
from pyspec.spec.append_kv import append_kv
from pyspec.spec.build_tree import build_tree
from pyspec.spec.commit_kv import commit_kv
from pyspec.spec.draw_children import draw_children
from pyspec.spec.edit_logits import edit_logits
from pyspec.spec.embedding import embedding
from pyspec.spec.fp8_linear import fp8_linear
from pyspec.spec.gelu_mul import gelu_mul
from pyspec.spec.linear import linear
from pyspec.spec.linear_packed import linear_packed
from pyspec.spec.pack_int8_weight import pack_int8_weight
from pyspec.spec.pack_quant_weight import pack_quant_weight
from pyspec.spec.pack_weight import pack_weight
from pyspec.spec.quant_embedding import quant_embedding
from pyspec.spec.quant_linear import quant_linear
from pyspec.spec.quantize_activations import quantize_activations
from pyspec.spec.rms_norm import rms_norm
from pyspec.spec.rms_norm_quantize import rms_norm_quantize
from pyspec.spec.rope import rope
from pyspec.spec.sample import sample
from pyspec.spec.silu_mul import silu_mul
from pyspec.spec.softcap import softcap
from pyspec.spec.tile_kv import tile_kv
from pyspec.spec.tree_attention import tree_attention
from pyspec.spec.verify_drawn import verify_drawn
from pyspec.spec.verify_tree import verify_tree
from pyspec.spec.w4a16_linear import w4a16_linear
from pyspec.spec.w8a8_linear import w8a8_linear
from pyspec.spec.w8a8_linear_packed import w8a8_linear_packed

__all__ = [
    "add_rms_norm",
    "append_kv",
    "build_tree",
    "commit_kv",
    "draw_children",
    "edit_logits",
    "embedding",
    "fp8_linear",
    "gelu_mul",
    "linear",
    "linear_packed",
    "pack_int8_weight",
    "pack_quant_weight",
    "pack_weight",
    "quant_embedding",
    "quant_linear",
    "quantize_activations",
    "rms_norm",
    "rms_norm_quantize",
    "rope",
    "sample",
    "silu_mul",
    "softcap",
    "tile_kv",
    "tree_attention",
    "verify_drawn",
    "verify_tree",
    "w4a16_linear",
    "w8a8_linear",
    "w8a8_linear_packed",
]
