# SPDX-License-Identifier: Apache-2.0
"""`python -m workers NAME`: the worker of one library. What libraries print goes to stderr: stdout has replies alone."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys

from .protocol import Adapter, serve

ADAPTERS = {  # name: (module, class)
    "pyspec": ("pyspec_engine", "Plain"),
    "pyspec-auto": ("pyspec_engine", "Auto"),
    "llama-cpp-python": ("llama_cpp_python", "LlamaCpp"),
    "openvino-genai": ("openvino_pipeline", "OpenVino"),
    "transformers": ("transformers_model", "Transformers"),
    "onnxruntime-genai": ("onnxruntime_generator", "OnnxRuntime"),
    "vllm": ("vllm_engine", "Vllm"),
}


def make(name: str) -> Adapter:
    """The adapter of a library, which is imported here."""
    module, kind = ADAPTERS[name]
    adapter: Adapter = getattr(importlib.import_module(f".{module}", __package__), kind)()
    return adapter


def die_with_parent() -> None:
    """Ends this process when the bench that asks it is killed, whatever it is computing; where the system can do that."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(lambda: make(sys.argv[1]), sys.stdin, replies)
