# SPDX-License-Identifier: Apache-2.0
"""tree_attention: the bits of a row depend on its query and the keys it sees alone. Unwritten slots hold NaN in every test."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from attention_batches import DTYPES, Request, attend, call_args, chain, equal, make_request, random_tree
from contract_tests import copies, needs_native

from pyspec import backends, spec

pytestmark = needs_native
OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"window": 21}, id="window"),
    pytest.param({"window": 3}, id="short-window"),
    pytest.param({"softcap": 5.0}, id="softcap"),
]
LAYOUTS = [
    (1, "paged"),
    (3, "paged"),
    (16, "paged"),
    (48, "paged"),
    (16, "tiled"),
    (48, "tiled"),
    (512, "tiled"),
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("L", [0, 5, 16, 250])
def test_node_of_a_tree_equals_its_path_as_chain_and_as_plain_decode(
    L: int, dtype: str, options: dict[str, Any]
) -> None:
    tree = make_request(L, random_tree(40, seed=L), dtype=dtype)
    (whole,) = attend([tree], layout="tiled", **options)
    for node in range(0, 40, 3):
        path = tree.path(node)
        (as_chain,) = attend([tree.select(path)], layout="tiled", **options)
        (as_decode,) = attend([tree.select(path, committed=len(path) - 1)], layout="tiled", **options)
        assert equal(as_chain, whole[path])
        assert equal(as_decode[0], whole[node])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layout", ["paged", "tiled"])
def test_prefill_in_any_chunks_equals_plain_decode(layout: str, options: dict[str, Any]) -> None:
    prompt = make_request(0, chain(300), H=3, G=1)
    (whole,) = attend([prompt], layout=layout, **options)
    nodes = list(range(300))
    for cuts in ([0, 1, 2, 300], [0, 17, 33, 256, 300], [0, 255, 257, 299, 300], [0, 100, 200, 300]):
        for begin, end in zip(cuts, cuts[1:], strict=False):
            (part,) = attend([prompt.select(nodes[:end], committed=begin)], layout=layout, **options)
            assert equal(part, whole[begin:end])
    for i in (0, 15, 16, 31, 255, 256, 299):
        (one,) = attend([prompt.select(nodes[: i + 1], committed=i)], layout=layout, **options)
        assert equal(one[0], whole[i])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_page_size_placement_and_layout_change_nothing(dtype: str, options: dict[str, Any]) -> None:
    batch = [make_request(70, random_tree(37, 1), dtype=dtype), make_request(9, chain(25), dtype=dtype)]
    want = torch.cat(attend(batch, **options))
    for seed, (S, layout) in enumerate(LAYOUTS):
        assert equal(torch.cat(attend(batch, S=S, layout=layout, seed=seed, **options)), want), (S, layout)


@pytest.mark.parametrize("dtype", ["bf16", "i8"])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_ragged_batch_equals_its_requests_one_by_one(options: dict[str, Any], dtype: str) -> None:
    batch = [
        make_request(L, parents, seed=i, dtype=dtype)
        for i, (L, parents) in enumerate(
            [
                (600, [-1]),
                (3, random_tree(64, 3)),
                (0, chain(40)),
                (257, []),
                (255, random_tree(9, 4, 2)),
                (16, [-1, 0]),
            ]
        )
    ]
    for request, together in zip(batch, attend(batch, layout="tiled", **options), strict=True):
        if request.parents:
            assert equal(together, attend([request], layout="tiled", **options)[0])


@pytest.mark.parametrize("options", OPTIONS)
def test_siblings_and_other_branches_change_nothing(options: dict[str, Any]) -> None:
    tree = make_request(37, random_tree(50, 5, spread=12))
    (want,) = attend([tree], layout="tiled", **options)
    for seed in range(3):  # any order that keeps parents before children
        g = torch.Generator().manual_seed(seed)
        order, ready = [], [0]
        while ready:
            node = ready.pop(int(torch.randint(len(ready), (), generator=g)))
            order.append(node)
            ready += [i for i, parent in enumerate(tree.parents) if parent == node]
        (got,) = attend([tree.reordered(order)], layout="tiled", **options)
        assert equal(got, want[order])
    for node in (1, 20, 49):  # even NaN in every other branch
        path = tree.path(node)
        others = [i for i in range(50) if i not in path]
        for layout in ("paged", "tiled"):
            (got,) = attend([tree.with_nan(others)], layout=layout, **options)
            assert equal(got[path], want[path])


@pytest.mark.parametrize("dtype", ["bf16", "i8"])
@pytest.mark.parametrize("options", OPTIONS)
def test_later_nodes_of_a_chain_change_nothing(options: dict[str, Any], dtype: str) -> None:
    prompt = make_request(7, chain(60), dtype=dtype)
    (want,) = attend([prompt], **options)
    (got,) = attend([prompt.with_nan(list(range(33, 60)))], **options)
    assert equal(got[:33], want[:33])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("S", "layout"), [(16, "tiled"), (32, "tiled"), (3, "paged")])
def test_after_commit_the_next_step_equals_the_chain(S: int, layout: str, dtype: str) -> None:
    tree = make_request(29, random_tree(30, 8), dtype=dtype)
    path = max((tree.path(i) for i in range(30)), key=len)
    args, kwargs = call_args([tree], S, layout)
    _, k_pages, v_pages, table, kv_len, _, _, *scales = args
    torch.ops.pyspec.commit_kv(
        k_pages, v_pages, table, kv_len, torch.tensor([path], dtype=torch.int32),
        torch.tensor([len(path)], dtype=torch.int32), *scales[:2], kv_layout=layout,
    )  # fmt: skip
    last = len(path) - 1  # its KV is now the last committed: ask again for this node as plain decode
    out, lse = torch.ops.pyspec.tree_attention(
        tree.q[path[last]][None], k_pages, v_pages, table, kv_len + last, torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([-1], dtype=torch.int32), *scales, **kwargs,
    )  # fmt: skip
    (want,) = attend([tree], S, layout)
    assert equal(torch.cat([out.float(), lse[..., None]], -1)[0], want[path[last]])


@pytest.mark.parametrize("layout", ["paged", "tiled"])
@pytest.mark.parametrize("parents", [[-1], chain(30), random_tree(60, 2)], ids=["decode", "chain", "tree"])
def test_threads_and_splits_change_nothing(parents: list[int], layout: str) -> None:
    batch = [make_request(L, parents, H=9, G=3, D=64, seed=L) for L in (3000, 100)]
    threads = backends.native.num_threads()
    results = []
    try:
        for count in (1, 2, 3, 8):
            backends.native.set_num_threads(count)
            results += [torch.cat(attend(batch, layout=layout)) for _ in range(3)]
    finally:
        backends.native.set_num_threads(threads)
    assert all(equal(result, results[0]) for result in results[1:])


def test_a_thousand_nodes() -> None:
    tree = make_request(100, random_tree(1024, 9, spread=300), H=2, G=1, D=16)
    deep = make_request(100, random_tree(1024, 9, spread=2), H=2, G=1, D=16)
    for request in (tree, deep):
        (whole,) = attend([request], layout="tiled")
        for node in (0, 511, 1023):
            path = request.path(node)
            assert equal(attend([request.select(path)], layout="tiled")[0], whole[path])


def digest() -> str:
    """Of every case's result on this process's instruction set."""
    results = hashlib.sha256()
    for name in ("tree_attention", "append_kv", "rope"):
        op = getattr(spec, name)
        limit = op.limits.get("cpu", lambda *_, **__: None)
        for case in op.cases():
            if limit(op.bind(case.args), *case.args, **case.kwargs):
                continue
            args = copies(case)
            got = getattr(torch.ops.pyspec, name)(*args, **case.kwargs)
            written = [got] if isinstance(got, torch.Tensor) else list(got or args[2:4] + args[7:9])
            for tensor in (tensor for tensor in written if tensor is not None):
                results.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return results.hexdigest()


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "avx512_bf16", "neon"])
def test_every_instruction_set_gives_the_same_bits(isa: str) -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    code = f"import sys; sys.path[:0] = [{here!r}]; import test_tree_attention_bits as t; print(t.digest())"
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYSPEC_ISA": isa}, capture_output=True, text=True)  # fmt: skip
    if "PYSPEC_ISA: value must be" in run.stderr:
        pytest.skip(f"this machine does not have {isa}")
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == digest()


def test_the_tests_can_fail() -> None:
    """Negative control: one key changed by one bit is seen by every row that sees it, and by no other."""
    tree = make_request(20, [-1, 0, 0, 1], dtype="f32")
    k = tree.k.clone()
    k[22] *= 1 + 2.0**-20  # node 2: a leaf
    (want,), (got,) = attend([tree]), attend([Request(tree.q, k, tree.v, tree.parents)])
    changed = [i for i in range(4) if not equal(got[i], want[i])]
    assert changed == [2]
