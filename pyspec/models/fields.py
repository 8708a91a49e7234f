# SPDX-License-Identifier: Apache-2.0
"""Checks in the grammar of the house, and typed look-ups in the metadata of model files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

_REQUIRED = object()


def require(ok: bool, argument: str, rule: str, value: object, function: str) -> None:
    """Raises ValueError `function: argument must be rule, got value` unless `ok`; None reads as nothing."""
    if not ok:
        shown = "nothing" if value is None else repr(value)
        shown = shown if len(shown) <= 200 else shown[:200] + "..."
        raise ValueError(f"{function}: {argument} must be {rule}, got {shown}")


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Fields:
    """Values by key, of the type asked for. A missing key or None gives the default; ValueError if none."""

    function: str
    values: Mapping[str, Any]
    prefix: str = ""

    def _get(self, key: str, kind: type, article: str, default: Any) -> Any:
        value = self.values.get(self.prefix + key)
        if value is None:
            require(default is not _REQUIRED, self.prefix + key, article, None, self.function)
            return default
        ok = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        require(ok, self.prefix + key, article, value, self.function)
        return value

    def _within_64_bits(self, key: str, value: Any) -> Any:
        # JSON has integers of any length, which no float and no tensor can hold.
        ok = not is_int(value) or abs(value) < 1 << 63
        require(ok, self.prefix + key, "below 2**63", "an integer beyond it", self.function)
        return value

    def integer(self, key: str, default: Any = _REQUIRED) -> Any:
        return self._within_64_bits(key, self._get(key, int, "an integer", default))

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self._get(key, int | float, "a number", default)  # type: ignore[arg-type]
        return float(value) if is_int(self._within_64_bits(key, value)) else value

    def text(self, key: str, default: Any = _REQUIRED) -> Any:
        return self._get(key, str, "a string", default)

    def flag(self, key: str, default: Any = _REQUIRED) -> Any:
        return self._get(key, bool, "true or false", default)

    def mapping(self, key: str, default: Any = _REQUIRED) -> Any:
        return self._get(key, dict, "an object", default)

    def sequence(self, key: str, default: Any = _REQUIRED) -> Any:
        return self._get(key, list, "an array", default)

    def choice(self, key: str, options: tuple[str, ...], default: Any = _REQUIRED) -> Any:
        value = self.text(key, default)
        rule = f"one of {', '.join(options)}"
        require(value is default or value in options, self.prefix + key, rule, value, self.function)
        return value
