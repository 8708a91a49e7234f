# SPDX-License-Identifier: Apache-2.0
"""quant_linear: activations, quantised to int8 on the fly, times a GGUF-quantised weight.

    xq, xd    = quantize_activations(x)                       int8 with a scale per row and group of 32
    xs[m, g]  = xd[m, g] * float(sum of xq[m, k] over group g)
    acc       = fma(float(dot), d[n, g] * xd[m, g], acc); acc = fma(xs[m, g], minimum[n, g], acc)     for g = 0, 1, 2 ...
    out[m, n] = acc * multiplier[n] + bias[n]

dot is the int32 sum of xq * q over the group, exact. In q6_k d belongs to 16 values: the first line is done for both halves
with the same xd. Weights are as pyspec/spec/quant_formats.py defines them: K-quant scales are rounded by at most 2^-11.
M rows, N channels, K features (a multiple of the format's block, 32 or 256). qweight has R rows of Y bytes: GGUF rows (R = N), or
layout "packed": ceil(num_rows / 16) blocks as pack_quant_weight gives them. "rows" packs on the fly: the same bits, slowly.

Guarantees: that order for every output, so a row's bits depend on neither M nor threads, and are equal on all instruction
sets; denormals are flushed. A row with NaN or infinity gives NaN. The reference sums
in float64 in the same order and rounds once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec.pack_quant_weight import check_format, pack_quant_weight, random_rows
from pyspec.spec.quant_formats import FORMATS, grouped, rounded, unpack
from pyspec.spec.quantize_activations import quantize_activations

CONTRACT = """
x          [M, K]   f32
qweight    [R, Y]   u8
bias?      [N]      f32
*
format     str
layout     str = "rows"
num_rows   int = 0
-> out     [M, N]   f32
"""


def check_layout(op_name: str, layout: str, num_rows: int, qweight: Tensor) -> None:
    if layout not in ("rows", "packed"):
        raise ValueError(f"{op_name}: layout must be rows|packed, got {layout}")
    blocks = qweight.size(0)
    if layout == "packed" and not 16 * (blocks - 1) < num_rows <= 16 * blocks:
        raise ValueError(
            f"{op_name}: num_rows must be in ({16 * (blocks - 1)}, {16 * blocks}] (from qweight.size(0)={blocks} blocks "
            f"of 16), got {num_rows}"
        )
    if layout == "rows" and num_rows not in (0, blocks):
        raise ValueError(f"{op_name}: num_rows must be 0 or {blocks} (from qweight.size(0)), got {num_rows}")


def check(
    sizes: dict[str, int], x: Tensor, qweight: Tensor, bias: Tensor | None = None, *,
    format: str, layout: str = "rows", num_rows: int = 0,
) -> None:  # fmt: skip
    check_format("quant_linear", format)
    check_layout("quant_linear", layout, num_rows, qweight)
    f, k = FORMATS[format], sizes["K"]
    if k == 0 or k % f.block_k:
        raise ValueError(
            f"quant_linear: x must be [M, K] with K a multiple of {f.block_k} (values of a {format} block), "
            f"got {list(x.shape)}"
        )
    size = f.packed_bytes(k) if layout == "packed" else f.row_bytes(k)
    if sizes["Y"] != size:
        raise ValueError(
            f"quant_linear: qweight must be [R, Y] with Y={size} ({format} {layout} of K={k}), got {list(qweight.shape)}"
        )
    n = num_rows if layout == "packed" else sizes["R"]
    if bias is not None and bias.size(0) != n:
        raise ValueError(f"quant_linear: bias must be [N] with N={n}, got {list(bias.shape)}")


def cases() -> Iterator[Case]:
    """Every format and layout, channels that fill no block, then a model's sizes."""
    for format, f in FORMATS.items():
        for m, n, k in [(3, 20, 2 * f.block_k), (0, 16, f.block_k), (9, 33, 768), (64, 96, 768)]:
            g = torch.Generator().manual_seed(m + n + k)
            x, rows, bias = (
                torch.randn(m, k, generator=g),
                random_rows(format, n, k),
                torch.randn(n, generator=g),
            )
            yield Case(f"{format}-M{m}-N{n}-K{k}", (x, rows, bias), {"format": format})
            packed = pack_quant_weight.reference(rows, format=format)
            kwargs = {"format": format, "layout": "packed", "num_rows": n}
            yield Case(f"{format}-packed-M{m}-N{n}-K{k}", (x, packed, None), kwargs)


def cost(sizes: dict[str, int], *args: Tensor, **kwargs: Any) -> Cost:
    """Weights read once, x read and out written once."""
    n = kwargs["num_rows"] if kwargs.get("layout") == "packed" else sizes["R"]
    m, k = sizes["M"], sizes["K"]
    return Cost(bytes=sizes["R"] * sizes["Y"] + 4 * m * (k + n), flops=2 * m * n * k)


def derive(sizes: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {"N": kwargs["num_rows"] if kwargs.get("layout", "rows") == "packed" else sizes["R"]}


def cuda_limit(sizes: dict[str, int], *args: Tensor, **kwargs: Any) -> str | None:
    """Why the CUDA kernel cannot run a call, or None."""
    layout = kwargs.get("layout", "rows")
    return None if layout == "rows" else f"layout must be rows, got {layout}"


@op(CONTRACT, check=check, cases=cases, cost=cost, derive=derive, limits={"cuda": cuda_limit})
def quant_linear(
    x: Tensor,
    qweight: Tensor,
    bias: Tensor | None = None,
    *,
    format: str,
    layout: str = "rows",
    num_rows: int = 0,
) -> Tensor:
    w = unpack(qweight, format, num_rows) if layout == "packed" else rounded(grouped(qweight, format), format)
    xq, xd, sums = quantize_activations.reference(x)
    size = FORMATS[format].group
    xq, q, d = xq.double(), w.q.double(), w.d.double()
    xs = (xd * sums.sum(dim=-1)).double()
    out = xq.new_zeros(x.size(0), q.size(0))
    for j in range(d.size(1)):  # element by element and in order: rows stay independent in float64 too
        dot = xq[:, j * size : (j + 1) * size] @ q[:, j * size : (j + 1) * size].T  # exact integers
        g = j * size // 32
        out += dot * (d[:, j] * xd[:, g, None].double())
        out += xs[:, g, None] * w.minimum[:, j].double() if FORMATS[format].has_min else 0
    out = out * w.multiplier.double().T
    return (out if bias is None else out + bias).float()
