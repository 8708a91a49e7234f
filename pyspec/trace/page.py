# SPDX-License-Identifier: Apache-2.0
"""The page of a trace: one HTML file that asks for nothing from outside and shows text as text, whatever it says.

Everything that comes from a model or a prompt stands in one block of JSON in which no character can end the block; the script
puts it on the page as text nodes alone. A content security policy allows this script and this style by their hashes and nothing
else, so that even a mistake in either could not run or load what the text asks for.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any


def embedded_json(data: Any) -> str:
    """JSON that is safe inside a script element: no <, >, & and no line separators; ValueError for NaN and infinities."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def render_page(data: dict[str, Any]) -> str:
    """The HTML page of `trace_data`."""
    folder = resources.files("pyspec.trace")
    html, css, script = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    )
    parts = {
        "{{policy}}": f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'",
        "{{style}}": css,
        "{{data}}": embedded_json(data),
        "{{script}}": script,
    }
    page = []
    for mark, value in parts.items():  # split off one after another: what is put in is never looked at again
        before, _, html = html.partition(mark)
        page += [before, value]
    return "".join([*page, html])


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
