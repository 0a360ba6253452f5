"""What the command's probes share: their options and what they hand back."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from lm.config import ONE_DEVICE, ParallelConfig
from lm.errors import require
from lm.limits import Count, InputFile, Level, Seed

if TYPE_CHECKING:
    from rich.table import Table

    from lm.model.trained import Trained
    from lm.probe.words import Space


@dataclasses.dataclass(frozen=True)
class Report:
    """What a probe found, for a program, for a person, and as a figure."""

    value: dict[str, Any]
    """The object that --json prints."""
    parts: Sequence["Table | str"]
    """Tables and lines, printed below each other."""
    draw: Callable[[Path], Any]
    """Draw the figure to a file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Options that every probe takes."""

    checkpoint: str = "latest"
    """latest, best (by validation loss), or a step."""
    figure: Path | None = None
    """Draw what was found to this .png, .svg or .pdf."""
    json: bool = False
    """One JSON object on standard output, nothing else there."""
    parallel: tyro.conf.FlagConversionOff[ParallelConfig] = ONE_DEVICE
    """Devices that the model is spread over, one by default: for a model larger than one of them."""

    def check(self) -> None:
        """Raise UserError for what can be told before the model is loaded, such as a malformed file."""

    def check_vectors(self, file: Path) -> None:
        """Raise UserError for options that are of a model, where a file of word vectors stands in its place."""
        require(self.checkpoint == "latest", f"--checkpoint {self.checkpoint}: {file} is no run; leave it out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InsideOptions(ProbeOptions):
    """Options of the probes that look inside the model."""

    cached: bool = False
    """Read token by token through the KV cache, as generation does; the result is the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordOptions(ProbeOptions):
    """Options of the probes of words: which vectors, of which words."""

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

    def check_vectors(self, file: Path) -> None:
        """Raise UserError for what a file of word vectors does not have: several spaces, tokens, places in a text."""
        super().check_vectors(file)
        names = (self.space,) if isinstance(self.space, str) else self.space
        wrong = next((name for name in names if name != "input"), None)
        require(wrong is None, f"--space {wrong}: {file} is one space; leave it out")
        require(self.pieces == "single", f"--pieces {self.pieces}: the words of {file} are whole; leave it out")
        require(self.text is None, f"--text {self.text}: {file} has no contextual spaces; leave it out")

    def spaces(self, m: "Trained | Space", names: Sequence[str], words: Iterable[str]) -> list["Space"]:
        """The model's spaces of these names, as the options say; of a file of word vectors the one that it holds."""
        from lm.data.readers import read_text
        from lm.probe.spaces import spaces_of
        from lm.probe.words import Space

        if isinstance(m, Space):
            return spaces_of(m, center=self.center, whiten=self.whiten)
        return spaces_of(
            m, names, words=words, pieces=self.pieces, case=self.case, center=self.center, whiten=self.whiten,
            text=None if self.text is None else read_text(self.text), tokens=self.tokens, report=_progress,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneSpaceOptions(WordOptions):
    """Options of the probes of words in one space."""

    space: str = "input"
    """input, unembedding, contextual.1 ... (after a block, averaged over a text), or contextual: the last of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpacesOptions(WordOptions):
    """Options of the probes of words in several spaces."""

    space: tuple[str, ...] = ()
    """input, unembedding, contextual (all layers), contextual.1 ...; all by default."""


MOST_SAMPLES = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class BootstrapOptions(SpacesOptions):
    """Options of the probes that score a file in several spaces."""

    level: Level = 0.9
    """Coverage of the intervals."""
    samples: Count = 1000
    """Bootstrap samples."""
    seed: Seed = 0


def require_bootstrap(level: float, samples: int, seed: int) -> None:
    """Raise UserError unless these are the options of a bootstrap."""
    require(
        0 < level < 1 and 1 <= samples <= MOST_SAMPLES and seed >= 0,
        f"level {level}, samples {samples}, seed {seed}: a level between 0 and 1, one sample to {MOST_SAMPLES:,},"
        " a seed >= 0",
    )


def _progress(done: int, total: int) -> None:
    """Show on a terminal's standard error how far the reading of contexts is."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\rreading contexts {done}/{total}", end=end, file=sys.stderr, flush=True)
