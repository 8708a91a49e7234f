# SPDX-License-Identifier: Apache-2.0
"""CUDA tree_attention: errors against float64 by the low-precision rule, every order of threads, refusals, planted bugs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_batches import call_args, chain, make_request, random_tree
from contract_tests import copies, error_of
from cuda_emulator import build, emulator
from emulated_calls import is_the_same_strided
from tree_attention_checks import TREE, attend, attend_requests, check_error, same_bits

import pyspec
from pyspec import spec
from pyspec.contract import Case
from pyspec.spec.tree_attention import cuda_limit, make_case

MIXED = [(40, TREE), (7, chain(3)), (600, chain(1))]  # the last one has two spans
CASES = [
    case
    for case in spec.tree_attention.cases()
    if not cuda_limit(spec.tree_attention.bind(case.args), *case.args, **case.kwargs)
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_shared_cases(case: Case) -> None:
    check_error(case)


@pytest.mark.parametrize("kv_dtype", ["bf16", "f16", "f8", "i8"])
@pytest.mark.parametrize("q_dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("D", [64, 96, 128, 256])
def test_head_dims_and_dtypes(D: int, q_dtype: str, kv_dtype: str) -> None:
    check_error(make_case("", 6, 2, D, 5, q_dtype, kv_dtype, MIXED))


@pytest.mark.parametrize("R", [1, 2, 5, 8, 17, 40])
def test_group_sizes(R: int) -> None:
    check_error(make_case("", 2 * R, 2, 64, 16, "bf16", "bf16", [(33, TREE), (50, chain(1)), (0, chain(40))]))


@pytest.mark.parametrize("S", [1, 3, 16, 48, 256])
def test_page_sizes(S: int) -> None:
    check_error(make_case("", 6, 2, 128, S, "f32", "bf16", MIXED))


@pytest.mark.parametrize(
    "options",
    [
        {"window": 1}, {"window": 4}, {"window": 100}, {"window": 530}, {"softcap": 0.5}, {"sinks": True},
        {"softcap": 50.0, "window": 300, "sinks": True},
    ],
)  # fmt: skip
def test_windows_soft_caps_and_sinks(options: dict[str, Any]) -> None:
    requests = [(700, random_tree(64, 1)), (90, chain(150)), (1290, chain(1))]
    check_error(make_case("", 4, 2, 64, 16, "f32", "bf16", requests, **options))


def test_a_thousand_nodes() -> None:
    check_error(make_case("", 2, 1, 64, 16, "f32", "bf16", [(60, random_tree(1024, 4, spread=200))]))


def test_a_long_chain_needs_no_mask() -> None:
    check_error(make_case("", 2, 1, 64, 16, "bf16", "bf16", [(5, chain(1200))]))


def test_large_scores_do_not_overflow() -> None:
    case = make_case("", 6, 2, 64, 16, "bf16", "bf16", MIXED)
    args = copies(case)
    args[0] *= 1000
    assert all(x.isfinite().all() for x in attend(Case("", tuple(args), case.kwargs)))
    check_error(Case("", tuple(args), case.kwargs))


SMALL = {
    "split": make_case("", 6, 2, 64, 5, "f32", "bf16", [(1040, TREE), (600, chain(3))]),
    "window": make_case("", 6, 2, 128, 5, "bf16", "f16", [(40, TREE), (7, chain(30))], window=3, seed=1),
    "int8": make_case("", 24, 2, 64, 5, "f32", "i8", [(100, chain(20))]),
}


@pytest.mark.parametrize("copies", emulator.COPIES)
@pytest.mark.parametrize("order", emulator.ORDERS)
def test_order_of_threads_and_copies(order: str, copies: str) -> None:
    for case in SMALL.values():
        want = attend(case)
        with emulator.schedule(order=order, copies=copies, seed=3):
            got = attend(case, checked=True)
        assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))


def test_strided_tensors() -> None:
    assert is_the_same_strided("tree_attention", SMALL["split"])
    args, kwargs = call_args([make_request(50, TREE, D=64), make_request(7, chain(9), D=64)])
    want = emulator.call("tree_attention", *args, **kwargs)
    both = torch.stack([args[1], args[2]], 1)  # [P, 2, S, G, D], as some caches lie: read in place
    across = args[1].transpose(1, 2).contiguous().transpose(1, 2)
    for k, v in ((both[:, 0], both[:, 1]), (across, args[2])):
        got = emulator.call("tree_attention", args[0], k, v, *args[3:], **kwargs)
        assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))


def test_nothing_at_all() -> None:
    for requests in ([], [(9, []), (3, [])]):
        out, lse = attend(make_case("", 4, 2, 64, 4, "f32", "bf16", requests))
        assert out.shape == (0, 4, 64)
        assert lse.shape == (0, 4)
    tree, idle = make_request(20, TREE, D=64), make_request(30, [], D=64)
    (want,) = attend_requests([tree])
    got = attend_requests([idle, tree, idle])
    assert [len(rows) for rows in got] == [0, 8, 0]
    assert same_bits(got[1], want)


def test_a_window_reads_no_page_before_it() -> None:
    args, kwargs = call_args([make_request(100, TREE, D=64)], S=4)
    kwargs["window"] = 30
    want = emulator.call("tree_attention", *args, **kwargs)
    args[3][:, : (100 - 30 + 1) // 4] = -1  # freed pages
    assert torch.equal(emulator.call("tree_attention", *args, **kwargs)[0], want[0])


def test_unchecked_cycles_of_parents_end() -> None:
    args = copies(make_case("", 2, 1, 64, 16, "bf16", "bf16", [(3, TREE)]))
    args[6][3:6] = torch.tensor([5, 3, 4], dtype=torch.int32)
    out, _ = emulator.call("tree_attention", *args, scale=0.125)
    assert out.isfinite().all()


REFUSED = {
    "q must be [T, H, D] with D one of 64|96|128|256 on GPUs, got [2, 2, 80]": (
        ValueError, make_case("", 2, 1, 80, 4, "f32", "bf16", [(3, chain(2))]),
    ),
    "k_pages must be bf16|f16|f8|i8 on GPUs, got f32": (
        TypeError, make_case("", 2, 1, 64, 4, "f32", "f32", [(3, chain(2))]),
    ),
    "kv_layout must be paged on GPUs, got tiled": (
        ValueError, make_case("", 2, 1, 64, 16, "f32", "bf16", [(3, chain(2))], kv_layout="tiled"),
    ),
    "k_pages must be [P, S, G, D] with S <= 256 and P <= 2^23 on GPUs, got [2, 257, 1, 64]": (
        ValueError, make_case("", 2, 1, 64, 257, "f32", "bf16", [(3, chain(2))]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_the_kernel_cannot_do_is_refused(message: str) -> None:
    error, case = REFUSED[message]
    call = lambda: emulator.call("tree_attention", *case.args, **case.kwargs)
    assert error_of(call) == (error, f"tree_attention: {message}")
    sizes = spec.tree_attention.bind(case.args)
    assert cuda_limit(sizes, *case.args, **case.kwargs)
    with pytest.raises(pyspec.UnsupportedError):
        pyspec.ops.tree_attention(*case.args, **case.kwargs, backend="cuda")


def unseen_nan_case() -> Case:
    """Node 7 is nobody's ancestor, and NaN in everything."""
    args, kwargs = call_args([make_request(40, TREE, D=64).with_nan([7])])
    return Case("", tuple(args), kwargs)


def how_caught(bug: int) -> set[str]:
    """Kinds of findings of the checker, or "result" where rows that are not NaN differ."""
    found: set[str] = set()
    for case in (*SMALL.values(), unseen_nan_case()):
        want = attend(case)
        try:
            got = attend(case, bug=bug, checked=True)
        except emulator.EmulatorError as error:
            found |= error.kinds
        else:
            for a, b in zip(got, want, strict=True):
                found |= set() if torch.equal(a[~b.isnan()], b[~b.isnan()]) else {"result"}
    return found


BUGS = {
    1: "cp.async", 2: "race", 3: "result", 4: "result", 5: "race", 6: "result", 7: "result", 8: "result", 9: "result",
    10: "result",
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: int) -> None:
    assert BUGS[bug] in how_caught(bug)


def test_unseen_nan_case_is_clean() -> None:
    out, lse = attend(unseen_nan_case(), checked=True)
    assert out[:7].isfinite().all()
    assert lse[:7].isfinite().all()
    assert out[7].isnan().all()


CONFIGS = """
#include <cstdio>
#include <initializer_list>
#include "cuda/tree_attention_config.h"
int main() {
  using namespace pyspec;
  TreeAttentionCudaParams p{};
  p.T = p.B = p.G = 1, p.S = 16, p.W = 512;
  p.block_shared_bytes = 232448, p.sm_shared_bytes = 233472;
  p.q_dtype = p.kv_dtype = DType::kBF16;
  for (int num_sms : {1, 132})
    for (int D : {64, 96, 128, 256})
      for (int rows : {1, 3, 16, 17, 64, 65, 192, 256, 300, 512, 4096}) {
        p.num_sms = num_sms, p.D = D, p.H = rows;
        const TreeAttentionConfig c = attention::pick_config(p);
        std::printf("%d %d %d %d %d %d %d\\n", num_sms, D, rows, c.tile_rows, c.warps, c.shared_bytes,
                    c.blocks_at_once / num_sms);
      }
}
"""


def test_launch_choice(tmp_path: Path) -> None:
    source, program = tmp_path / "configs.cpp", tmp_path / "configs"
    source.write_text(CONFIGS)
    includes = [f"-I{build.ROOT / 'csrc'}", f"-I{build.ROOT / 'csrc/include'}"]
    subprocess.run([build.CXX, "-std=c++20", *includes, str(source), "-o", str(program)], check=True)
    lines = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.splitlines()
    chosen = {tuple(line[:3]): line[3:] for line in ([int(x) for x in line.split()] for line in lines)}
    for (_, _, rows), (tile_rows, _, shared_bytes, _) in chosen.items():
        tiles = -(-rows // tile_rows)
        assert shared_bytes <= 232448
        assert tiles * tile_rows - rows < 32 * tiles  # little padding
    assert chosen[1, 64, 3][:2] == [16, 1]  # plain decode: one warp a block
    assert chosen[1, 64, 3][3] >= 5  # and several of them
    assert chosen[1, 64, 512][:2] == [512, 16]
    assert chosen[1, 128, 256][:2] == [256, 16]
    assert chosen[1, 64, 4096][0] == 512
    assert (
        chosen[132, 64, 512][0] == 128
    )  # tiles of one KV head do not fill 132 multiprocessors: smaller ones
    assert chosen[132, 64, 4096][0] == 128
    assert chosen[132, 64, 64][0] == 64
