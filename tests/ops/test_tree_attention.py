# SPDX-License-Identifier: Apache-2.0
"""tree_attention: error against float64, every head dim and group size, masks, bad values, empty batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attention_batches import attend, call_args, chain, make_request, random_tree
from contract_tests import copies, error_of, needs_native
from torch import Tensor

import pyspec
from pyspec import spec
from pyspec.contract import Case
from pyspec.spec.tree_attention import ancestor_words, cpu_limit, make_case, visible

native = torch.ops.pyspec.tree_attention
TREE = [-1, 0, 0, 1, 1, 2, 5, 0]
CPU_CASES = [
    case
    for case in spec.tree_attention.cases()
    if cpu_limit(spec.tree_attention.bind(case.args), *case.args) is None
]


def check_error(args: list[Any], kwargs: dict[str, Any]) -> None:
    """The kernel's error is at most twice that of the specification in f32 (rounded to the query's dtype alike).

    With pages of bf16 and int8 it rounds queries to bf16, as the specification is told to here, and weights: each by at most
    2^-9 of itself, so their sum with values by 2^-9 of the largest value. Its exponentials are right to 3e-6 then.
    """
    if kwargs.get("kv_layout") == "tiled":
        args[1:3] = spec.tile_kv.reference(args[1], args[2], inverse=True)
    exact = spec.tree_attention.reference(
        *(a.double() if a is not None and a.is_floating_point() else a for a in args),
        **{**kwargs, "kv_layout": "paged"},
    )
    rounded = args[1].dtype in (torch.bfloat16, torch.int8)
    query = args[0].bfloat16().to(args[0].dtype) if rounded else args[0]
    low = spec.tree_attention.reference(query, *args[1:], **{**kwargs, "kv_layout": "paged"})
    values = args[2].float() * (1.0 if args[8] is None else args[8][..., None])
    slack = (2.0**-9 * values.abs().max(), 3e-6) if rounded else (0.0, 0.0)
    if kwargs.get("kv_layout") == "tiled":
        args[1:3] = spec.tile_kv.reference(args[1], args[2])
    for got, reference, truth, more in zip(native(*args, **kwargs), low, exact, slack, strict=True):
        assert got.shape == truth.shape
        assert got.dtype == reference.dtype
        if truth.numel():
            limit = 2 * (reference - truth).abs().max() + 2e-7 * truth.abs().max() + more
            assert (got - truth).abs().max() <= limit


@needs_native
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CPU_CASES])
def test_error_at_most_twice_that_of_the_reference(case: Case) -> None:
    check_error(copies(case), dict(case.kwargs))


@needs_native
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "i8"])
@pytest.mark.parametrize("D", range(16, 257, 16))
def test_every_head_dim(D: int, dtype: str) -> None:
    for layout in ("paged", "tiled"):
        case = make_case("", 3, 1, D, 16, "f32", dtype, [(40, TREE), (5, chain(19))], kv_layout=layout)
        check_error(copies(case), dict(case.kwargs))


@needs_native
@pytest.mark.parametrize("R", [1, 2, 3, 4, 5, 6, 7, 8, 40])
def test_every_group_size(R: int) -> None:
    case = make_case("", 2 * R, 2, 32, 16, "bf16", "bf16", [(33, TREE), (50, chain(1)), (0, chain(40))])
    check_error(copies(case), dict(case.kwargs))


@needs_native
@pytest.mark.parametrize(
    "options", [{"window": 1}, {"window": 100}, {"softcap": 0.5}, {"softcap": 50.0, "window": 300}]
)
def test_windows_and_soft_caps(options: dict[str, Any]) -> None:
    for kv_layout in ("paged", "tiled"):
        requests = [(700, random_tree(64, 1)), (90, chain(150)), (290, chain(1))]
        case = make_case("", 4, 2, 64, 16, "f32", "f32", requests, kv_layout=kv_layout, **options)
        check_error(copies(case), dict(case.kwargs))


@needs_native
def test_a_thousand_nodes_have_small_errors() -> None:
    case = make_case("", 2, 1, 32, 16, "f32", "bf16", [(60, random_tree(1024, 4, spread=200))])
    check_error(copies(case), dict(case.kwargs))


@needs_native
def test_large_scores_do_not_overflow() -> None:
    (case,) = [c for c in spec.tree_attention.cases() if c.name == "mixed"]
    args = copies(case)
    args[0] *= 1000
    out, lse = native(*args, **case.kwargs)
    assert out.isfinite().all()
    assert lse.isfinite().all()
    check_error(args, dict(case.kwargs))


def test_ancestor_masks() -> None:
    words = ancestor_words(random_tree(100, 3))
    assert words.shape == (100, 4)
    parents, seen = random_tree(100, 3), visible(0, random_tree(100, 3), 0)
    for i in range(100):
        expected, node = set(), i
        while node >= 0:
            expected.add(node)
            node = parents[node]
        assert set(seen[i].nonzero().flatten().tolist()) == expected
    assert torch.equal(
        visible(2, [-1, 0, 0], 2).int(), torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 0, 1]])
    )


@needs_native
def test_a_window_reads_no_page_before_it() -> None:
    args, kwargs = call_args([make_request(100, TREE)], S=4)
    kwargs["window"] = 30
    want = native(*args, **kwargs)
    args[3][:, : (100 - 30 + 1) // 4] = -1  # freed pages
    got = native(*args, **kwargs)
    assert torch.equal(got[0], want[0])
    torch.testing.assert_close(spec.tree_attention.run(*args, **kwargs)[1], want[1])


@needs_native
def test_strided_caches_are_read_in_place_or_copied() -> None:
    for layout in ("paged", "tiled"):
        args, kwargs = call_args([make_request(50, TREE), make_request(7, chain(9))], layout=layout)
        want = native(*args, **kwargs)
        both = torch.stack([args[1], args[2]], 1)  # [P, 2, S, G, D], as some caches lie
        got = native(args[0], both[:, 0], both[:, 1], *args[3:], **kwargs)
        assert torch.equal(got[0], want[0])
        across = args[1].transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.equal(native(args[0], across, *args[2:], **kwargs)[0], want[0])


def edit(i: int, value: Any) -> Any:
    def change(args: list[Any], kwargs: dict[str, Any]) -> None:
        args[i] = value(None if args[i] is None else args[i].clone())

    return change


def put(*pairs: tuple[Any, int]) -> Any:
    def change(tensor: Tensor) -> Tensor:
        for index, number in pairs:
            tensor[index] = number
        return tensor

    return change


def option(**options: Any) -> Any:
    return lambda args, kwargs: kwargs.update(options)


BAD = {
    "q must be [T, H, D] with H a multiple of G=2, got [12, 5, 32]": edit(0, lambda q: q[:, :5]),
    "kv_layout must be paged|tiled, got packed": option(kv_layout="packed"),
    "k_pages must be [P, S, G, D] with S a multiple of 16 and D even in the tiled layout, got [14, 5, 2, 32]": option(kv_layout="tiled"),
    "scale must be finite and > 0, got 0": option(scale=0.0),
    "scale must be finite and > 0, got nan": option(scale=math.nan),
    "scale must be finite and > 0, got inf": option(scale=math.inf),
    "scale must be finite and > 0, got -0.125": option(scale=-0.125),
    "window must be >= 0, got -1": option(window=-1),
    "softcap must be finite and >= 0, got -2.5": option(softcap=-2.5),
    "k_scale must be given exactly when pages are f8|i8, got [14, 5, 2]": edit(7, lambda _: torch.ones(14, 5, 2)),
    "v_scale must be given exactly when pages are f8|i8, got [14, 5, 2]": edit(8, lambda _: torch.ones(14, 5, 2)),
    "cu_t must be 0 at index 0, got 1": edit(5, put((0, 1))),
    "cu_t must be at least 8 (cu_t never decreases) at index 2, got 7": edit(5, put((2, 7))),
    "cu_t must be T=12 at index 3, got 13": edit(5, put((3, 13))),
    "kv_len must be >= 0 at index 1, got -4": edit(4, put((1, -4))),
    "parents must be -1 at index 8 (node 0 of request 1), got 0": edit(6, put((8, 0))),
    "parents must be in [0, 4) at index 4 (node 4 of request 0), got 4": edit(6, put((4, 4))),
    "parents must be in [0, 2) at index 2 (node 2 of request 0), got 7": edit(6, put((2, 7))),
    "parents must be in [0, 1) at index 1 (node 1 of request 0), got -1": edit(6, put((1, -1))),
    "page_table must be [B, W] with W >= 11 for 51 slots of request 2, got W=10": edit(4, put((2, 50))),
    "page_table must be in [0, P=14) at index [0, 2], got 14": edit(3, put(((0, 2), 14))),
    "page_table must be in [0, P=14) at index [2, 8], got -1": edit(3, put(((2, 8), -1))),
}  # fmt: skip


def mixed() -> tuple[list[Any], dict[str, Any]]:
    case = next(iter(spec.tree_attention.cases()))
    return copies(case), dict(case.kwargs)


@pytest.mark.parametrize("message", BAD)
def test_bad_values(message: str) -> None:
    args, kwargs = mixed()
    BAD[message](args, kwargs)
    assert error_of(lambda: spec.tree_attention.run(*args, **kwargs)) == (
        ValueError,
        f"tree_attention: {message}",
    )
    assert error_of(lambda: native(*args, **kwargs)) == (ValueError, f"tree_attention: {message}")


def test_at_most_1024_nodes_unless_a_chain() -> None:
    args, kwargs = call_args([make_request(3, [-1, *[0] * 1024], H=2, G=1, D=16)])
    want = (
        ValueError,
        "tree_attention: parents must be at most 1024 nodes a request unless it is a chain, got 1025 in request 0",
    )
    assert error_of(lambda: spec.tree_attention.run(*args, **kwargs)) == want
    assert error_of(lambda: native(*args, **kwargs)) == want
    args, kwargs = call_args([make_request(3, chain(1025), H=2, G=1, D=16)])
    torch.testing.assert_close(native(*args, **kwargs)[1], spec.tree_attention.run(*args, **kwargs)[1])


@needs_native
@pytest.mark.parametrize("D", [8, 24, 272])
def test_head_dims_that_the_cpu_cannot_do_are_refused_and_specified(D: int) -> None:
    case = make_case("", 2, 1, D, 4, "f32", "f32", [(3, chain(2))])
    with pytest.raises(
        ValueError, match=r"q must be \[T, H, D\] with D a multiple of 16 up to 256 on the CPU, got \[2, 2"
    ):
        pyspec.ops.tree_attention(*case.args, **case.kwargs)
    with pytest.raises(pyspec.UnsupportedError, match=f"cpu: D must be a multiple of 16 up to 256, got {D}"):
        pyspec.ops.tree_attention(*case.args, **case.kwargs, backend="cpu")
    assert pyspec.ops.tree_attention(*case.args, **case.kwargs, backend="spec")[0].isfinite().all()


@needs_native
def test_requests_without_nodes() -> None:
    tree, idle = make_request(20, TREE), make_request(30, [])
    (want,) = attend([tree])
    got = attend([idle, tree, idle])
    assert [len(rows) for rows in got] == [0, 8, 0]
    assert torch.equal(got[1], want)


@needs_native
def test_the_arguments_are_left_alone() -> None:
    args, kwargs = mixed()
    before = copies(Case("", tuple(args)))
    native(*args, **kwargs)
    for a, b in zip(args, before, strict=True):
        assert a is b is None or torch.equal(a, b)


def quantised(dtype: str, **options: Any) -> Case:
    return make_case("", 4, 2, 32, 5, "f32", dtype, [(11, TREE), (4, chain(3))], **options)


@pytest.mark.parametrize("dtype", ["f8", "i8"])
def test_quantised_pages_are_their_values_times_scales(dtype: str) -> None:
    case = quantised(dtype)
    args = copies(case)
    want = spec.tree_attention.run(*args, **case.kwargs)
    for pages, scale in ((1, 7), (2, 8)):
        args[pages], args[scale] = args[pages].float() * args[scale][..., None], None
    got = spec.tree_attention.run(*args, **case.kwargs)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_sink_is_one_more_score_without_a_value() -> None:
    case = make_case("", 4, 2, 32, 5, "f32", "f32", [(11, TREE)])
    out, lse = spec.tree_attention.run(*case.args, **case.kwargs)
    sinks = torch.tensor([-1.0, 0.5, 3.0, -torch.inf])
    got, got_lse = spec.tree_attention.run(*case.args[:9], sinks, **case.kwargs)
    torch.testing.assert_close(got_lse, torch.logaddexp(lse, sinks.expand_as(lse)))
    torch.testing.assert_close(got, out * (lse - got_lse).exp()[..., None])


@needs_native
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (quantised("f8"), TypeError, "k_pages must be f32|bf16|f16|i8 on the CPU, got f8"),
        (make_case("", 4, 2, 32, 5, "f32", "f32", [(3, TREE)], sinks=True), ValueError, "sinks must be None on the CPU, got [4]"),
    ],
)  # fmt: skip
def test_what_the_cpu_cannot_do_is_refused(call: Case, error: type, message: str) -> None:
    assert error_of(lambda: native(*call.args, **call.kwargs)) == (error, f"tree_attention: {message}")
    with pytest.raises(pyspec.UnsupportedError, match="cpu: (k_pages|sinks) must be"):
        pyspec.ops.tree_attention(*call.args, **call.kwargs, backend="cpu")


@pytest.mark.parametrize(("i", "name"), [(7, "k_scale"), (8, "v_scale")])
def test_quantised_pages_have_scales_of_their_shape_and_the_paged_layout(i: int, name: str) -> None:
    case = quantised("i8")
    shape = list(case.args[i].shape)
    calls = {
        f"{name} must be [P, S, G] with G=2 (from k_pages.size(2)), got {shape[:2] + [1]}": case.args[i][
            ..., :1
        ],
        f"{name} must be given exactly when pages are f8|i8, got None": None,
    }
    for message, value in calls.items():
        args = copies(case)
        args[i] = value
        for run in (spec.tree_attention.run, native):
            assert error_of(lambda: run(*args, **case.kwargs)) == (ValueError, f"tree_attention: {message}")  # noqa: B023
    case = make_case("", 4, 2, 32, 16, "f32", "f8", [(3, TREE)])
    want = (ValueError, "tree_attention: kv_layout must be paged when pages are f8, got tiled")
    for run in (spec.tree_attention.run, native):
        assert error_of(lambda: run(*case.args, **{**case.kwargs, "kv_layout": "tiled"})) == want  # noqa: B023
