"""A fitted law in words."""

import math
from typing import Any

from lm.scaling.law import Estimate, Law
from lm.scaling.verdicts import DEFINITION


def describe(law: Law) -> str:
    """The law, its parameters with intervals and verdicts, and everything that qualifies them."""
    lines = [
        f"{law.name}: {law.formula}   ({law.source})",
        f"{law.points} points" + (f", {law.dropped} dropped" if law.dropped else "")
        + f", {law.method}, objective {law.objective:.7g}, condition number {law.condition:.3g}",
        "  ".join(f"{name}: {how};" for name, how in law.conventions.items()).rstrip(";"),
        "",
        f"{'':<10}{'value':>12}{'se':>11}   {law.level:.0%} interval{'':<13}identified",
    ]  # fmt: skip
    for name, e in law.parameters.items():
        lines.append(_line(name, e) + law.identifiable[name])
    lost = [name for name, said in law.identifiable.items() if said.startswith("no")]
    rests = f"derived; {', '.join(lost)} not identified" if lost else "derived"
    lines += [_line(name, e) + rests for name, e in law.derived.items()]
    lines += ["", *DEFINITION.splitlines()]
    lines += _own_exponents(law)
    if law.alternatives:
        lines += ["", "a by other valleys: " + ", ".join(f"{k} {v:.4f}" for k, v in law.alternatives.items())]
    if law.dropping:
        shift = ", ".join(f"{name} {kept:.4g} -> {all_:.4g}" for name, (kept, all_) in law.dropping.items())
        lines += ["", f"with the {law.dropped} dropped points: {shift}"]
    if law.held_out:
        lines += ["", *describe_scores(law.held_out).splitlines()]
    lines += ["", *(f"warning: {text}" for text in law.warnings)] if law.warnings else []
    return "\n".join(lines) + "\n"


def _own_exponents(law: Law) -> list[str]:
    """What the exponents are in the points' own FLOPs, where those are not proportional to N D."""
    if "a" not in law.derived:
        return []
    own = law.exponents()
    if abs(own["a"].value - law.derived["a"].value) < 1e-3:
        return []
    said = [f"{of}* ~ C^{own[n].value:.4f} [{own[n].low:.4f}, {own[n].high:.4f}]" for of, n in (("N", "a"), ("D", "b"))]
    return ["", f"a and b are for C ~ N D; in the points' own FLOPs {', '.join(said)}"]


def _line(name: str, e: Estimate) -> str:
    return f"{name:<10}{_number(e.value):>12}{_number(e.se):>11}   {f'[{_number(e.low)}, {_number(e.high)}]':<25}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return ("inf" if value > 0 else "-inf") if math.isinf(value) else f"{value:.5g}"


def describe_scores(rows: list[dict[str, Any]]) -> str:
    """Predictions beside what came true."""
    lines = [f"{'params':>11}{'tokens':>11}{'predicted':>11}   {'interval':<20}{'actual':>9}{'error':>9}"]
    for row in rows:
        place = f"{_number(row.get('params')):>11}{_number(row.get('tokens')):>11}{row['predicted']:>11.5g}   "
        seen = f"{row['actual']:>9.5g}{row['error']:>+9.2%}" if "actual" in row else f"{'not yet':>9}"
        inside = "" if row.get("inside", True) else "  outside"
        interval = f"[{row['low']:.5g}, {row['high']:.5g}]"
        lines.append(place + f"{interval:<20}" + seen + inside)
    scored = [row for row in rows if "actual" in row]
    if scored:
        mean = sum(abs(row["error"]) for row in scored) / len(scored)
        lines.append(
            f"mean error {mean:.2%}; {sum(r['inside'] for r in scored)} of {len(scored)} inside their interval"
        )
    return "\n".join(lines) + "\n"
