# SPDX-License-Identifier: Apache-2.0
"""tree_attention of avx512_bf16 with VDPBF16PS as two FMAs, which needs AVX-512 alone: the bits of the generic kernel and of the
one that runs here."""

from __future__ import annotations

import ctypes
from pathlib import Path

import amx_library
import pytest
import torch
from torch import Tensor

from pyspec import ops

WHY_NOT = amx_library.why_not() or (
    "" if "avx512vnni" in amx_library.native.cpu_features().split() else "this CPU has no AVX-512 VNNI"
)
pytestmark = pytest.mark.skipif(WHY_NOT != "", reason=WHY_NOT or "-")
H, G, D, S = 6, 2, 80, 32
FILES = ("bf16_check", "isa", "thread_pool", "tree_attention_plan")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(compiled(tmp_path_factory.mktemp("twin"))))


def compiled(folder: Path) -> Path:
    """Both kernels; the generic one gets a target that every x86-64 has, which leaves the choice of a set out."""
    setup = amx_library._setup()
    (folder / "twin.cpp").write_text(
        setup.unit_text("tree_attention", "avx512_bf16", setup.X86_TARGETS["avx512"], "avx512")
    )
    (folder / "plain.cpp").write_text(setup.unit_text("tree_attention", "generic", "sse2"))
    root, library = amx_library.ROOT, folder / "twin.so"
    files = [folder / "twin.cpp", folder / "plain.cpp", Path(__file__).with_name("attention.cpp")]
    files += [root / "csrc/cpu" / f"{name}.cpp" for name in FILES]
    includes = [f"-I{root / 'csrc'}", f"-I{root / 'csrc/include'}"]
    amx_library._run(
        [amx_library.CXX, *amx_library.FLAGS, "-DPYSPEC_BF16_TWIN", *includes, "-shared", *map(str, files), "-o", str(library)]
    )  # fmt: skip
    return library


@pytest.mark.parametrize("tiled", [False, True], ids=["paged", "tiled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=["bf16", "i8"])
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (40, 20.0)])
def test_twin_has_equal_bits(twin: ctypes.CDLL, dtype: torch.dtype, tiled: bool, window: int, softcap: float) -> None:  # fmt: skip
    """A tree and a chain behind texts of several chunks, counts that fill no block."""
    g = torch.Generator().manual_seed(window)
    nodes, lengths, W = (13, 37), (300, 521), 18
    parents = torch.tensor([-1, *(i // 2 for i in range(12)), *range(-1, 36)], dtype=torch.int32)
    cu_t = torch.tensor([0, 13, 50], dtype=torch.int32)
    kv_len = torch.tensor(lengths, dtype=torch.int32)
    table = torch.randperm(2 * W, generator=g).to(torch.int32).view(2, W)
    q = torch.randn(sum(nodes), H, D, generator=g) * 2
    pages, scales = torch.randn(2, 2 * W, S, G, D, generator=g), (None, None)
    if dtype == torch.int8:
        pages = torch.randint(-127, 128, pages.shape, generator=g)
        scales = tuple(torch.rand(2, 2 * W, S, G, generator=g) / 50)
    k, v = pages.to(dtype)
    if tiled:
        k, v = ops.tile_kv(k, v)
    address = lambda tensor: None if tensor is None else ctypes.c_void_p(tensor.data_ptr())
    sizes = torch.tensor([2, sum(nodes), H, G, D, S, W])

    def run(software: bool) -> tuple[Tensor, Tensor]:
        out, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:2], torch.nan)
        tensors = map(address, (q, k, v, *scales, table, kv_len, cu_t, parents, out, lse, sizes))
        twin.attention(
            ctypes.c_bool(software), *tensors,
            ctypes.c_bool(tiled), ctypes.c_int64(window), ctypes.c_float(softcap),
        )  # fmt: skip
        return out, lse

    got, want = run(True), run(False)
    here = ops.tree_attention(
        q, k, v, table, kv_len, cu_t, parents, k_scale=scales[0], v_scale=scales[1], scale=0.25,
        window=window, softcap=softcap, kv_layout="tiled" if tiled else "paged",
    )  # fmt: skip
    for a, b, c in zip(got, want, here, strict=True):
        assert not a.isnan().any()
        assert torch.equal(a, b)
        assert torch.equal(a, c)
