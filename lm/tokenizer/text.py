"""Text before it is encoded: what UTF-8 can write, and cuts that do not show in the tokens."""

import re
from collections.abc import Iterable, Iterator

SLICE = 1 << 17
"""Characters encoded at once: tiktoken's regular expressions overflow on runs of about a million spaces."""

_BOUNDARY = re.compile(r".*\S(?= )", re.DOTALL)


def slices(pieces: Iterable[str], limit: int) -> Iterator[str]:
    """A text that arrives in pieces, cut anew into slices of at most `limit` characters that encode independently.

    A cut falls before a space that follows a non-space: no published pattern (nor ours) matches across that point, so
    the tokens are those of the uncut text. Only a stretch of `limit` characters without such a point, a wall of
    spaces or of Chinese without any, is cut where it stands. Cuts depend on the text alone, not on its pieces.
    """
    text = ""
    for piece in pieces:
        text, start = text + piece, 0
        while len(text) - start > limit:
            safe = _BOUNDARY.match(text, start, start + limit + 1)
            end = safe.end() if safe else start + limit
            yield text[start:end]
            start = end
        text = text[start:]
    if text:
        yield text


def well_formed(text: str) -> str:
    """The text with surrogates paired where they pair and otherwise replaced by U+FFFD, so that UTF-8 can write it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
