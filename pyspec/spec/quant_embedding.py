# SPDX-License-Identifier: Apache-2.0
"""quant_embedding: rows of a GGUF-quantised table; one packed copy serves the embedding and the tied LM head.

    out[t, k] = (d * q + minimum) * multiplier * scale        for row ids[t], as pyspec/spec/quant_formats.py defines them

T tokens; qweight, format, layout and num_rows as in quant_linear. Bit-exact: products with q are exact, then one rounding for
the sum and one for scale. Ids must lie in the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec.embedding import check_ids
from pyspec.spec.pack_quant_weight import check_format, check_rows, pack_quant_weight, random_rows
from pyspec.spec.quant_formats import FORMATS, grouped, rounded, unpack
from pyspec.spec.quant_linear import check_layout

CONTRACT = """
ids        [T]      i32
qweight    [R, Y]   u8
*
format     str
layout     str = "rows"
num_rows   int = 0
scale      float = 1.0
-> out     [T, K]   f32
"""


def check(
    sizes: dict[str, int], ids: Tensor, qweight: Tensor, *,
    format: str, layout: str = "rows", num_rows: int = 0, scale: float = 1.0,
) -> None:  # fmt: skip
    check_format("quant_embedding", format)
    check_layout("quant_embedding", layout, num_rows, qweight)
    f, size = FORMATS[format], sizes["Y"]
    if layout == "rows":
        check_rows("quant_embedding", qweight, format)
    elif f.packed_k(size) <= 0 or f.packed_k(size) % f.block_k or f.packed_bytes(f.packed_k(size)) != size:
        raise ValueError(
            f"quant_embedding: qweight must be [R, Y] with Y the bytes of a packed {format} block, "
            f"got {list(qweight.shape)}"
        )
    check_ids("quant_embedding", ids, num_rows if layout == "packed" else sizes["R"])


def cases() -> Iterator[Case]:
    for format, f in FORMATS.items():
        for t, n, k in [(3, 20, 2 * f.block_k), (0, 16, f.block_k), (40, 33, 768)]:
            ids = torch.randint(0, n, (t,), generator=torch.Generator().manual_seed(t), dtype=torch.int32)
            rows = random_rows(format, n, k)
            yield Case(f"{format}-T{t}-N{n}-K{k}", (ids, rows), {"format": format, "scale": 1.5})
            packed = pack_quant_weight.reference(rows, format=format)
            kwargs = {"format": format, "layout": "packed", "num_rows": n}
            yield Case(f"{format}-packed-T{t}-N{n}-K{k}", (ids, packed), kwargs)


def cost(sizes: dict[str, int], *args: Tensor, **kwargs: Any) -> Cost:
    """A row of integers read and a row of f32 written per token."""
    k, bits = derive(sizes, kwargs)["K"], FORMATS[kwargs["format"]].bits
    return Cost(bytes=sizes["T"] * k * bits // 8 + 4 * sizes["T"] * (k + 1), flops=2 * sizes["T"] * k)


def derive(sizes: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    f = FORMATS[kwargs["format"]]
    if kwargs.get("layout", "rows") == "packed":
        return {"K": f.packed_k(sizes["Y"])}
    return {"K": sizes["Y"] // f.block_bytes * f.block_k}


def cuda_limit(sizes: dict[str, int], *args: Tensor, layout: str = "rows", **kwargs: object) -> str | None:
    """Why the CUDA kernel cannot run a call, or None."""
    return None if layout == "rows" else f"layout must be rows, got {layout}"


@op(CONTRACT, check=check, cases=cases, cost=cost, derive=derive, limits={"cuda": cuda_limit})
def quant_embedding(
    ids: Tensor, qweight: Tensor, *, format: str, layout: str = "rows", num_rows: int = 0, scale: float = 1.0
) -> Tensor:
    rows = ids.long()
    if layout == "packed":
        blocks = unpack(qweight[rows // 16], format, 16 * ids.size(0)).dense()
        return (
            blocks.unflatten(0, (ids.size(0), 16))[torch.arange(ids.size(0), device=ids.device), rows % 16]
            * scale
        )
    return rounded(grouped(qweight[rows], format), format).dense() * scale
