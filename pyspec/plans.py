# SPDX-License-Identifier: Apache-2.0
"""Plans: what can be decided once a step is decided once, and the op then runs for every layer without checking values again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyspec import backends, spec
from pyspec.contract import DTYPE_NAMES, DTYPES, LIBRARY
from pyspec.errors import UnsupportedError
from pyspec.spec.tree_attention import QUANTISED

__all__ = ["TreeAttentionPlan", "plan_tree_attention"]

# The two halves of tree_attention on CUDA: the plan fills a workspace, which every run of the step uses. Both are told how many
# nodes a typical request has (0: T / B), by which rows are tiled; it changes no bit.
SCHEMAS = {
    "tree_attention_plan": (
        "tree_attention_plan(Tensor page_table, Tensor kv_len, Tensor cu_t, Tensor parents, *, int[] q_shape, int[] pages_shape, "
        "ScalarType q_dtype, ScalarType kv_dtype, int window=0, int node_count=0) -> Tensor"
    ),
    "tree_attention_run": (
        "tree_attention_run(Tensor q, Tensor k_pages, Tensor v_pages, Tensor page_table, Tensor kv_len, Tensor cu_t, "
        "Tensor parents, Tensor? k_scale, Tensor? v_scale, Tensor? sinks, Tensor(a!) workspace, *, float scale, int window=0, "
        'float softcap=0.0, str kv_layout="paged", int node_count=0) -> (Tensor, Tensor)'
    ),
}
WITH_WORKSPACE = ("cuda", "cuda-emulated")  # backends that have these halves; elsewhere a run is the op
INPUTS = ("q", "k_pages", "v_pages", "k_scale", "v_scale", "sinks")


@dataclass(frozen=True, eq=False)
class TreeAttentionPlan:
    """tree_attention for one batch of trees, made by `plan_tree_attention`.

    It holds the page table, lengths, offsets and parents, whose values are checked: do not change them afterwards. `run` compares
    shapes, dtypes and the device of its tensors with the plan's and asks nothing else, so it waits for no device and may be
    captured in a CUDA graph.
    """

    backend: str
    device: torch.device
    shapes: dict[str, tuple[int, ...]]  # of the tensors that `run` takes
    dtypes: dict[str, torch.dtype]
    indices: tuple[Tensor, Tensor, Tensor, Tensor] = field(repr=False)  # page_table, kv_len, cu_t, parents
    options: dict[str, Any]
    workspace: Tensor | None = field(repr=False)

    def run(
        self,
        q: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """out [T, H, D] like q and lse [T, H] f32: see pyspec.ops.tree_attention.

        Raises ValueError or TypeError for a tensor that is not what the plan was made for.
        """
        for name, tensor in zip(INPUTS, (q, k_pages, v_pages, k_scale, v_scale, sinks), strict=True):
            self._compare(name, tensor)
        return attend(
            self.backend, self.workspace, q, k_pages, v_pages, *self.indices, k_scale, v_scale, sinks, **self.options
        )  # fmt: skip

    def _compare(self, name: str, tensor: Tensor | None) -> None:
        shape = self.shapes.get(name)
        if tensor is None or shape is None:
            if tensor is not None or shape is not None:
                rule, got = (
                    ("None", list(tensor.shape)) if tensor is not None else (f"{list(shape or ())}", None)
                )
                raise ValueError(f"tree_attention: {name} must be {rule} as in the plan, got {got}")
            return
        if tuple(tensor.shape) != shape:
            got = list(tensor.shape)
            raise ValueError(f"tree_attention: {name} must be {list(shape)} as in the plan, got {got}")
        if tensor.dtype != self.dtypes[name]:
            want, found = (DTYPE_NAMES.get(dtype, str(dtype)) for dtype in (self.dtypes[name], tensor.dtype))
            raise TypeError(f"tree_attention: {name} must be {want} as in the plan, got {found}")
        if tensor.device != self.device:
            raise ValueError(
                f"tree_attention: {name} must be on {self.device} as the plan, got {tensor.device}"
            )


def plan_tree_attention(
    q_shape: Sequence[int],
    pages_shape: Sequence[int],
    page_table: Tensor,
    kv_len: Tensor,
    cu_t: Tensor,
    parents: Tensor,
    *,
    q_dtype: torch.dtype,
    kv_dtype: torch.dtype,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: bool = False,
    kv_layout: str = "paged",
    backend: str | None = None,
) -> TreeAttentionPlan:
    """Check a batch of trees once for many runs of tree_attention on tensors of these shapes.

    q_shape [T, H, D], pages_shape [P, S, G, D]; the other arguments are those of pyspec.ops.tree_attention, and pages of f8|i8 have
    scales [P, S, G]. `sinks` says whether runs have them. Raises ValueError, TypeError or UnsupportedError (with every backend's
    reason) before anything runs. On CUDA tensors it waits for the device once.
    """
    like = lambda shape, dtype: page_table.new_empty((), dtype=dtype).expand(
        tuple(shape)
    )  # a shape without memory
    pages = like(pages_shape, kv_dtype)
    kv_scale = like(tuple(pages_shape)[:3], DTYPES["f32"]) if kv_dtype in QUANTISED else None
    sink = like(tuple(q_shape)[1:2], DTYPES["f32"]) if sinks else None
    indices = (page_table, kv_len, cu_t, parents)
    args = (like(q_shape, q_dtype), pages, pages, *indices, kv_scale, kv_scale, sink)
    options = {"scale": scale, "window": window, "softcap": softcap, "kv_layout": kv_layout}
    op = spec.tree_attention
    sizes = op.bind(args, options)
    backends.check_values(op, sizes, args, options)
    explanation = backends.explain(op.name, *args, **options)
    chosen = explanation.chosen if backend is None else backend
    if not any(option.backend == chosen and not option.reason for option in explanation.options):
        raise UnsupportedError(f"{op.name}: backend {chosen!r} cannot run this plan\n{explanation}")
    workspace = None
    if chosen in WITH_WORKSPACE:
        workspace = make_workspace(chosen, indices, q_shape, pages_shape, q_dtype, kv_dtype, window)
    taken = {
        name: tensor
        for name, tensor in zip(INPUTS, (args[0], pages, pages, kv_scale, kv_scale, sink), strict=True)
        if tensor is not None
    }
    return TreeAttentionPlan(
        chosen, page_table.device, {name: tuple(tensor.shape) for name, tensor in taken.items()},
        {name: tensor.dtype for name, tensor in taken.items()}, indices, options, workspace,
    )  # fmt: skip


def make_workspace(
    backend: str,
    indices: Sequence[Tensor],
    q_shape: Sequence[int],
    pages_shape: Sequence[int],
    q_dtype: torch.dtype,
    kv_dtype: torch.dtype,
    window: int,
    node_count: int = 0,
) -> Tensor:
    """The workspace of every run on these indices (page_table, kv_len, cu_t, parents) with this window; values unchecked."""
    return backends.kernel("tree_attention_plan", backend)(
        *indices,
        q_shape=list(q_shape),
        pages_shape=list(pages_shape),
        q_dtype=q_dtype,
        kv_dtype=kv_dtype,
        window=window,
        node_count=node_count,
    )


def attend(
    backend: str, workspace: Tensor | None, *args: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """tree_attention unchecked, in a plan's workspace if there is one."""
    if workspace is None:
        return backends.kernel("tree_attention", backend)(*args, **options)
    return backends.kernel("tree_attention_run", backend)(*args, workspace, **options)


def _fake_run(q: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


def _fake_plan(page_table: Tensor, *args: Any, **options: Any) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()
    return page_table.new_empty(size, dtype=torch.uint8)


for _name, _fake in (("tree_attention_plan", _fake_plan), ("tree_attention_run", _fake_run)):
    LIBRARY.define(SCHEMAS[_name])
    torch.library.register_fake(f"pyspec::{_name}", _fake, lib=LIBRARY)
