# SPDX-License-Identifier: Apache-2.0
"""The low-level API: one function per op. Shapes by the letters of docs/structure.md; contracts in pyspec/spec.

Every function takes `backend=None` (the best that can run the call) or a name ("cpu", "cuda", "triton", "spec"), which is
refused with every backend's reason if it cannot. Bad arguments raise ValueError or TypeError before anything runs.
"""

from __future__ import annotations

from torch import Tensor

from pyspec import spec
from pyspec.backends import call

__all__ = ["add_rms_norm", "rms_norm", "sample", "verify_tree"]


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, backend: str | None = None) -> Tensor:
    """Root mean square normalisation of the rows of x [M, K] f32, scaled by weight [K] f32; returns [M, K] f32."""
    return call(spec.rms_norm, (x, weight), {"eps": eps}, backend)


def add_rms_norm(
    residual: Tensor, delta: Tensor, weight: Tensor, *, eps: float = 1e-6, backend: str | None = None
) -> Tensor:
    """residual [M, K] f32 += delta [M, K] f32 in place; returns rms_norm of the sum, [M, K] f32."""
    return call(spec.add_rms_norm, (residual, delta, weight), {"eps": eps}, backend)


def sample(
    logits: Tensor,
    positions: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    stream: Tensor,
    *,
    num_logprobs: int = 0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One token per row of logits [T, V] f32, the same bits on every backend.

    positions [T] i32 (absolute position of the token to be emitted), temperature [T] f32 (0 greedy), top_k [T] i32 (0 off),
    top_p [T] f32 (1 off), min_p [T] f32 (0 off), seed [T] i64, stream [T] i32 (sample index of the request).
    Returns token [T] i32, logprob [T] f32 (of the raw logits), top_tokens [T, N] i32, top_logprobs [T, N] f32, N = num_logprobs.
    """
    args = (logits, positions, temperature, top_k, top_p, min_p, seed, stream)
    return call(spec.sample, args, {"num_logprobs": num_logprobs}, backend)


def verify_tree(
    logits: Tensor,
    tokens: Tensor,
    parents: Tensor,
    cu_t: Tensor,
    position: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    stream: Tensor,
    *,
    max_path: int,
    num_logprobs: int = 0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Walk each request's token tree with the tokens of plain decoding; the tree cannot change what is emitted.

    logits [T, V] f32 (a row per node), tokens [T] i32, parents [T] i32 (local, -1 for the root), cu_t [B+1] i32,
    position [B] i32 (absolute position of the root); the other tensors [B] as in `sample`. Returns path [B, E] i32
    (local indices of accepted nodes, root first), path_len [B] i32, emitted [B, E] i32 (the last one is the next root),
    logprobs [B, E] f32, top_tokens [B, E, N] i32, top_logprobs [B, E, N] f32; E = max_path, N = num_logprobs.
    """
    args = (logits, tokens, parents, cu_t, position, temperature, top_k, top_p, min_p, seed, stream)
    return call(spec.verify_tree, args, {"max_path": max_path, "num_logprobs": num_logprobs}, backend)
