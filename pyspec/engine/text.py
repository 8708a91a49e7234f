# SPDX-License-Identifier: Apache-2.0
"""Text of an answer as its tokens come: whole characters only, ended by stop strings that may span tokens."""

from __future__ import annotations

from pyspec.models.tokenizer import StreamDecoder


class TextStream:
    """Collects the text of one answer. A stop string ends it and is not part of it."""

    def __init__(self, decoder: StreamDecoder | None, stop: tuple[str, ...]) -> None:
        self._decoder = decoder  # None: the model has no tokenizer, the text stays empty
        self._stop = stop
        self._held = max((len(s) for s in stop), default=1) - 1  # characters that may begin a stop string
        self._released = 0
        self._searched_from = 0
        self.text = ""
        self._ended = False

    def push(self, token: int, may_stop: bool = True) -> bool:
        """Add one token; True if a stop string is complete, which also cuts the text. Not may_stop: stop strings begin behind it."""
        if self._decoder is None:
            return False
        new = self._decoder.push(token)
        if not may_stop:
            self._searched_from = len(self.text) + len(new)
        return self._extend(new)

    def finish(self) -> None:
        """No more tokens: a held back incomplete character and a begun stop string belong to the text."""
        if self._decoder is not None and not self._ended:
            self._extend(self._decoder.finish())
        self._ended = True

    def _extend(self, new: str) -> bool:
        begin = max(self._searched_from, len(self.text) - self._held)
        self.text += new
        hits = [(at + len(s), at) for s in self._stop if (at := self.text.find(s, begin)) >= 0]
        if hits:  # what is complete first ends it, also where one piece of text completes several
            self.text = self.text[: min(hits)[1]]
            self._ended = True
        return bool(hits)

    def take(self) -> str:
        """Text that is new since the last call and can no longer become part of a stop string."""
        end = len(self.text) if self._ended else max(self._released, len(self.text) - self._held)
        new = self.text[self._released : end]
        self._released = end
        return new
