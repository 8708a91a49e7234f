# SPDX-License-Identifier: Apache-2.0
"""Chat messages to prompt text with the model's own Jinja2 template.

Templates are code from a stranger. Jinja2's sandbox hides attributes but stops neither `'a' * 10**9` nor
nested loops, so each rendering is a process with limits on memory, CPU and wall time (chat_render.py).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pyspec.models.checkpoint import Checkpoint
from pyspec.models.fields import require

MEMORY_BYTES = 512 << 20  # of address space; the interpreter with Jinja2 takes about 60 MB
CPU_SECONDS = 2
WALL_SECONDS = 10.0
MAX_CHARS = 1 << 24


def chat_prompt(
    checkpoint: Checkpoint, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
) -> str:
    """The prompt for some messages ({"role": .., "content": ..}); encode it with add_special=False.

    ValueError if the checkpoint has no chat template or the template fails.
    """
    template = checkpoint.chat_template
    if template is None:
        raise ValueError(f"chat_prompt: checkpoint must have a chat template, got none in {checkpoint.path}")
    variables = {**checkpoint.template_tokens, "add_generation_prompt": add_generation_prompt}
    return render_chat(template, messages, variables)


def render_chat(
    template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None
) -> str:
    """Renders a template with `messages` and other variables (such as bos_token), all plain JSON values.

    Functions raise_exception and strftime_now and the filter tojson are as in transformers. About 0.1 s.
    ValueError says why a template did not render: its own error, or the limit it ran into.
    """
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        require(
            isinstance(role, str), "messages", "objects with a role and a content", message, "render_chat"
        )
    request = {
        "template": template,
        "variables": {"tools": None, "documents": None, **(variables or {}), "messages": list(messages)},
        "memory_bytes": MEMORY_BYTES,
        "cpu_s": CPU_SECONDS,
        "max_chars": MAX_CHARS,
    }
    # -I keeps the environment and the current folder out; Jinja2 may lie where -I does not look.
    origins = (find_spec(name) for name in ("jinja2", "markupsafe"))
    folders = [str(Path(spec.origin).parents[1]) for spec in origins if spec is not None and spec.origin]
    command = [sys.executable, "-I", str(Path(__file__).with_name("chat_render.py")), *folders]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"render_chat: template must finish in {WALL_SECONDS:g} s, got no result") from None
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise ValueError(f"render_chat: template must take at most {CPU_SECONDS} s of CPU, got more")
    try:
        reply = json.loads(done.stdout)
    except ValueError:
        reason = done.stderr.decode("utf-8", "replace").strip()[-300:]
        reply = {"error": f"exit status {done.returncode}: {reason}"}
    if "error" in reply:
        raise ValueError(f"render_chat: template must render, got {reply['error']}")
    return str(reply["text"])
