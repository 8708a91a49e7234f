# SPDX-License-Identifier: Apache-2.0
"""FeatureRows: rows of features that wait until a draft's model reads them, in memory that grows."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Features: TypeAlias = "Tensor | NDArray[np.float32]"  # f32 [n, columns]; an array: of the host


class FeatureRows:
    """A queue of rows of equal length. Those of the host are copied by numpy: torch takes ten times as long for one row."""

    def __init__(self) -> None:
        self._rows: Tensor | None = None
        self._array: NDArray | None = None  # the same memory, where it is the host's
        self._begin = self._end = 0

    def __len__(self) -> int:
        return self._end - self._begin

    def append(self, rows: Features) -> None:
        """Copy rows behind those that wait."""
        end = self._end + len(rows)
        if self._rows is None or end > len(self._rows):
            self._grow(rows)
            end = self._end + len(rows)
        if self._array is not None:
            self._array[self._end : end] = rows if isinstance(rows, np.ndarray) else rows.numpy()
        elif self._rows is not None and isinstance(rows, Tensor):
            self._rows[self._end : end] = rows
        self._end = end

    def first(self, count: int) -> Tensor:
        """The oldest rows, valid until the next call of `append`."""
        assert self._rows is not None, "no row was ever there"
        return self._rows[self._begin : self._begin + count]

    def drop(self, count: int) -> None:
        """Forget the oldest rows."""
        self._begin += count
        if self._begin == self._end:
            self._begin = self._end = 0

    def _grow(self, rows: Features) -> None:
        """Room for `rows` behind those that wait, which move to the beginning."""
        waiting, like = len(self), torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows
        grown = like.new_empty(max(64, 2 * waiting, waiting + len(rows)), rows.shape[1])
        if waiting:
            grown[:waiting] = self.first(waiting)
        self._rows, self._begin, self._end = grown, 0, waiting
        self._array = grown.numpy() if grown.device.type == "cpu" else None
