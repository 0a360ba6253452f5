"""Continuation: one row's tokens becoming text, safe to show as it grows."""

import bisect
import codecs

from lm.tokenizer import bytes_of


class Continuation:
    """Tokens become text one by one; a stop string ends it.

    A character split over tokens appears when it is whole (bytes that are not UTF-8 become U+FFFD, exactly as decoding
    all at once does). `piece()` gives what is new and certain: not what might be the beginning of a stop string.
    """

    def __init__(self, tokenizer, stop: tuple[str, ...] = ()):
        self.tokenizer, self.stop = tokenizer, stop
        self.text, self.stopped = "", False
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._ends: list[int] = []  # length of the text after each token
        self._shown = 0

    def push(self, token: int, logprob: float) -> None:
        """Add a token. When a stop string appears, cut before it and set `stopped`; push no more after that.

        What is kept of the tokens is the fewest whose text covers what is left of the text.
        """
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self._ends.append(0)
        self._grow(self._decoder.decode(bytes_of(self.tokenizer, token)))

    def finish(self) -> None:
        """No more tokens: let go of what was held back, the bytes of a broken character included."""
        if self.tokens and not self.stopped:
            self._grow(self._decoder.decode(b"", final=True))
        self.stop = ()

    def piece(self) -> str:
        """The text made since the last call, as far as it is certain; all pieces joined are `text`."""
        held = 0 if self.stopped else max((_overlap(self.text, s) for s in self.stop), default=0)
        start, self._shown = self._shown, max(self._shown, len(self.text) - held)
        return self.text[start : self._shown]

    def _grow(self, new: str) -> None:
        """Add the last token's characters and look for stop strings that end among them."""
        old = len(self.text)
        self.text += new
        self._ends[-1] = len(self.text)
        found = [self.text.find(s, max(0, old - len(s) + 1)) for s in self.stop]
        found = [at for at in found if at >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
            needed = bisect.bisect_left(self._ends, len(self.text)) + 1 if self.text else 0
            del self.tokens[needed:], self.logprobs[needed:]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins, but does not complete, the stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
