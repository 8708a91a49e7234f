# SPDX-License-Identifier: Apache-2.0
"""sample: picks one token from each row of logits, by the processed law and the shared noise of pyspec/spec/pipeline.py.

    token[t] = argmax_x d_t(x) + g(seed[t], stream[t], positions[t], x)      over the tokens that the filters keep

T rows, V vocabulary; N = num_logprobs. Tokens are picked from `edited` where given, from `logits` else. `positions` are absolute positions of the tokens to be emitted: the noise belongs to
(seed, stream, position, id), so the same token comes out whatever batch, schedule or tree computed the row, and the
tokens follow the processed law exactly (Gumbel-max sampling: Maddison, Tarlow and Minka 2014, arXiv 1411.0030).

Guarantees: every backend gives the same bits; rows are independent; temperature 0 (below 2^-16) is the argmax, ties to
the lowest id; NaN logits are never picked; a row without a finite value gives token 0 and NaN logprobs. Logprobs
are those of `logits` (before edits, temperature and filters), float64 inside; without with_logprobs they are 0 (NaN still where
the row picked from has no finite value), which saves a pass over the row. T = 0 gives empty results.
Errors: ValueError unless V >= 1, positions >= 0, temperature finite and >= 0, 0 <= top_k <= V, 0 < top_p <= 1,
0 <= min_p <= 1, 0 < typical_p <= 1, 0 <= num_logprobs <= min(V, 1024), which must be 0 without with_logprobs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec import pipeline

CONTRACT = """
logits       [T, V]  f32
positions    [T]     i32
temperature  [T]     f32
top_k        [T]     i32    # 0: off
top_p        [T]     f32    # 1: off
min_p        [T]     f32    # 0: off
typical_p    [T]     f32    # 1: off
seed         [T]     i64
stream       [T]     i32    # sample index within a request
edited?      [T, V]  f32    # the rows to pick from where they are not `logits`
*
num_logprobs int = 0
with_logprobs bool = True
-> token         [T]                i32
-> logprob       [T]                f32
-> top_tokens    [T, num_logprobs]  i32
-> top_logprobs  [T, num_logprobs]  f32
"""


def laws(rows: int, vocab: int, g: torch.Generator, *, typical: bool = True) -> tuple[Tensor, ...]:
    """Parameters that cover greedy, plain and every filter: temperature, top_k, top_p, min_p, typical_p, seed, stream [rows]."""
    i = torch.arange(rows)
    pick = lambda values, dtype: torch.tensor(values, dtype=dtype)[
        (torch.rand(rows, generator=g) * len(values)).long()
    ]
    return (
        pick([0.0, 0.5, 0.8, 1.0, 1.7], torch.float32),
        pick([0, 0, 1, min(7, vocab), vocab], torch.int32),
        pick([1.0, 1.0, 0.95, 0.5, 0.01], torch.float32),
        pick([0.0, 0.0, 0.05, 0.3, 1.0], torch.float32),
        pick([1.0, 1.0, 0.9, 0.5, 0.05], torch.float32) if typical else torch.ones(rows),
        torch.randint(-(2**63), 2**63 - 1, (rows,), generator=g),
        (i % 3).int(),
    )


def cases() -> Iterator[Case]:
    """Small odd sizes first, then the vocabularies of real models; the last ones with typical-p and edited rows."""
    for t, v, n, typical in [
        (3, 41, 2, False),
        (1, 1, 1, False),
        (0, 16, 0, False),
        (16, 130, 5, False),
        (9, 4097, 0, False),
        (4, 49152, 3, False),
        (2, 151936, 0, False),
        (16, 130, 5, True),
        (4, 49152, 3, True),
    ]:
        g = torch.Generator().manual_seed(t * 10007 + v)
        logits = 4 * torch.randn(t, v, generator=g)
        positions = torch.randint(0, 4096, (t,), generator=g, dtype=torch.int32)
        law = laws(t, v, g, typical=typical)
        edited = logits + torch.randn(t, v, generator=g) if typical else None
        name = f"T{t}-V{v}-N{n}{'-edited' if typical else ''}"
        yield Case(name, (logits, positions, *law, edited), {"num_logprobs": n})


def cost(sizes: dict[str, int], *args: Tensor | None, **kwargs: int) -> Cost:
    """The rows read once; about 30 operations of exp for each value."""
    t, v, rows = sizes["T"], sizes["V"], 2 if args[9:] and args[9] is not None else 1
    return Cost(bytes=4 * rows * t * v, flops=30 * t * v)


def check(
    sizes: dict[str, int],
    logits: Tensor,
    positions: Tensor,
    *args: Tensor,
    num_logprobs: int = 0,
    with_logprobs: bool = True,
) -> None:
    where = "positions", positions
    pipeline.check_law("sample", sizes["V"], where, args[:5], num_logprobs, with_logprobs)


@op(CONTRACT, check=check, cases=cases, cost=cost)
def sample(
    logits: Tensor,
    positions: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    typical_p: Tensor,
    seed: Tensor,
    stream: Tensor,
    edited: Tensor | None = None,
    *,
    num_logprobs: int = 0,
    with_logprobs: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = logits.size(0)
    token = positions.new_empty(rows)
    logprob = logits.new_empty(rows)
    top_tokens = positions.new_empty(rows, num_logprobs)
    top_logprobs = logits.new_empty(rows, num_logprobs)
    for t, law in enumerate(pipeline.laws(temperature, top_k, top_p, min_p, typical_p, seed, stream)):
        row = None if edited is None else edited[t]
        picked = pipeline.pick(logits[t], int(positions[t]), law, num_logprobs, row, with_logprobs)
        token[t], logprob[t], top_tokens[t], top_logprobs[t] = picked
    return token, logprob, top_tokens, top_logprobs
