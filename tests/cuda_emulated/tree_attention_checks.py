# SPDX-License-Identifier: Apache-2.0
"""What the tests of CUDA tree_attention ask alike: emulated calls, the error of 16-bit arithmetic, results as bits."""

from __future__ import annotations

import math
from typing import Any

import torch
from attention_batches import Request, call_args
from cuda_emulator import emulator
from torch import Tensor

from pyspec import spec
from pyspec.contract import Case
from pyspec.spec.tree_attention import QUANTISED, visible

TREE = [-1, 0, 0, 1, 1, 2, 5, 0]


def attend(case: Case, **options: Any) -> tuple[Tensor, Tensor]:
    out, lse = emulator.call("tree_attention", *case.args, **case.kwargs, **options)
    return out, lse


def attend_requests(requests: list[Request], S: int = 16, seed: int = 0, **options: Any) -> list[Tensor]:
    """For every request its out and lse as one tensor [n, H, D + 1] f32; NaN lies in every slot that is not written."""
    args, kwargs = call_args(requests, S, seed=seed)
    out, lse = emulator.call("tree_attention", *args, **{**kwargs, **options})
    both = torch.cat([out.float(), lse[..., None]], -1)
    return list(both.split([len(request.parents) for request in requests]))


def low_precision(case: Case) -> tuple[Tensor, Tensor]:
    """Plain torch with queries and weights as the tensor cores take them: 16-bit values, or sums of two for other queries."""
    q, k_pages, v_pages, table, kv_len, cu_t, parents, k_scale, v_scale, sinks = case.args
    kind = torch.bfloat16 if k_pages.dtype in QUANTISED else k_pages.dtype
    S, (T, H, _), group = k_pages.size(1), q.shape, q.size(1) // k_pages.size(2)
    out, lse = torch.empty_like(q), torch.empty(T, H)
    window, cap = case.kwargs.get("window", 0), case.kwargs.get("softcap", 0.0)

    def rounded(x: Tensor) -> Tensor:
        first = x.float().to(kind).float()
        return first if q.dtype == kind else first + (x.float() - first).to(kind).float()

    bounds = cu_t.tolist()
    for b, L in enumerate(kv_len.tolist()):
        rows = slice(bounds[b], bounds[b + 1])
        slots = torch.arange(L + bounds[b + 1] - bounds[b])
        page, offset = table[b, slots // S].long(), slots % S
        scaled = [
            pages[page, offset].float() * (1 if scale is None else scale[page, offset][..., None])
            for pages, scale in ((k_pages, k_scale), (v_pages, v_scale))
        ]
        k, v = (x.repeat_interleave(group, 1) for x in scaled)
        s = torch.einsum("thd,shd->ths", rounded(q[rows]), k) * case.kwargs["scale"]
        s = cap * torch.tanh(s / cap) if cap else s
        s = s.masked_fill(~visible(L, parents[rows].tolist(), window)[:, None], -math.inf)
        top = s.amax(-1, keepdim=True)
        p = (s - top).exp()
        total = p.sum(-1) + (0 if sinks is None else (sinks - top[..., 0]).exp())
        out[rows] = (torch.einsum("ths,shd->thd", rounded(p), v) / total[..., None]).to(q.dtype)
        lse[rows] = top[..., 0] + total.log()
    return out, lse


def check_error(case: Case, **options: Any) -> None:
    """The kernel's error is at most twice that of the low precision."""
    exact = spec.tree_attention.reference(
        *(a.double() if a is not None and a.is_floating_point() else a for a in case.args), **case.kwargs
    )
    for got, low, truth in zip(attend(case, **options), low_precision(case), exact, strict=True):
        assert got.shape == truth.shape
        assert got.dtype == low.dtype
        if truth.numel():
            limit = 2 * (low - truth).abs().max() + 2e-7 * truth.abs().max()
            assert (got - truth).abs().max() <= limit


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32 if x.itemsize == 4 else torch.int16)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """The same bits, none of them NaN."""
    return bool(a.isfinite().all()) and torch.equal(bits(a), bits(b))
