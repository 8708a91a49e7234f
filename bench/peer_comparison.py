# SPDX-License-Identifier: Apache-2.0
"""Engines side by side: every round measures each of them once, on a quiet machine; rounds that others disturbed do not count."""

from __future__ import annotations

import difflib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pyspec.backends import num_threads
from pyspec.models.checkpoint import Checkpoint, open_checkpoint
from pyspec.models.fetch import resolve_model

from .bench_perplexity import TEXT
from .harness import GateError, Options, Row, make_row
from .peer_limits import Limits, limits
from .peers.environments import FOLDER, PEERS, python_of
from .peers.load import Watch, wait_until_quiet
from .peers.model_folders import dense_folder, onnx_folder
from .peers.peer_process import PeerError, PeerProcess

OWN = ("pyspec", "pyspec-auto")
PATIENCE = 20.0  # seconds to wait for a quiet machine before each measurement
LEAST_AGREEMENT = 0.25  # of a peer's first tokens with ours: less is another model or a wrong answer
PROBE, PROBE_STEPS = 64, 16


@dataclass(frozen=True)
class Case:
    """What is measured: `batch` prompts of `context` tokens, and `steps` decoded behind them; no steps: the prompt alone."""

    name: str
    context: int
    batch: int
    steps: int


CASES = (
    Case("prefill 512", 512, 1, 0),
    Case("decode 64", 64, 1, 64),
    Case("decode 2048", 2048, 1, 32),
    Case("batch 8", 64, 8, 24),
    Case("batch 32", 64, 32, 12),
)


@dataclass
class Engine:
    """A loaded worker and what its loading told. speeds: tokens/s by round, None where the round was disturbed."""

    name: str
    process: PeerProcess
    what: str
    load_seconds: float
    before_bytes: int
    agreement: float = 1.0
    speeds: list[float | None] = field(default_factory=list)

    @property
    def backend(self) -> str:
        return f"{self.name} ({self.what})"


def rows(options: Options) -> Iterator[Row]:
    """Rows of every case that --only wants; peers that cannot take part are rows too, with the reason as their case."""
    names = chosen(options)
    checkpoint = open_checkpoint(resolve_model(options.model))
    wanted = [case for case in CASES if options.wants(case.name)]
    for cases in ([case for case in wanted if case.batch == 1], [case for case in wanted if case.batch > 1]):
        if cases:
            yield from group_rows(options, checkpoint, (*OWN, *names), cases)


def chosen(options: Options) -> tuple[str, ...]:
    """The peers that --peers names. GateError for one that there is not."""
    if unknown := [name for name in options.peers if name not in (*PEERS, "all")]:
        raise GateError(f"bench: peers must be all or of {', '.join(PEERS)}, got {', '.join(unknown)}")
    return tuple(PEERS) if "all" in options.peers else options.peers


def group_rows(
    options: Options, checkpoint: Checkpoint, names: Sequence[str], cases: Sequence[Case]
) -> Iterator[Row]:
    """Cases that one loading of every engine serves."""
    tokens = checkpoint.tokenizer.encode(TEXT.read_text(encoding="utf-8"))
    batch = max(case.batch for case in cases)
    left_out: list[Row] = []
    with engines(options, checkpoint, names, 2560 if batch == 1 else 512, batch, tokens, left_out) as loaded:
        yield from left_out
        for engine in loaded:
            yield from loading_rows(engine, batch)
        for case in cases:
            prompts = [tokens[61 * i : 61 * i + case.context] for i in range(case.batch)]
            left_out.clear()
            measure_rounds(
                loaded, case, prompts, 1 if options.quick else 5, 0 if options.quick else PATIENCE, left_out
            )
            yield from left_out
            yield from case_rows(loaded, case, limits(checkpoint, case.context, case.batch))
        if batch == 1:
            for engine in loaded:
                peak = engine.process.ask({"do": "peak"})["peak_bytes"]
                yield make_row("peers", "memory", engine.backend, "peak_memory", peak, "bytes")
                yield make_row(
                    "peers", "memory", engine.backend, "added_by_model", peak - engine.before_bytes, "bytes"
                )


@contextmanager
def engines(
    options: Options, checkpoint: Checkpoint, names: Sequence[str], context: int, batch: int, tokens: list[int], left_out: list[Row]
) -> Iterator[list[Engine]]:  # fmt: skip
    """Loaded engines, pyspec first; their first tokens have been compared with its. GateError if pyspec itself fails."""
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pyspec-peers-")))
        loaded: list[Engine] = []
        expected: list[int] = []
        for name in names:
            try:
                process = stack.enter_context(start(name, logs, options.threads or num_threads()))
                engine = load_engine(
                    process, model_for(name, checkpoint), options.threads or num_threads(), context, batch
                )
                probe = {"do": "decode", "prompts": [tokens[:PROBE]], "steps": PROBE_STEPS}
                got = process.ask(probe)["tokens"][:PROBE_STEPS]
                expected = expected or got
                engine.agreement = agreement(got, expected)
                if engine.agreement < LEAST_AGREEMENT:
                    raise PeerError(f"{name}: its tokens must be much like ours {expected}, got {got}")
                loaded.append(engine)
            except PeerError as error:
                if name in OWN:
                    raise GateError(str(error)) from None
                left_out.append(reason_row(name, error))
        yield loaded


def start(name: str, logs: Path, threads: int) -> PeerProcess:
    """The worker of an engine: our own runs in this interpreter's environment."""
    python = Path(sys.executable) if name in OWN else python_of(name)
    environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    if name in PEERS:
        environment |= PEERS[name].running
    command = [str(python), "-m", "workers", name]
    return PeerProcess(name, command, folder=FOLDER, environment=environment, log=logs / f"{name}.log")


def model_for(name: str, checkpoint: Checkpoint) -> Path:
    """The weights in the form that an engine reads."""
    kind = PEERS[name].weights if name in PEERS else "gguf"
    return {
        "gguf": lambda: checkpoint.path,
        "dense": lambda: dense_folder(checkpoint),
        "onnx": lambda: onnx_folder(checkpoint),
    }[kind]()


def load_engine(process: PeerProcess, model: Path, threads: int, context: int, batch: int) -> Engine:
    """Asks a worker to load; its time is that of reading the model, without the library's own import."""
    loaded = process.ask(
        {"do": "load", "model": str(model), "threads": threads, "context": context, "batch": batch}
    )
    return Engine(process.name, process, loaded["what"], loaded["seconds"], loaded["before_bytes"])


def agreement(got: list[int], expected: list[int]) -> float:
    """How much of two texts is the same, 0 to 1: other arithmetic may choose another word, but goes on alike."""
    return difflib.SequenceMatcher(None, got, expected, autojunk=False).ratio()


def reason_row(name: str, error: PeerError) -> Row:
    """A peer that does not take part, and why."""
    print(f"left out: {error}", file=sys.stderr)
    return make_row("peers", str(error)[:300], name, "left_out", 0, "")


def measure_rounds(
    loaded: list[Engine], case: Case, prompts: list[list[int]], rounds: int, patience: float, left_out: list[Row]
) -> None:  # fmt: skip
    """Fills `speeds`; an engine that fails leaves the list."""
    for engine in loaded:
        engine.speeds = []
    for turn in range(-1, rounds):  # the first turn warms up
        for engine in list(loaded):
            try:
                speed = measure_once(engine.process, case, prompts, patience if turn >= 0 else 0)
            except PeerError as error:
                loaded.remove(engine)
                left_out.append(reason_row(engine.name, error))
                continue
            if turn >= 0:
                engine.speeds.append(speed)


def measure_once(process: PeerProcess, case: Case, prompts: list[list[int]], patience: float) -> float | None:
    """Tokens/s of one measurement; None if others worked meanwhile. Without patience whatever comes counts."""
    if patience:
        wait_until_quiet(patience)
    with Watch(process.cpu_seconds) as watch:
        if case.steps:
            reply = process.ask({"do": "decode", "prompts": prompts, "steps": case.steps})
            speed = reply["count"] / sum(reply["seconds"])
        else:
            speed = len(prompts[0]) / process.ask({"do": "prefill", "prompt": prompts[0]})["seconds"]
    return None if patience and watch.contaminated else speed


def loading_rows(engine: Engine, batch: int) -> Iterator[Row]:
    """What loading told."""
    if batch == 1:
        yield make_row("peers", "load", engine.backend, "load_seconds", engine.load_seconds, "s")
        yield make_row(
            "peers", f"first {PROBE_STEPS} tokens", engine.backend, "agreement", engine.agreement, ""
        )


def case_rows(loaded: Sequence[Engine], case: Case, limit: Limits) -> Iterator[Row]:
    """Median speeds, and their ratio to the best peer's within one round; percent of what the machine could do with our weights."""
    medians = {
        e.name: statistics.median(kept) for e in loaded if (kept := [s for s in e.speeds if s is not None])
    }
    best = max(
        (e for e in loaded if e.name in medians and e.name not in OWN),
        key=lambda e: medians[e.name],
        default=None,
    )
    for engine in loaded:
        lost = sum(speed is None for speed in engine.speeds)
        if lost:
            yield make_row(
                "peers", case.name, engine.backend, "disturbed_rounds", lost, f"of {len(engine.speeds)}"
            )
        if engine.name not in medians:
            continue
        ratio = None
        if best is not None:
            pairs = [
                a / b
                for a, b in zip(engine.speeds, best.speeds, strict=True)
                if a is not None and b is not None
            ]
            ratio = statistics.median(pairs) if pairs else medians[engine.name] / medians[best.name]
        speed = medians[engine.name]
        yield make_row(
            "peers", case.name, engine.backend, "prefill_tokens_per_s" if not case.steps else "decode_tokens_per_s", speed,
            "tokens/s", peak_pct=100 * speed / limit.tokens_per_second(prefill=not case.steps), peer=best.name if best else None,
            ratio=ratio,
        )  # fmt: skip
