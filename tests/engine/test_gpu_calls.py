# SPDX-License-Identifier: Apache-2.0
"""The calls that the GPU executor makes to torch.cuda, on a double of it: graphs, pinned staging, the one wait of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pyspec import calls
from pyspec.calls import BackendCalls, send, take_rows
from pyspec.engine import graphs, staging
from pyspec.engine.graphs import Graphs
from pyspec.engine.staging import Staging

CUDA = torch.device("cuda")


class Machine:
    """Writes down what is asked of torch.cuda. Its tensors are the CPU's, whatever device they are asked for."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.stream = "main"
        machine = self

        class Stream:
            def __init__(self, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: Stream) -> None:
                machine.log.append(f"{self.name} waits for {other.name}")

            def synchronize(self) -> None:
                machine.log.append(f"host waits for {self.name}")

        class Event:
            count = 0

            def __init__(self) -> None:
                self.number, Event.count = Event.count, Event.count + 1

            def record(self) -> None:
                machine.log.append(f"record {self.number}")

            def synchronize(self) -> None:
                machine.log.append(f"wait for {self.number}")

        class CUDAGraph:
            def replay(self) -> None:
                machine.log.append("replay")

        @contextlib.contextmanager
        def on(stream: Stream) -> Iterator[None]:
            before, machine.stream = machine.stream, stream.name
            yield
            machine.stream = before

        @contextlib.contextmanager
        def graph(captured: CUDAGraph, pool: object) -> Iterator[None]:
            assert pool == "pool"
            before, machine.stream = machine.stream, "capture"
            yield
            machine.stream = before

        self.cuda = SimpleNamespace(
            Stream=Stream, Event=Event, CUDAGraph=CUDAGraph, stream=on, graph=graph,
            graph_pool_handle=lambda: "pool", current_stream=lambda device=None: Stream(self.stream),
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def zeros(self, *shape: Any, device: Any = None, pin_memory: bool = False, **rest: Any) -> torch.Tensor:
        self.log.append(f"{'pinned ' if pin_memory else ''}memory{f' on {device.type}' if device else ''}")
        return torch.zeros(*shape, **rest)

    def empty(self, *shape: Any, device: Any = None, pin_memory: bool = False, **rest: Any) -> torch.Tensor:
        assert pin_memory is (device is None)
        self.log.append(f"memory on {device.type}" if device else "pinned memory")
        return torch.empty(*shape, **rest)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    double = Machine()
    for module in (calls, graphs, staging):
        monkeypatch.setattr(module, "torch", double)
    return double


def test_a_graph_is_captured_on_a_blank_batch_and_replayed_on_the_real_one(machine: Machine) -> None:
    log = machine.log
    body = lambda: log.append(f"body on {machine.stream}") or len(log)
    blank, fill = (lambda name=name: log.append(name) for name in ("blank", "fill"))
    run = Graphs(CUDA)
    first = run.run("key", body, blank, fill)
    assert log == [
        "blank", "side waits for main", "body on side", "main waits for side", "body on capture", "fill", "replay",
    ]  # fmt: skip
    log.clear()
    assert run.run("key", body, blank, fill) == first
    assert log == ["fill", "replay"]
    run.run("other", body, blank, fill)
    assert log.count("body on capture") == 1


def test_staging_alternates_pinned_pieces_and_waits_for_the_copy_of_two_steps_ago(machine: Machine) -> None:
    stage = Staging({"a": ((2,), torch.int32)}, CUDA)
    assert machine.log == ["memory on cuda", "pinned memory", "pinned memory"]
    machine.log.clear()
    addresses = []
    for value in range(4):
        arrays = stage.fill()
        addresses.append(arrays["a"].ctypes.data)
        arrays["a"][:] = value
        stage.send()
        assert stage.device["a"].tolist() == [value, value]
    assert addresses[0] != addresses[1]
    assert addresses[:2] == addresses[2:]
    assert machine.log == [f"{what} {i}" for i in (1, 0, 1, 0) for what in ("wait for", "record")]


def test_results_come_back_in_pinned_memory_with_one_wait(machine: Machine) -> None:
    executor = BackendCalls("cuda", CUDA)
    results = (torch.tensor([3, 4]), torch.ones(2, 5, 0))
    first = executor.read_back(results)
    assert [out.tolist() for out in first] == [out.tolist() for out in results]
    assert machine.log == ["pinned memory", "pinned memory", "host waits for main"]
    machine.log.clear()
    again = executor.read_back((torch.tensor([5, 6]), torch.ones(2, 5, 0)))
    assert again[0].data_ptr() == first[0].data_ptr()
    assert again[0].tolist() == [5, 6]
    assert machine.log == ["host waits for main"]


def test_small_arrays_are_sent_in_one_piece_that_nobody_waits_for(machine: Machine) -> None:
    """What is on the device already, and what is not given, goes through as it is."""
    there = torch.empty(3, device="meta")
    given = [torch.tensor([1, 2, 3]), None, there, torch.tensor([[0.5], [2.0]]), torch.empty(0, 4)]
    sent = send(given, CUDA)
    assert machine.log == ["pinned memory", "memory on cuda"]
    assert sent[1] is None
    assert sent[2] is there
    for i in (0, 3, 4):
        assert torch.equal(sent[i], given[i])
        assert sent[i].dtype == given[i].dtype
    assert sent[3].data_ptr() - sent[0].data_ptr() == 256
    machine.log.clear()
    assert send(given[1:3], CUDA) == given[1:3]
    assert machine.log == []


def test_rows_are_taken_in_any_order() -> None:
    rows = torch.arange(12.0).view(4, 3)
    assert torch.equal(take_rows(rows, torch.tensor([3, 0, 3], dtype=torch.int32)), rows[[3, 0, 3]])
