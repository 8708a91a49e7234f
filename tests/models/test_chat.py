# SPDX-License-Identifier: Apache-2.0
"""Chat templates: what they may do, and that hostile ones fail quickly in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_checkpoint

from pyspec.models import Checkpoint, chat
from pyspec.models.chat import chat_prompt, render_chat

HI = [{"role": "user", "content": "h\u00ef <b>"}]


@pytest.mark.parametrize(
    ("template", "variables", "expected"),
    [
        ("{{ bos_token }}{{ messages[0].content }}", {"bos_token": "<s>"}, "<s>h\u00ef <b>"),
        ("{% for m in messages %}\n  {{ m['role'] }}\n{% endfor %}", {}, "  user\n"),  # blocks are trimmed
        ("{{ messages | tojson }}", {}, '[{"role": "user", "content": "h\u00ef <b>"}]'),
        ("{{ [1, {'a': none}] | tojson(indent=1) }}", {}, '[\n 1,\n {\n  "a": null\n }\n]'),
        ("{{ tools is none }}{{ x is defined }}", {}, "TrueFalse"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", {}, "01"),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}!", {}, "user!"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = 3 %}{{ ns.n }}", {}, "3"),
    ],
)
def test_renders(template: str, variables: dict[str, Any], expected: str) -> None:
    assert render_chat(template, HI, variables) == expected


def test_date() -> None:
    assert render_chat("{{ strftime_now('%Y') }}", HI) in (
        time.strftime("%Y"),
        str(int(time.strftime("%Y")) - 1),
    )


def test_smollm2_template(smollm2: Checkpoint) -> None:
    system = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )
    user = "<|im_start|>user\nh\u00ef <b><|im_end|>\n"
    prompt = chat_prompt(smollm2, HI)
    assert prompt == system + user + "<|im_start|>assistant\n"
    assert chat_prompt(smollm2, HI, add_generation_prompt=False) == system + user
    assert smollm2.tokenizer.encode(prompt, add_special=False)[:3] == [1, 9690, 198]


HOSTILE = {
    "memory": ("{{ 'a' * 10**9 }}", "bytes of memory"),
    "list": ("{{ [1] * 10**9 }}", "bytes of memory"),
    "output": ("{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}", "bytes of memory"),
    "long output": ("{{ 'a' * (2**24 + 1) }}", "16777217 characters, more than 16777216"),
    "loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "at most 2 s of CPU",
    ),
    "range": ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "nesting": ("{{ " + "(" * 100000 + " }}", "got "),
    "class": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "globals": ("{{ cycler.__init__.__globals__.os.system('id') }}", "SecurityError"),
    "mutation": ("{{ messages.append(1) }}", "SecurityError"),
    "include": ("{% include '/etc/passwd' %}", "TypeError: no loader"),
    "import": ("{% import 'os' as os %}", "TypeError: no loader"),
    "syntax": ("{% if %}", "TemplateSyntaxError"),
    "own error": ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(case: str) -> None:
    template, words = HOSTILE[case]
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"render_chat: template must .*, got") as error:
        render_chat(template, HI)
    assert words in str(error.value), str(error.value)
    assert time.monotonic() - start < 9


@pytest.mark.parametrize(
    "template",
    [
        "{{ lipsum.__globals__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
    ],
)
def test_hidden_attributes_are_undefined(template: str) -> None:
    assert render_chat(template, HI) == ""


def test_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "WALL_SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"template must finish in 0.2 s, got no result"):
        render_chat(HOSTILE["loops"][0], HI)


def test_rendering_is_cheap_and_loads_no_torch() -> None:
    times = []
    for _ in range(3):
        before = os.times()
        assert render_chat("{{ messages[0].role }}", HI) == "user"
        after = os.times()
        times.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert min(times) < 0.4
    child = Path(chat.__file__).with_name("chat_render.py")
    code = f"import sys, runpy; runpy.run_path({str(child)!r}, run_name='x'); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-I", "-c", code], text=True) == "False\n"


@pytest.mark.parametrize("messages", [["hi"], [{"content": "hi"}], [{"role": 3}]])
def test_refuses_messages(messages: Any) -> None:
    with pytest.raises(
        ValueError, match="render_chat: messages must be objects with a role and a content, got"
    ):
        render_chat("", messages)


def test_no_template(tmp_path: Path) -> None:
    from pyspec.models import open_checkpoint

    checkpoint = open_checkpoint(tiny_checkpoint("llama", tmp_path / "m"))
    with pytest.raises(ValueError, match="chat_prompt: checkpoint must have a chat template, got none in"):
        chat_prompt(checkpoint, HI)
