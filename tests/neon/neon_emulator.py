# SPDX-License-Identifier: Apache-2.0
"""Calls ops on the NEON kernels: tests/neon/runner.cpp under qemu-user, with the arguments and results of the torch ops."""

from __future__ import annotations

import os
import struct
import subprocess
from typing import Any

import cross_build
import torch
from torch import Tensor

from pyspec.contract import DTYPES, OPS

TYPES = list(DTYPES.values())  # by the numbers of the stand-in's ScalarType
SETS = {
    "neon": "cortex-a53",
    "neon_dotprod": "neoverse-n1",
    "neon_i8mm": "max",
}  # and a machine whose best it is
ERRORS = {1: ValueError, 2: TypeError, 3: RuntimeError}


class Emulator:
    """One process under qemu-user. `isa`: the instruction set that is forced, or none; `cpu`: the machine that qemu shows."""

    def __init__(self, isa: str | None = None, cpu: str = "max", threads: int = 2) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYSPEC_")}
        env |= {"PYSPEC_ISA": isa or "", "PYSPEC_NUM_THREADS": str(threads)}
        command = [cross_build.qemu() or "", "-cpu", cpu, str(cross_build.runner())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        self.threads = threads

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def ask(self, question: str) -> list[str]:
        """The words of an answer about the process: isa, features or ops."""
        return str(self._request(question, [])[0]).split()

    def set_threads(self, threads: int) -> None:
        """Set the threads of the kernels."""
        self._request("threads", [struct.pack("<Bq", 2, threads)])
        self.threads = threads

    def call(self, op: str, *args: Any, **kwargs: Any) -> Any:
        """An op's results; tensors that it writes in place are written. Raises what the torch op raises."""
        spec = OPS[op]
        tensors = spec.complete(args)
        packed = [
            _tensor(tensor, term.mutated) if tensor is not None else b"\0"
            for term, tensor in zip(spec.inputs, tensors, strict=True)
        ]
        for scalar in spec.scalars:
            packed.append(_scalar(scalar.type, kwargs.get(scalar.name, scalar.default)))
        results = self._request(op, packed)
        count = len(spec.outputs)
        in_place = [t for term, t in zip(spec.inputs, tensors, strict=True) if term.mutated and t is not None]
        for tensor, written in zip(in_place, results[count:], strict=True):
            tensor.copy_(written)
        return tuple(results[:count]) if count > 1 else results[0] if count else None

    def _request(self, op: str, values: list[bytes]) -> list[Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"".join([_text(op), struct.pack("<I", len(values)), *values]))
            self._process.stdin.flush()
            status = self._read("<B")
            if status:
                answer: Any = self._bytes(self._read("<I")).decode()
            else:
                answer = [self._value() for _ in range(self._read("<I"))]
            overrun = self._read("<B")
        except (BrokenPipeError, struct.error):
            self._process.wait()
            raise RuntimeError(f"{op}: the emulated process ended with {self._process.returncode}") from None
        if overrun:
            raise RuntimeError(f"{op}: bytes behind a tensor were written")
        if status:
            raise ERRORS[status](answer)
        return list(answer)

    def _value(self) -> Any:
        if self._read("<B") == 5:
            return self._bytes(self._read("<I")).decode()
        dtype = TYPES[self._read("<B")]
        shape = [self._read("<q") for _ in range(self._read("<B"))]
        data = self._bytes(self._read("<Q"))
        flat = (
            torch.frombuffer(bytearray(data), dtype=torch.uint8)
            if data
            else torch.empty(0, dtype=torch.uint8)
        )
        return flat.view(dtype).view(shape)

    def _read(self, form: str) -> int:
        return int(struct.unpack(form, self._bytes(struct.calcsize(form)))[0])

    def _bytes(self, count: int) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.read(count)


def _text(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode()


def _tensor(tensor: Tensor, in_place: bool) -> bytes:
    """A tensor with its strides and its place within 64 bytes; elements between its own come with it."""
    shape, strides = tensor.shape, tensor.stride()
    span = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if tensor.numel() else 0
    flat = tensor.as_strided([span], [1]).view(torch.uint8) if span else torch.empty(0, dtype=torch.uint8)
    data = flat.numpy().tobytes()
    head = struct.pack("<BBBB", 1, TYPES.index(tensor.dtype), in_place, len(shape))
    sizes = struct.pack(f"<{2 * len(shape)}q", *shape, *strides)
    return head + sizes + struct.pack("<BQ", tensor.data_ptr() % 64, len(data)) + data


def _scalar(kind: str, value: Any) -> bytes:
    if kind == "int":
        return struct.pack("<Bq", 2, int(value))
    if kind == "float":
        return struct.pack("<Bd", 3, float(value))
    if kind == "bool":
        return struct.pack("<BB", 4, value in (True, "True"))
    if kind == "str":
        return b"\5" + _text(value.strip("\"'"))
    return struct.pack("<BB", 6, TYPES.index(value))
