# SPDX-License-Identifier: Apache-2.0
"""The low-level API: one function per op. Shapes by the letters of docs/structure.md; contracts in pyspec/spec.

Every function takes `backend=None` (the best that can run the call) or a name ("cpu", "cuda", "triton", "spec"), which is
refused with every backend's reason if it cannot. Bad arguments raise ValueError or TypeError before anything runs.
"""

from __future__ import annotations

from torch import Tensor

from pyspec import spec
from pyspec.backends import call

__all__ = ["add_rms_norm", "rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, backend: str | None = None) -> Tensor:
    """Root mean square normalisation of the rows of x [M, K] f32, scaled by weight [K] f32; returns [M, K] f32."""
    return call(spec.rms_norm, (x, weight), {"eps": eps}, backend)


def add_rms_norm(
    residual: Tensor, delta: Tensor, weight: Tensor, *, eps: float = 1e-6, backend: str | None = None
) -> Tensor:
    """residual [M, K] f32 += delta [M, K] f32 in place; returns rms_norm of the sum, [M, K] f32."""
    return call(spec.add_rms_norm, (residual, delta, weight), {"eps": eps}, backend)
