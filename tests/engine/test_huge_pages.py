# SPDX-License-Identifier: Apache-2.0
"""Memory in huge pages: zeros, alignment, what is kept in an arena."""

import torch

from pyspec.engine.huge_pages import CHUNK, HUGE, Arena, zeros


def test_zeros_are_zero_aligned_and_writable():
    for shape, dtype in (((3, 5), torch.bfloat16), ((HUGE + 1,), torch.uint8), ((2, 0), torch.float32)):
        x = zeros(shape, dtype)
        assert (x.shape, x.dtype) == (shape, dtype)
        assert not x.any()
        assert x.numel() == 0 or x.data_ptr() % HUGE == 0
        x.fill_(1)
        assert x.all()


def test_arena_keeps_copies_apart():
    arena = Arena()
    given = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (1, 17, 1000, CHUNK // 4, 3)]
    kept = [arena.keep(x) for x in given]
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))
    assert all(x.data_ptr() % 64 == 0 for x in kept)
    kept[1].zero_()
    assert all(torch.equal(given[i], kept[i]) for i in (0, 2, 3, 4))


def test_arena_holds_what_is_larger_than_a_chunk_and_bytes_of_any_shape():
    arena = Arena()
    x = torch.arange(2 * CHUNK, dtype=torch.int64).to(torch.uint8).view(2, CHUNK)
    assert torch.equal(arena.keep(x), x)
    small = arena.keep(torch.full((3, 7), 5, dtype=torch.uint8))
    assert small.tolist() == [[5] * 7] * 3
