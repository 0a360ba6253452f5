"""The design of a sweep: which models, how long, from which trunk. Made by `lm plan`, read by `lm sweep`."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from rich.table import Table

from lm.config import ModelBase
from lm.console import as_text
from lm.errors import UserError, require
from lm.files import whole
from lm.scaling.chinchilla import Chinchilla
from lm.tables import facts, table

TITLES = (
    "parameters", "tokens", "tok/param", "batch", "steps", "branch at", "cooldown", "FLOPs", "adds", "seconds"
)  # fmt: skip
"""Columns of a design's table, beside the model."""


def shape(c: ModelBase, layers: int, width: int, heads: int) -> dict[str, Any]:
    """The settings that size a model like this one; an architecture without heads takes the layers and the width.

    Heads share nothing, and a feed-forward layer has its default width.
    """
    sizes = dict(layers=layers, width=width, heads=heads, kv_heads=None, head_width=None, feedforward=None)
    fields = {field.name for field in dataclasses.fields(c)}
    return {f"model.{name}": value for name, value in sizes.items() if name in fields}


@dataclasses.dataclass(frozen=True)
class Row:
    """One trained model: a trunk at a constant rate up to `branch_step`, then a cooldown of its own."""

    name: str
    trunk: str
    """Rows of a trunk share size, batch and all steps before their branches."""
    layers: int
    width: int
    heads: int
    params_total: int
    params_nonembedding: int
    batch: int
    """Sequences in a step."""
    steps: int
    branch_step: int
    cooldown_steps: int
    """steps = branch_step + cooldown_steps."""
    tokens: int
    flops: float
    """Exact training FLOPs of the model, as if trained alone: C."""
    flops_added: float
    """What this row costs once the trunk's earlier rows are there: more of the trunk, and the cooldown."""
    seconds: float | None
    """Predicted, of what it adds with one evaluation; None where no rate is known."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, where = getattr(self, field.name), f"row {str(self.name)[:40]}: {field.name}"
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if field.type is str:
                require(isinstance(value, str), f"{where} is no text")
            elif field.type is int:
                least = 0 if field.name == "branch_step" else 1
                right = number and isinstance(value, int) and value >= least
                require(right, f"{where} is not a whole number from {least} up")
            elif value is not None or field.name != "seconds":
                require(number and 0 < value < math.inf, f"{where} is not a positive number")
        right = self.branch_step == self.steps - self.cooldown_steps
        require(right, f"row {self.name}: {self.steps} steps are not {self.branch_step} and {self.cooldown_steps} more")

    def changes(self, c: ModelBase) -> dict[str, Any]:
        """Settings that make an experiment with this model the row's, trained alone; see lm.settings.replace."""
        return shape(c, self.layers, self.width, self.heads) | {
            "name": self.name, "train.batch": self.batch, "train.steps": self.steps,
            "schedule.name": "wsd", "schedule.decay": self.cooldown_steps,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Design:
    """A sweep, and what it is predicted to cost and to tell, if the assumed law and noise are right."""

    experiment: dict[str, Any]
    """What all rows have in common, as lm.settings.to_dict gives it."""
    rows: tuple[Row, ...]
    law: Chinchilla
    law_from: str
    """Where the assumed law and noise come from."""
    noise: float
    """Standard deviation of ln L between seeds."""
    shared_noise: float
    """Fraction of its variance that rows of a trunk have in common."""
    standard_errors: dict[str, float]
    """Predicted, of E, A, B, alpha, beta and a = beta / (alpha + beta), N being all parameters."""
    condition: float
    target: dict[str, float]
    """flops, params and tokens of the compute-optimal model to extrapolate to, its loss, and the standard error of the
    predicted loss as a fraction of it."""
    corpus_tokens: int | None
    flops: float
    """What the whole sweep costs."""
    flops_without_trunks: float
    """What it would cost, had every row been trained from scratch."""
    seconds: float | None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The design as JSON has it: what its file holds, and `lm plan --json` prints."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def write(self, path: str | Path) -> None:
        """Write the file that `read` understands."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as file:
            file.write(json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> "Design":
        """The design in a file that `write` made. Raises UserError when it is not one."""
        require(Path(path).is_file(), f"no design at {path}; make one with: lm plan CONFIG --minutes 15 --out {path}")
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant)
            require(isinstance(values, dict), "a JSON object is expected")
            missing = sorted({field.name for field in dataclasses.fields(cls)} - values.keys())
            require(not missing, f"no {', '.join(missing)}")
            require(isinstance(values["experiment"], dict) and bool(values["rows"]), "no experiment, or no rows")
            rows = tuple(Row(**row) for row in values.pop("rows"))
            law, warnings = Chinchilla(**values.pop("law")), tuple(values.pop("warnings"))
            return cls(rows=rows, law=law, warnings=warnings, **values)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            why = str(error).removeprefix("Row.__init__() ").removeprefix("Design.__init__() ")[:200]
            raise UserError(f"{path} is not a design that `lm plan --out` wrote: {why}") from error

    def table(self) -> str:
        """Text for a person: rows, totals, and what the sweep is predicted to tell."""
        return as_text(self._rows(), "", self._facts(), *(f"Note: {warning}" for warning in self.warnings), width=120)

    def _rows(self) -> Table:
        rows = [
            (
                f"{r.layers} x {r.width}", r.params_total, r.tokens, f"{r.tokens / r.params_total:.1f}", str(r.batch),
                r.steps, r.branch_step, r.cooldown_steps, f"{r.flops:.2e}", f"{r.flops_added:.2e}",
                "" if r.seconds is None else f"{r.seconds:.1f}",
            )
            for r in self.rows
        ]  # fmt: skip
        return table(("model", *TITLES), rows)

    def _facts(self) -> Table:
        se, t, law = self.standard_errors, self.target, self.law
        trunks, saved = len({row.trunk for row in self.rows}), self.flops_without_trunks / self.flops
        formula = f"L = {law.E:.3g} + {law.A:.3g}/N^{law.alpha:.3g} + {law.B:.3g}/D^{law.beta:.3g}"
        predicted = {"alpha": law.alpha, "beta": law.beta, "E": law.E, "a = beta / (alpha + beta)": law.a}
        ahead = f"{t['flops']:.2e} FLOPs ({t['params']:,.0f} parameters, {t['tokens']:,.0f} tokens)"
        return facts([
            ("models", f"{len(self.rows)} from {trunks} trunks, {saved:.2f} times cheaper than each alone"),
            ("FLOPs in all", f"{self.flops:.3e}"),
            *([] if self.seconds is None else [("time in all", f"{self.seconds / 60:.1f} minutes")]),
            ("law", f"{formula} ({self.law_from})"),
            ("noise", f"{self.noise:.2%} of the loss between seeds, {self.shared_noise:.0%} shared in a trunk"),
            *((f"predicted {name}", f"{v:.3f} +- {se[name.split()[0]]:.3f}") for name, v in predicted.items()),
            ("condition number", f"{self.condition:.0f}"),
            ("extrapolation", f"to {ahead}: loss {t['loss']:.3f} +- {t['error']:.1%}"),
        ])  # fmt: skip


def _refuse_constant(word: str):
    """JSON has no NaN and no infinity, though Python reads them."""
    raise UserError(f"{word} is no number")
