# SPDX-License-Identifier: Apache-2.0
"""What a step emits: the walk of every request's tree, and the cache compacted behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyspec import ops
from pyspec.engine.batch import StepBatch


class Verified(NamedTuple):
    """Results of verify_tree or verify_drawn on the host, a row per request of the batch (path_len 0 where it had no logits)."""

    path: NDArray[np.int32]
    path_len: NDArray[np.int32]
    emitted: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    top_tokens: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]


def logprob_options(num_logprobs: int | None) -> dict[str, Any]:
    """Options of verify_tree and verify_drawn. None: no logprobs at all, which saves a pass over every row that is walked."""
    return {"num_logprobs": num_logprobs or 0, "with_logprobs": num_logprobs is not None}


def verify_on_host(
    batch: StepBatch, logits: Tensor, commit: Callable[[Tensor, Tensor], None], num_logprobs: int | None
) -> Verified:
    """Walk the batch's trees; commit(path, path_len) is called if some path does not lie where it belongs already."""
    trees = batch.trees()
    edits = batch.edits.arguments(logits.size(1), *trees[:3])
    edited = () if edits is None else (ops.edit_logits(logits, *edits),)
    walk, longest = batch.drawn.verifier.walk, batch.longest_path
    options = logprob_options(num_logprobs)
    if walk:  # the root's position counts the steps: no two of a request begin at the same
        args = (*trees[:3], *batch.drawn.arrays(logits.size(1)), *trees[3:], *edited)
        walked = ops.verify_drawn(logits, *args, walk=walk, max_path=longest, **options)
    else:
        walked = ops.verify_tree(logits, *trees, *edited, max_path=longest, **options)
    verified = Verified(*(out.numpy() for out in walked))
    in_place = np.arange(verified.path.shape[1], dtype=np.int32)
    moved = ((verified.path != in_place) & (verified.path >= 0)).any(axis=1)
    if moved.any():
        commit(walked[0], torch.from_numpy(np.where(moved, verified.path_len, 0).astype(np.int32)))
    return verified
