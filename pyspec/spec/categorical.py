# SPDX-License-Identifier: Apache-2.0
"""Drawing a token from weights, and the weights of a processed law.

With e(x) of pyspec/spec/pipeline.py, the weight of a token is 2^e(x), and 0 where a filter drops it or e(x) <
-126: the likeliest token of a row has 1, every other weight is a normal number or 0, and so are all products
the ops make of them. A temperature below 2^-16 counts as 0: 1 for the first token in order, 0 for the others.
A row without a finite value or +inf has no weight at all.

A token is drawn by the inverse of the distribution function. Lane l holds the tokens l, l + 32, l + 64 ...;
c(x) is the sum of the weights of its lane up to x, added in order of id, S(l) the sum of a lane, C(l) = S(0)
+ ... + S(l) added in this order:

    target = u C(31)
    l      = the first lane with target < C(l)
    token  = the first x of lane l with target - C(l-1) < c(x)

and where rounding leaves none, the last token (of the last lane) with a weight. A token without weight is
never drawn.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from pyspec.spec import noise, pipeline
from pyspec.spec.pipeline import LANES, Law

LEAST_EXPONENT = -126.0


def law_weights(row: Tensor, law: Law) -> Tensor:
    """The weights of a processed law [V] float64, of the row [V] float32 that tokens are picked from."""
    z = pipeline.clean(row).double()
    order = z.sort(descending=True, stable=True).indices
    weight = torch.zeros_like(z)
    if z[order[0]] == -torch.inf:
        return weight
    if law.temperature < pipeline.GREEDY_BELOW:
        weight[order[0]] = 1.0
        return weight
    centred = z - z[order[0]]
    e = centred * (noise.LOG2E * (1.0 / law.temperature))
    return torch.where(pipeline.kept(centred, order, law) & (e >= LEAST_EXPONENT), noise.exp2(e), 0.0)


def plain_weights(row: Tensor, temperature: float) -> Tensor:
    """The same without filters."""
    return law_weights(row, Law(temperature, top_k=0, top_p=1.0, min_p=0.0, seed=0, stream=0))


def categorical(weight: Tensor, u: float) -> int | None:
    """The token that u in [0, 1) draws by weight [V] float64; None if there is no weight."""
    rows = torch.nn.functional.pad(weight, (0, -weight.numel() % LANES)).view(-1, LANES)
    sums = list(accumulate(rows))  # of each lane, row after row
    ends = list(accumulate(sums[-1].tolist()))
    if ends[-1] == 0:
        return None
    target = u * ends[-1]
    heavy = [lane for lane, total in enumerate(sums[-1].tolist()) if total > 0]
    lane = next((i for i in heavy if target < ends[i]), heavy[-1])
    rest = target - (ends[lane - 1] if lane else 0.0)
    below = [i for i, row in enumerate(sums) if rest < row[lane]]
    row = below[0] if below else int(rows[:, lane].nonzero()[-1, 0])
    return row * LANES + lane
