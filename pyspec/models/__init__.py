# SPDX-License-Identifier: Apache-2.0
"""Model definitions and weight formats."""

from pyspec.models.checkpoint import Checkpoint, open_checkpoint
from pyspec.models.config import ModelConfig, RopeScaling, weight_shapes
from pyspec.models.quant_formats import QuantTensor, dequantize
from pyspec.models.rope_table import rope_table
from pyspec.models.tokenizer import StreamDecoder, Tokenizer

__all__ = [
    "Checkpoint",
    "ModelConfig",
    "QuantTensor",
    "RopeScaling",
    "StreamDecoder",
    "Tokenizer",
    "dequantize",
    "open_checkpoint",
    "rope_table",
    "weight_shapes",
]
