# SPDX-License-Identifier: Apache-2.0
"""verify_tree in Triton, bit for bit: the shared cases, hard trees, a chain as samples, planted bugs."""

from __future__ import annotations

import random

import pytest
import torch
from emulation import faults, needs_ttsem, same_bits, supported
from sampling_fuzz import tree_call
from torch import Tensor

from pyspec import spec
from pyspec.contract import Case
from pyspec.kernels import verify_tree as kernels
from pyspec.kernels.sample import sample


def check_bits(args: tuple[Tensor, ...], **kwargs: int) -> None:
    got, want = kernels.verify_tree(*args, **kwargs), spec.verify_tree.run(*args, **kwargs)
    for a, b in zip(got, want, strict=True):
        same_bits(a, b)


def chain(nodes: int, vocab: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A chain whose tokens are those that sampling from its rows gives; the arguments of verify_tree, and
    of sample.
    """
    logits = torch.randn(nodes, vocab, generator=torch.Generator().manual_seed(1))
    one = lambda value, dtype: torch.tensor([value], dtype=dtype)
    position, temperature, top_k = one(9, torch.int32), one(0.9, torch.float32), one(40, torch.int32)
    law = (
        temperature,
        top_k,
        one(0.95, torch.float32),
        one(0.01, torch.float32),
        one(1.0, torch.float32),
        one(-5, torch.int64),
        one(1, torch.int32),
    )
    alone = logits, (position + 1 + torch.arange(nodes)).int(), *(t.expand(nodes) for t in law)
    tokens = torch.cat([torch.zeros(1, dtype=torch.int32), sample(*alone)[0][:-1]])
    parents, cu_t = (
        torch.arange(-1, nodes - 1, dtype=torch.int32),
        torch.tensor([0, nodes], dtype=torch.int32),
    )
    return (logits, tokens, parents, cu_t, position, *law), alone


@pytest.mark.parametrize("case", [*supported("verify_tree")[:3], supported("verify_tree")[5]])
def test_bits(case: Case) -> None:
    check_bits(case.args, **case.kwargs)


@pytest.mark.parametrize("seed", [30])
def test_hard_trees(seed: int) -> None:
    """Ragged trees of many nodes, some empty, over few tokens: long paths and equal siblings occur."""
    args, kwargs = tree_call(random.Random(seed))
    assert args[0].size(0) > 30
    check_bits(args, **kwargs)


def test_an_accepted_chain_is_plain_sampling() -> None:
    args, alone = chain(5, 70)
    path, path_len, emitted, logprobs, top_tokens, _ = kernels.verify_tree(*args, max_path=7, num_logprobs=2)
    token, logprob, top, _ = sample(*alone, num_logprobs=2)
    assert path_len.item() == 5
    assert path[0].tolist() == [0, 1, 2, 3, 4, -1, -1]
    same_bits(emitted[0, :5], token)
    same_bits(logprobs[0, :5], logprob)
    same_bits(top_tokens[0, :5], top)


def test_more_nodes_than_a_block() -> None:
    """The child that is walked to is the 40th of the root."""
    vocab = 64
    logits = torch.zeros(41, vocab)
    logits[:, 50] = 9
    tokens = torch.arange(41, dtype=torch.int32)
    tokens[40] = 50
    parents = torch.tensor([-1] + [0] * 40, dtype=torch.int32)
    one = lambda value, dtype=torch.int32: torch.tensor([value], dtype=dtype)
    law = (
        one(0),
        one(0.0, torch.float32),
        one(0),
        one(1.0, torch.float32),
        one(0.0, torch.float32),
        one(1.0, torch.float32),
        one(0, torch.int64),
        one(0),
    )
    args = logits, tokens, parents, torch.tensor([0, 41], dtype=torch.int32), *law
    check_bits(args, max_path=2)
    assert kernels.verify_tree(*args, max_path=2)[0].tolist() == [[0, 40]]


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("no mask", "oob_read"), ("one row", "race")])
def test_planted_bugs_are_found(bug: str, kind: str) -> None:
    logits, tokens, parents, cu_t, *laws, _ = supported("verify_tree")[0].values[0].args
    with faults(kind):
        kernels._launch(logits, tokens, parents, cu_t, tuple(laws), 3, 1, bug)


def test_noise_of_the_roots_position_is_found() -> None:
    (logits, tokens, parents, cu_t, *laws), _ = chain(5, 70)
    got = kernels._launch(logits, tokens, parents, cu_t, tuple(laws), 5, 0, "root's position")
    want = spec.verify_tree.run(logits, tokens, parents, cu_t, *laws, max_path=5)
    with pytest.raises(AssertionError):
        same_bits(got[2], want[2])
