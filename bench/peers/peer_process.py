# SPDX-License-Identifier: Apache-2.0
"""A worker process from the asking side: starts it, asks, notices when it dies or hangs, and ends it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from . import load

LONGEST_REPLY = 1 << 22  # characters


class PeerError(RuntimeError):
    """A peer could not do what it was asked; the message says why. The bench goes on without it."""


class PeerProcess:
    """A process that speaks workers/protocol.py on its standard streams. It leads a session of its own, with what it starts.

    log: file that its stderr goes to; the last line of it is part of the error when it dies.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, folder: Path, environment: Mapping[str, str], log: Path
    ) -> None:
        self.name, self._log = name, log
        with open(log, "wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
                cwd=folder, env={**os.environ, **environment}, start_new_session=True,
            )  # fmt: skip
        self._replies: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: Mapping[str, object], *, timeout: float = 300) -> dict[str, Any]:
        """The reply to one request. PeerError if it is an error, no JSON, or none within `timeout` seconds."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._replies.get(timeout=timeout)
        except (OSError, ValueError):  # it has ended, or close() has ended it
            line = ""
        except queue.Empty:
            self.close()
            raise PeerError(f"{self.name}: {request['do']} must end within {timeout:g} s") from None
        if not line:
            self._replies.put("")  # whoever asks next is told at once, too
            raise PeerError(f"{self.name}: the process ended: {self._last_words()}")
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if isinstance(reply, dict) and isinstance(reply.get("ok"), dict):
            return reply["ok"]
        if isinstance(reply, dict) and isinstance(reply.get("error"), str):
            raise PeerError(f"{self.name}: {request['do']}: {reply['error'][:500]}")
        raise PeerError(f"{self.name}: a reply must be a JSON object with ok or error, got {line[:80]!r}")

    def cpu_seconds(self) -> float:
        """What the process and those that it started have used so far."""
        return load.session_seconds(self.pid)

    def close(self) -> None:
        """Ends the process and its session."""
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what was still to be written to a process that has ended
                    continue

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        """Passes lines on; the empty one says that no more will come."""
        assert self._process.stdout is not None
        line = "start"
        while line:
            try:
                line = self._process.stdout.readline(LONGEST_REPLY)
            except ValueError:  # closed by close()
                line = ""
            self._replies.put(line)

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"
