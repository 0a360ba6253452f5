"""An array's name ends in its axes: x_BTD has three.

Checked on every local variable while a transformer and a recurrent model train, write and are looked into.
"""

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import tiny

import lm
from lm import probe
from lm.config import EncoderConfig, RecurrentConfig
from lm.evaluation import open_examples

HOUSE = str(Path(lm.__file__).parent)
SUFFIXED = re.compile(r"[a-z][a-z0-9_]*_([A-Z][A-Z0-9]*)")


def axes(value) -> int | None:
    """How many axes an array has, a tuple or list of them one more; None for what is no array."""
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        inner = axes(value[0]) if value else None
        return None if inner is None else inner + 1
    return getattr(value, "ndim", None)


class Watch:
    """Collects the suffixed local variables of lm's functions, and those that have not as many axes as letters."""

    def __init__(self):
        self.seen: set[str] = set()
        self.wrong: dict[str, str] = {}

    def __enter__(self):
        self.before = sys.gettrace()  # a debugger's, or of a measurement of coverage
        sys.settrace(self.called)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def called(self, frame, event, _):
        """Look at the frames of lm's functions alone, and not line by line."""
        if not frame.f_code.co_filename.startswith(HOUSE):
            return None
        frame.f_trace_lines = False
        return self.returned

    def returned(self, frame, event, _):
        if event != "return":
            return
        code = frame.f_code
        for name, value in frame.f_locals.items():
            match, count = SUFFIXED.fullmatch(name), axes(value)
            if match and count is not None:
                self.seen.add(name)
                if count != len(match[1]):
                    where = f"{Path(code.co_filename).relative_to(HOUSE)}:{code.co_qualname} {name}"
                    self.wrong[where] = f"has {count} axes"


@pytest.mark.gate
def test_the_letters_of_a_name_are_its_axes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(tiny.text())
    transformer = tiny.replaced(  # of shapes that no other test has, so that all programs are traced here
        tiny.experiment("text.txt", name="transformer"), model__window=5, model__kv_heads=1, model__value_residual=True,
        model__dropout=0.1, model__width=8, model__context=12, data__packing=True, data__separator=".\n",
        train__steps=6, train__eval_every=3, train__checkpoint_every=3, train__accumulation=2, train__loss_chunk=7,
        data__tokenizer="words", data__vocab=300,
    )  # fmt: skip
    recurrent = tiny.replaced(tiny.experiment("text.txt", name="recurrent"), train__steps=6)
    recurrent = dataclasses.replace(recurrent, model=RecurrentConfig(width=8, context=12, dropout=0.1))
    (tmp_path / "pairs.tsv").write_text("".join(f"{n} king{'s' * n}\tun {n}\n" for n in range(40)))
    translator = tiny.replaced(
        tiny.experiment("unused.txt", name="translator"), data__examples="pairs.tsv", train__steps=6
    )
    encoder = EncoderConfig(layers=1, width=8, heads=2, context=40)
    translator = tiny.replaced(translator, model__encoder=encoder, model__width=8, model__norm_place="post")
    masked = tiny.replaced(
        transformer, name="masked", model__mask="full", model__mask_token=True, train__objective="masked"
    )
    with Watch() as watch:
        lm.train(masked, display=False)
        m = lm.load(lm.train(translator, display=False))
        lm.sample.answer_examples(m, open_examples(m), beam=2, most=3)
        lm.generate(m, [""], sources=["3 kings"], max_tokens=4)
        for e in (transformer, recurrent):
            m = lm.load(lm.train(e, display=False))
            lm.generate(m, ["the king", ""], lm.Sampler(top_k=5, top_p=0.9), max_tokens=14, past_context="slide")
            lm.generate(m, ["the"], max_tokens=2)
            lm.evaluate(m, tiny.text(100))
            text = "a king"
            probe.logit_lens(m, text)
            probe.token_losses(m, text, cached=True)
            if e is transformer:
                probe.attention_patterns(m, text, cached=True)
                probe.ablate(m, text, probe.every_part(m))
                probe.attribute_logits(m, text, "ran")
                probe.trace(m, text, "king", "ran", samples=2)
                for space in probe.spaces_of(m, ()):
                    probe.neighbours(space, "king", n=3)
                    probe.isotropy(space)
    assert len(watch.seen) > 150, "few names were met: did the programs come from a cache?"
    assert not watch.wrong, "\n".join(f"{where} {what}" for where, what in sorted(watch.wrong.items()))
