# SPDX-License-Identifier: Apache-2.0
"""Heads that come with the package, in pyspec/heads, and which target each belongs to.

A head's folder has a target.json with the fingerprint of the target that it was trained for: of its sizes, and of its final norm, which
formats keep in full precision, so that every quantisation of a model has one fingerprint and every fine-tune another.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from pyspec.models.checkpoint import Checkpoint
from pyspec.models.quant_formats import QuantTensor, dequantize
from pyspec.models.safetensors_folder import read_json

FOLDER = Path(__file__).parents[2] / "heads"
TARGET_FILE = "target.json"


def target_fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256, 64 hexadecimal digits, of what a head relies on."""
    config = checkpoint.config
    sizes = (config.architecture, config.num_layers, config.hidden_size, config.vocab_size, config.eos_ids)
    norm = checkpoint.weight("final_norm")
    norm = dequantize(norm) if isinstance(norm, QuantTensor) else norm
    rounded = norm.to(torch.bfloat16).view(torch.int16).contiguous().numpy().tobytes()
    return hashlib.sha256(repr(sizes).encode() + rounded).hexdigest()


def shipped(checkpoint: Checkpoint, folder: Path = FOLDER) -> Path | None:
    """The folder of the head that was trained for this model, or None; ValueError if a head's target.json is none."""
    heads = sorted(path.parent for path in folder.glob(f"*/{TARGET_FILE}"))
    wanted = target_fingerprint(checkpoint) if heads else ""
    for head in heads:
        if read_json(head / TARGET_FILE).get("fingerprint") == wanted:
            return head
    return None
