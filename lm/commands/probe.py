"""lm probe RUN ACTION: what a trained model knows. Here the words' vectors; what goes on inside is in probe_inside."""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lm.arguments import InputFile, parse
from lm.commands.common import Checkpoint, Json, prepare_jax, print_json
from lm.errors import UserError, nearest, printable, require
from lm.limits import Count, Level, Seed

INSIDE = ("attention", "lens", "facts", "ablate", "trace", "loss")
USAGE = """lm probe RUN ACTION ...: what a trained model knows, beside controls

  analogy    king man woman       king - man + woman, and what answers without analogy
  neighbours WORD                 the nearest words
  suite      FILE | FOLDER        analogies as Google's file or BATS's folder has them, in every space
  similarity FILE                 cosines against people's scores (lines: word word score)
  geometry   clusters FILE | directions FILE | map WORD... | isotropy
  attention, lens, facts, ablate, trace, loss      inside the model

`lm probe RUN ACTION --help` explains each; every one takes --json, most --figure FILE.png.
"""


def run(arguments: list[str]) -> None:
    """The run comes first, then the action."""
    if not arguments or arguments[0] in ("-h", "--help") or arguments[1:] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return
    name, *rest = arguments
    known = [*ACTIONS, *INSIDE]
    word = rest[0] if rest else ""
    if name in known and word not in known:
        raise UserError(f"{name}: the run comes first: lm probe RUN {name} ...")
    wrong = f"{word}: no such action{nearest(word, known)}" if word else "no action given"
    require(word in known, f"{wrong} (lm probe RUN {' | '.join(known)})")
    act = ACTIONS.get(word) or getattr(importlib.import_module("lm.commands.probe_inside"), word)
    act(name, rest[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Where:
    """Which vectors, of which words."""

    case: Literal["fold", "exact"] = "fold"
    """fold: forms of a word that differ in case alone are one word; exact: they are not."""
    pieces: Literal["single", "mean"] = "single"
    """Words of several tokens: left out, or the mean of their tokens' vectors."""
    restrict: Count | None = None
    """Search only so many words, the most frequent first."""
    center: bool = False
    """Take the mean vector away."""
    whiten: bool = False
    """Centre, and scale every principal axis to variance one."""
    text: InputFile | None = None
    """For contextual spaces: average over words' places in this text instead of the training text."""
    tokens: Count = 131_072
    """For contextual spaces: how much text to read."""
    checkpoint: Checkpoint = "latest"
    figure: Path | None = None
    """Draw what was found to this .png, .svg or .pdf."""
    json: Json = False

    def options(self) -> dict:
        """For lm.probe.spaces_of."""
        from lm.data.readers import read_text

        text = None if self.text is None else read_text(self.text)
        named = {name: getattr(self, name) for name in ("case", "pieces", "center", "whiten", "tokens")}
        return named | {"text": text, "report": _progress}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhereOne(Where):
    space: str = "input"
    """input, unembedding, contextual.1 ... (after a block, averaged over a text), or contextual: the last of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhereAll(Where):
    space: tuple[str, ...] = ()
    """input, unembedding, contextual (all layers), contextual.1 ...; all by default."""


def _progress(done: int, total: int) -> None:
    """The live line while contexts are read, on a terminal's standard error."""
    import sys

    if sys.stderr.isatty():
        print(f"\rreading contexts {done}/{total}", end="\r\n"[done == total :], file=sys.stderr, flush=True)


def load_model(run: str, checkpoint: str, figure: Path | None):
    """The model to look at. UserError for a figure's format before anything takes time, and for a run that diverged."""
    prepare_jax()
    if figure is not None:
        from lm.figures import check_format

        check_format(figure, "--figure")
    import jax
    import numpy as np

    from lm.run import load

    m = load(run, checkpoint)
    finite = all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(m.params))
    require(finite, f"{run}: parameters of step {m.step} are not finite; choose an earlier --checkpoint")
    return m


def _tell(o: Where, value: dict, text: str) -> None:
    if o.json:
        print_json(value)
        return
    lines = text.rstrip("\n").split("\n") + ([str(o.figure)] if o.figure else [])
    print("\n".join(map(printable, lines)))


# --- analogy, neighbours ---------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class AnalogyOptions(WhereOne):
    """king man woman: king - man + woman."""

    words: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Three words: from the first take the second, add the third."""
    method: Literal["3cosadd", "3cosmul"] = "3cosadd"
    """Sum of cosines (Mikolov 2013), or their product (Levy and Goldberg 2014)."""
    unexcluded: bool = False
    """Let the three words be answers, too."""
    n: Count = 10
    """Answers to show."""


def analogy(name: str, arguments: list[str]) -> None:
    o = parse(AnalogyOptions, arguments, "lm probe RUN analogy")
    require(len(o.words) == 3, f"an analogy takes three words, not {len(o.words)}: lm probe RUN analogy king man woman")
    m = load_model(name, o.checkpoint, o.figure)
    from lm import probe
    from lm.probe.report import describe_answer

    *_, space = probe.spaces_of(m, [o.space], words=o.words, **o.options())
    given = dict(case=o.case, restrict=o.restrict)
    found = probe.analogy(space, *o.words, method=o.method, exclude=not o.unexcluded, n=o.n, **given)
    if o.figure:
        from lm.probe.figures import draw_map

        b, a, c = o.words
        answer = found.answers[0][0] if found.answers else c
        draw_map(probe.principal_map(space, [a, b, c, answer], case=o.case), o.figure, pairs=[(a, b), (c, answer)])
    _tell(o, found.to_json(), describe_answer(found, "{} - {} + {}".format(*o.words)))


@dataclasses.dataclass(frozen=True)
class NeighboursOptions(WhereOne):
    """The words nearest to a word."""

    word: Annotated[str, tyro.conf.Positional]
    """The word."""
    n: Count = 10
    """Answers to show."""


def neighbours(name: str, arguments: list[str]) -> None:
    o = parse(NeighboursOptions, arguments, "lm probe RUN neighbours")
    m = load_model(name, o.checkpoint, o.figure)
    from lm import probe
    from lm.probe.report import describe_answer

    *_, space = probe.spaces_of(m, [o.space], words=[o.word], **o.options())
    found = probe.neighbours(space, o.word, n=o.n, case=o.case, restrict=o.restrict)
    if o.figure:
        from lm.probe.figures import draw_map

        words = [o.word, *(word for word, _ in found.answers)]
        draw_map(probe.principal_map(space, words, case=o.case), o.figure)
    _tell(o, found.to_json(), describe_answer(found, o.word))


# --- suite, similarity -----------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals(WhereAll):
    level: Level = 0.9
    """Coverage of the intervals."""
    samples: Count = 1000
    """Bootstrap samples."""
    seed: Seed = 0


@dataclasses.dataclass(frozen=True)
class SuiteOptions(Intervals):
    """Analogies as Google's file (": section", then `a b c d`) or BATS's folder (a file a section: `a<tab>b1/b2`)."""

    file: Annotated[Path, tyro.conf.Positional]
    """A file or a folder."""
    method: Literal["3cosadd", "3cosmul", "3cosavg", "lrcos"] = "3cosadd"
    """3cosavg and lrcos (Drozd 2016) ask each pair what the section's other pairs teach."""


def suite(name: str, arguments: list[str]) -> None:
    o = parse(SuiteOptions, arguments, "lm probe RUN suite")
    from lm import probe

    sections = probe.read_suite(o.file)
    m = load_model(name, o.checkpoint, o.figure)
    from lm.probe.report import describe_suite

    given = dict(restrict=o.restrict, level=o.level, samples=o.samples, seed=o.seed)
    found = probe.suite(m, sections, o.space, method=o.method, **given, **o.options())
    if o.figure:
        from lm.probe.figures import draw_suite

        draw_suite(found, o.figure)
    _tell(o, found.to_json() | {"tied": m.experiment.model.tied}, describe_suite(found))


@dataclasses.dataclass(frozen=True)
class SimilarityOptions(Intervals):
    """Spearman's correlation of cosines with people's scores, for files like WordSim-353."""

    file: Annotated[Path, tyro.conf.Positional]
    """Lines of two words and a score, separated by tabs, commas or spaces."""


def similarity(name: str, arguments: list[str]) -> None:
    o = parse(SimilarityOptions, arguments, "lm probe RUN similarity")
    from lm import probe

    probe.read_similarities(o.file)  # before the model: a malformed file is told at once
    m = load_model(name, o.checkpoint, o.figure)
    from lm.probe.report import describe_similarity

    given = dict(restrict=o.restrict, level=o.level, samples=o.samples, seed=o.seed)
    found = probe.similarity(m, o.file, o.space, **given, **o.options())
    if o.figure:
        from lm.probe.figures import draw_similarity

        draw_similarity(found, o.figure)
    rows = [dataclasses.asdict(one) for one in found]
    _tell(o, {"spaces": rows}, describe_similarity(found))


# --- geometry --------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class GeometryOptions(WhereAll):
    """clusters FILE: k-means against the groups in a file (": group", then words). directions FILE: each relation's
    direction from a file of analogies, asked of held-out pairs. map WORD... | FILE: principal components of words.
    isotropy: cosines of words beside random directions and 1/sqrt(D)."""

    what: Annotated[Literal["clusters", "directions", "map", "isotropy"], tyro.conf.Positional]
    words: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """A file, or words."""
    seed: Seed = 0


def geometry(name: str, arguments: list[str]) -> None:
    o = parse(GeometryOptions, arguments, "lm probe RUN geometry")
    from lm import probe

    groups, sections = _given(o)
    words = [word for section in sections for word in section.words]
    words += [word for some in groups.values() for word in some]
    m = load_model(name, o.checkpoint, o.figure)
    from lm.probe import figures, report

    many = probe.spaces_of(m, o.space, words=words, **o.options())
    found: Sequence
    draw: Callable[[], None]
    match o.what:
        case "clusters":
            found = [probe.clusters(space, groups, case=o.case, seed=o.seed) for space in many]
            draw = lambda: figures.draw_map(probe.principal_map(many[0], words), o.figure, groups=groups)  # noqa: E731
        case "directions":
            found = [one for space in many for one in probe.directions(space, sections, case=o.case)]
            draw = lambda: figures.draw_directions(found[: max(1, len(found) // len(many))], o.figure)  # noqa: E731
        case "map":
            found = [probe.principal_map(space, words, case=o.case) for space in many]
            pairs = [pair for section in sections for pair in section.one_way]
            draw = lambda: figures.draw_map(found[0], o.figure, pairs=pairs)  # noqa: E731
        case _:
            found = [probe.isotropy(space, restrict=o.restrict, seed=o.seed) for space in many]
            draw = lambda: figures.draw_isotropy(found, o.figure)  # noqa: E731
    if o.figure:
        draw()
    rows = [one.to_json() if o.what == "isotropy" else dataclasses.asdict(one) for one in found]
    _tell(o, {o.what: rows}, getattr(report, f"describe_{o.what}")(found))


def _given(o: GeometryOptions) -> tuple[dict[str, list[str]], list]:
    """Groups and sections of words: from a file, or the words themselves as one group."""
    from lm import probe

    if o.what == "isotropy":
        require(not o.words, f"geometry isotropy takes no words, not {' '.join(o.words)}")
        return {}, []
    if o.what == "map" and len(o.words) > 1:
        return {"": list(o.words)}, []
    require(len(o.words) == 1, f"geometry {o.what}: which FILE?" + (" Or words, three at least" * (o.what == "map")))
    if o.what == "clusters":
        return probe.read_groups(o.words[0]), []
    return {}, probe.read_suite(o.words[0])


ACTIONS = {
    "analogy": analogy, "neighbours": neighbours, "suite": suite, "similarity": similarity, "geometry": geometry,
}  # fmt: skip
