# SPDX-License-Identifier: Apache-2.0
"""embedding: rows of a table, widened to f32 and scaled.

    out[t, k] = float(weight[ids[t], k]) * scale

T tokens, V rows, K features. Bit-exact (one rounding, by scale; denormals are flushed). Ids must be in [0, V).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op

CONTRACT = """
ids        [T]      i32
weight     [V, K]   f32|bf16|f16
*
scale      float = 1.0
-> out     [T, K]   f32
"""


def check_ids(op_name: str, ids: Tensor, count: int) -> None:
    outside = ids[(ids < 0) | (ids >= count)]
    if outside.numel():
        raise ValueError(f"{op_name}: ids must be in [0, {count}), got {int(outside[0])}")


def check(sizes: dict[str, int], ids: Tensor, weight: Tensor, *, scale: float = 1.0) -> None:
    check_ids("embedding", ids, sizes["V"])


def cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for t, v, k in [(3, 7, 40), (0, 7, 16), (1, 1, 1), (200, 50, 577)]:
            g = torch.Generator().manual_seed(t + k)
            ids = torch.randint(0, v, (t,), generator=g, dtype=torch.int32)
            weight = torch.randn(v, k, generator=g).to(dtype)
            yield Case(f"{dtype}-T{t}-K{k}".removeprefix("torch."), (ids, weight), {"scale": 1.7})


def cost(sizes: dict[str, int], ids: Tensor, weight: Tensor, **kwargs: float) -> Cost:
    """Ids and rows read, out written."""
    t, k = sizes["T"], sizes["K"]
    return Cost(bytes=t * (4 + k * (weight.element_size() + 4)), flops=t * k)


@op(CONTRACT, check=check, cases=cases, cost=cost)
def embedding(ids: Tensor, weight: Tensor, *, scale: float = 1.0) -> Tensor:
    return weight[ids.long()].float() * scale
