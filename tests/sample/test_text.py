"""Text as it grows: whole characters, stop strings, and nothing shown that must be taken back."""

import codecs

from hypothesis import given, settings
from hypothesis import strategies as st

from lm.sample.text import Continuation
from lm.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()

# A small alphabet, so that stop strings occur, overlap and nearly occur; bytes that cut and break characters.
texts = st.text("aab é€😀", max_size=14)
broken = st.lists(st.sampled_from([*b"aab ", 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xFF]), max_size=14)
streams = texts.map(lambda text: list(text.encode())) | broken
stops = st.lists(st.text("aab é€😀�", min_size=1, max_size=4), max_size=3).map(tuple)


def expected(tokens: list[int], stop: tuple[str, ...]) -> tuple[str, bool, int]:
    """(text, stopped, tokens kept): every beginning of the stream decoded at once, the first that holds a stop wins."""
    text_after = []
    for n in range(len(tokens) + 2):
        final = n > len(tokens)  # at the very end broken characters count too
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(tokens[:n]), final)
        text_after.append(text)
        found = [text.index(s) for s in stop if s in text]
        if found:
            text = text[: min(found)]
            return text, True, min(min(k for k, t in enumerate(text_after) if t.startswith(text)), len(tokens))
    return bytes(tokens).decode("utf-8", errors="replace"), False, len(tokens)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(streams, stops, st.sets(st.integers(0, 14)))
def test_pieces_join_to_the_text_cut_before_the_first_stop(tokens, stop, looks):
    """Whenever one looks, the pieces so far are a beginning of the text as it will be."""
    made, pieces = Continuation(BYTES, stop), []
    for i, token in enumerate(tokens):
        made.push(token, float(-i))
        if i in looks:
            pieces.append(made.piece())
        if made.stopped:
            break
    made.finish()
    pieces.append(made.piece())
    text, stopped, kept = expected(tokens, stop)
    assert (made.text, made.stopped) == (text, stopped)
    assert "".join(pieces) == text
    assert made.tokens == tokens[:kept]
    assert made.logprobs == [float(-i) for i in range(kept)]


def test_a_character_waits_for_its_last_byte():
    made = Continuation(BYTES)
    shown = []
    for byte in "é€".encode():
        made.push(byte, 0.0)
        shown.append(made.piece())
    assert shown == ["", "é", "", "", "€"]


def test_the_beginning_of_a_stop_string_waits():
    made = Continuation(BYTES, ("END",))
    shown = []
    for byte in b"xENENDy"[:6]:
        made.push(byte, 0.0)
        shown.append(made.piece())
    assert shown == ["x", "", "", "EN", "", ""] and made.stopped and made.text == "xEN"


def test_the_last_text_is_let_go_when_no_more_comes():
    made = Continuation(BYTES, ("END",))
    for byte in b"xEN\xc3":
        made.push(byte, 0.0)
    assert made.piece() == "xEN" or made.piece() == ""
    made.finish()
    assert made.text == "xEN�" and len(made.tokens) == 4
