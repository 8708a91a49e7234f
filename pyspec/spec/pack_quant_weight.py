# SPDX-License-Identifier: Apache-2.0
"""pack_quant_weight: GGUF rows to the packed form of CPU kernels, bit for bit as pyspec/spec/quant_formats.py lays it out.

N channels, Y bytes of a GGUF row; out has C = ceil(N / 16) blocks of Z bytes. quant_linear and quant_embedding read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec.quant_formats import FORMATS, grouped, pack, rounded

CONTRACT = """
qweight    [N, Y]   u8
*
format     str
-> packed  [C, Z]   u8
"""


def check_format(op_name: str, format: str) -> None:
    if format not in FORMATS:
        raise ValueError(f"{op_name}: format must be {'|'.join(FORMATS)}, got {format}")


def check_rows(op_name: str, qweight: Tensor, format: str) -> None:
    """GGUF rows of whole blocks."""
    size = FORMATS[format].block_bytes
    if qweight.size(1) == 0 or qweight.size(1) % size:
        raise ValueError(
            f"{op_name}: qweight must be [N, Y] with Y a multiple of {size} (bytes of a {format} block), "
            f"got {list(qweight.shape)}"
        )


def check(sizes: dict[str, int], qweight: Tensor, *, format: str) -> None:
    check_format("pack_quant_weight", format)
    check_rows("pack_quant_weight", qweight, format)


def random_rows(format: str, n: int, k: int, seed: int = 0) -> Tensor:
    """Valid GGUF rows [N, Y] u8 of random values with sane f16 scales."""
    f = FORMATS[format]
    g = torch.Generator().manual_seed(seed * 7919 + n * 31 + k)
    rows = torch.randint(0, 256, (n, k // f.block_k, f.block_bytes), generator=g, dtype=torch.uint8)
    scales = lambda: (torch.rand(n, k // f.block_k, 1, generator=g) * 0.02 + 0.001).half().view(torch.uint8)
    for at in {"q4_1": (0, 2), "q4_k": (0, 2), "q6_k": (208,)}.get(format, (0,)):
        rows[..., at : at + 2] = scales()
    return rows.flatten(1)


def cases() -> Iterator[Case]:
    for format, f in FORMATS.items():
        for n, k in [(20, 2 * f.block_k), (16, f.block_k), (0, f.block_k), (33, 768)]:
            yield Case(f"{format}-N{n}-K{k}", (random_rows(format, n, k),), {"format": format})


def cost(sizes: dict[str, int], *args: Tensor, format: str) -> Cost:
    """Every byte read and written once."""
    f = FORMATS[format]
    k = sizes["Y"] // f.block_bytes * f.block_k
    return Cost(bytes=sizes["N"] * sizes["Y"] + (sizes["N"] + 15) // 16 * f.packed_bytes(k), flops=0)


def derive(sizes: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    f = FORMATS[kwargs["format"]]
    return {"C": (sizes["N"] + 15) // 16, "Z": f.packed_bytes(sizes["Y"] // f.block_bytes * f.block_k)}


@op(CONTRACT, check=check, cases=cases, cost=cost, derive=derive)
def pack_quant_weight(qweight: Tensor, *, format: str) -> Tensor:
    return pack(rounded(grouped(qweight, format), format), format)
