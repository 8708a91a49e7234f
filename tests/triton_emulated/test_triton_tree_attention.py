# SPDX-License-Identifier: Apache-2.0
"""tree_attention in Triton: error, and bits that must not change. Unwritten slots hold NaN."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_batches import Request, call_args, chain, equal, make_request, random_tree
from emulation import faults, needs_ttsem, no_worse, supported
from torch import Tensor

from pyspec import spec
from pyspec.contract import Case
from pyspec.kernels import tree_attention as kernels
from pyspec.spec.tree_attention import make_case

SPAN = 128  # instead of 512: the ends of spans are crossed by shorter texts
OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"window": 40}, id="window"),
    pytest.param({"softcap": 5.0}, id="softcap"),
]


def prompt(L: int, parents: list[int], q: str = "f32", seed: int = 0) -> Request:
    """Two query heads of 16 over one KV head in bf16."""
    request = make_request(L, parents, H=2, G=1, D=16, seed=seed)
    return replace(request, q=request.q.float() + 2**-12) if q == "f32" else request


def attend(
    requests: list[Request], S: int = 16, seed: int = 0, parts: int = 1, bug: str = "", **options: Any
) -> list[Tensor]:
    """Every request's out and lse as one tensor [n, H, D + 1]; `parts` programs share a row tile's spans."""
    args, kwargs = call_args(requests, S, seed=seed)
    (T, H, D), (_, S, G, _), (B, W) = args[0].shape, args[1].shape, args[3].shape
    config = kernels.pick_config(T, H, G, D, B, W * S, args[0].dtype, args[1].dtype)
    spans = -(-W * S // SPAN)
    config = replace(config, span=SPAN, spans=spans, parts=parts)
    arguments = {"scale": kwargs["scale"], "window": 0, "softcap": 0.0, **options}
    out, lse = kernels._launch(*args, config, **arguments, bug=bug)
    return list(torch.cat([out.float(), lse[..., None]], -1).split([len(r.parents) for r in requests]))


def wide(case: Case, dtype: torch.dtype) -> tuple[Any, ...]:
    """The case's arguments with floats (pages of 16 and 32 bits, queries, scales, sinks) in another dtype."""
    floats = (torch.float32, torch.bfloat16, torch.float16)
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.dtype in floats else x for x in case.args)


MIXED = [
    make_case(f"{q}-{pages}", 4, 2, 96, 5, q, pages, [(40, [-1, 0, 0, 1]), (3, chain(2))], sinks=True)
    for q, pages in [("f16", "f16"), ("f32", "f16"), ("f16", "bf16"), ("bf16", "f16"), ("f16", "f8")]
]


@pytest.mark.parametrize(
    "case",
    supported("tree_attention", kernels.limit) + [pytest.param(case, id=case.name) for case in MIXED],
)
def test_error(case: Case) -> None:
    """16-bit queries: at most twice the rounding of the result. f32: 64 times less than that of bf16."""
    q, out_lse = case.args[0], kernels.tree_attention(*case.args, **case.kwargs)
    exact = spec.tree_attention.reference(*wide(case, torch.float64), **case.kwargs)
    rough_q = q.bfloat16() if q.dtype == torch.float32 else q
    low = spec.tree_attention.reference(rough_q, *case.args[1:], **case.kwargs)
    assert out_lse[0].dtype == q.dtype
    for got, rough, want in zip(out_lse, low, exact, strict=True):
        no_worse(got, rough, want)
        if q.dtype == torch.float32 and got.numel():
            assert (got - want).abs().max() <= (rough - want).abs().max() / 64


@pytest.mark.parametrize("options", OPTIONS)
def test_prefill_in_any_chunks_equals_plain_decode(options: dict[str, Any]) -> None:
    """Over the end of the first span, with chunks that begin and end within tiles of slots and of rows."""
    text, nodes = prompt(100, chain(40), "bf16" if "window" in options else "f32"), list(range(40))
    (whole,) = attend([text], **options)
    for begin, end in ((0, 27), (27, 28), (28, 40)):
        (part,) = attend([text.select(nodes[:end], committed=begin)], **options)
        assert equal(part, whole[begin:end]), (begin, end)
    for i in (0, 39):
        (one,) = attend([text.select(nodes[: i + 1], committed=i)], S=7, **options)
        assert equal(one[0], whole[i]), i


@pytest.mark.parametrize("options", OPTIONS)
def test_batch_pages_and_programs_change_nothing(options: dict[str, Any]) -> None:
    batch = [
        prompt(290, chain(2)),
        prompt(9, random_tree(37, 1), seed=1),
        prompt(121, random_tree(20, 2), seed=2),
        prompt(0, chain(1)),
    ]
    want = attend(batch[::-1], **options)[::-1]
    for seed, (S, parts) in enumerate([(3, 3)] if options else [(1, 1), (3, 3), (256, 2)]):
        assert all(map(equal, attend(batch, S=S, seed=seed, parts=parts, **options), want)), (S, parts)
    assert equal(attend(batch[2:3], **options)[0], want[2])


def test_spans_of_several_columns_fold_alike() -> None:
    """64 columns are four rounds of a program's fold in memory; fold_kernel takes them at once."""
    text = make_request(290, chain(2), H=2, G=1, D=64)
    args, kwargs = call_args([text])
    exact = spec.tree_attention.reference(*map(finite, args), **kwargs)
    (got,), (parts,) = attend([text]), attend([text], parts=3)
    assert equal(got, parts)
    torch.testing.assert_close(got[..., :-1], exact[0].float(), rtol=2**-7, atol=2**-7)


def test_a_tree_that_begins_as_a_chain_has_its_bits() -> None:
    """Node i < 40 of the tree has the same slots before it as in the chain."""
    tree = prompt(90, [*chain(40), 3, 39, 40, 17])
    assert equal(attend([tree])[0][:40], attend([tree.select(list(range(40)))])[0])


@pytest.mark.parametrize(("n", "spread", "window"), [(110, 4, 0), (70, 2, 9)])
def test_trees_over_several_tiles(n: int, spread: int, window: int) -> None:
    """Deep and flat trees: every row tile and every tile of slots has other ancestors."""
    tree = prompt(30, random_tree(n, 5, spread))
    args, kwargs = call_args([tree])
    exact = spec.tree_attention.reference(
        *wide(Case("", tuple(map(finite, args))), torch.float64), window=window, **kwargs
    )
    (got,) = attend([tree], window=window)
    torch.testing.assert_close(got[..., :-1].double(), exact[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(got[..., -1].double(), exact[1], rtol=0, atol=2e-5)


def test_a_chain_longer_than_any_tree() -> None:
    """2100 nodes: whether they are a chain takes two rounds to say. The window keeps it short."""
    text = make_request(0, chain(2100), H=1, G=1, D=16)
    args, kwargs = call_args([text])
    exact = spec.tree_attention.reference(*map(finite, args), window=9, **kwargs)
    (got,) = attend([text], window=9)
    torch.testing.assert_close(got[..., :-1], exact[0].float(), rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(got[..., -1], exact[1], rtol=0, atol=2e-5)


def finite(x: Any) -> Any:
    """Zeros where nothing was written: the specification reads whole pages."""
    return x.nan_to_num() if isinstance(x, Tensor) and x.is_floating_point() else x


def test_nan_stays_with_those_who_see_it() -> None:
    tree = prompt(20, [-1, 0, 0, 1, 2, 3])
    (want,), (got,) = attend([tree]), attend([tree.with_nan([2])])
    sees = [2 in tree.path(i) for i in range(6)]
    assert got[sees].isnan().all()
    assert equal(got[[not x for x in sees]], want[[not x for x in sees]])
    later = prompt(20, chain(9))
    (want,), (got,) = attend([later]), attend([later.with_nan([5])])
    assert equal(got[:5], want[:5])
    assert got[5:].isnan().all()


def test_views_of_one_cache() -> None:
    """K and V side by side, queries as a slice of a projection."""
    args, kwargs = call_args([prompt(20, chain(3), "bf16")])
    want = kernels.tree_attention(*args, **kwargs)
    cache = torch.stack(args[1:3], 1)
    fused = torch.cat([args[0], args[0]], 1)
    got = kernels.tree_attention(fused[:, 2:], cache[:, 0], cache[:, 1], *args[3:], **kwargs)
    assert all(map(torch.equal, got, want))


def test_limits() -> None:
    def reason(D: int, dtype: torch.dtype, **kwargs: Any) -> str | None:
        pages = torch.empty(2, 4, 1, D, dtype=dtype)
        return kernels.limit({"D": D}, torch.empty(1, 1, D), pages, pages, **kwargs)

    assert reason(272, torch.bfloat16) == "D must be at most 256, got 272"
    assert reason(64, torch.float32) == "k_pages must be bf16|f16|f8|i8 (tensor cores take 16 bits), got f32"
    assert reason(64, torch.int8, kv_layout="tiled") == "kv_layout must be paged, got tiled"
    assert reason(96, torch.float8_e4m3fn) is None


def test_config_splits_where_programs_are_few() -> None:
    plain = kernels.pick_config(1, 32, 8, 128, 1, 8192)
    assert (plain.tiles, plain.spans, plain.parts) == (1, 16, 16)
    assert kernels.pick_config(1, 32, 8, 128, 1, 512).parts == 1
    assert kernels.pick_config(64, 32, 8, 128, 64, 8192).parts == 1
    assert kernels.pick_config(2048, 32, 8, 128, 1, 8192).tiles == 128
    assert (
        kernels.pick_config(40, 64, 1, 256, 1, 1 << 20).parts == 1
    )  # 5 GiB of states would have to be stored


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("no mask", "oob_read"), ("shared span", "race")])
def test_planted_faults_are_found(bug: str, kind: str) -> None:
    with faults(kind):
        attend([prompt(140, chain(3))], S=4, parts=2, bug=bug)


@pytest.mark.parametrize(("bug", "parents"), [("siblings", [-1, 0, 0]), ("future", [-1, 0, 1])])
def test_planted_wrong_masks_are_found(bug: str, parents: list[int]) -> None:
    """Keys of a sibling, and of the next token."""
    request = prompt(5, parents)
    assert not equal(attend([request], bug=bug)[0], attend([request])[0])
