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
    if law.hold_outs is not None:
        lines += ["", *describe_hold_outs(law).splitlines()]
    lines += ["", *(f"warning: {text}" for text in law.warnings)] if law.warnings else []
    return "\n".join(lines) + "\n"


def _own_exponents(law: Law) -> list[str]:
    """What the exponents are in the points' own FLOPs, where those are not proportional to N D."""
    if "a" not in law.derived:
        return []
    own = law.exponents()
    if abs(own["a"].value - law.derived["a"].value) < 1e-3:
        return []
    said = [f"{name}* ~ C^{own[power].value:.4f} [{own[power].low:.4f}, {own[power].high:.4f}]"
            for name, power in (("N", "a"), ("D", "b"))]  # fmt: skip
    return ["", f"a and b are for C ~ N D; in the points' own FLOPs {', '.join(said)}"]


def _line(name: str, e: Estimate) -> str:
    return f"{name:<10}{_number(e.value):>12}{_number(e.se):>11}   {f'[{_number(e.low)}, {_number(e.high)}]':<25}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return ("inf" if value > 0 else "-inf") if math.isinf(value) else f"{value:.5g}"


def describe_hold_outs(law: Law) -> str:
    """The hold-outs on which the second of a prediction's intervals rests, in words."""
    found = law.hold_outs
    if not found.cuts:
        return "if the law holds: see the warnings for why there are no hold-outs"
    first, last, tenfold = found.cuts[0], found.cuts[-1], math.expm1(found.growth * math.log(10))
    furthest = max(cut["furthest"] for cut in found.cuts)
    return (
        f"hold-outs: {len(found.cuts)} refits of the {first['fitted']} to {last['fitted']} points of least compute "
        f"predicted the others, at up to {furthest:.3g} times the refit's compute;\n"
        f"they missed by {found.scatter:.2%} near by, and by {tenfold:.2%} a tenfold compute (scales of Student's t)"
    )


def describe_scores(rows: list[dict[str, Any]]) -> str:
    """Predictions beside what came true, with the interval if the law holds and the one by hold-outs."""
    head = f"{'params':>11}{'tokens':>11}{'predicted':>11}   {'if the law holds':<19}{'by hold-outs':<19}"
    lines = [head + f"{'actual':>9}{'error':>9}"]
    for row in rows:
        place = f"{_number(row.get('params')):>11}{_number(row.get('tokens')):>11}{row['predicted']:>11.5g}   "
        seen = f"{row['actual']:>9.5g}{row['error']:>+9.2%}" if "actual" in row else f"{'not yet':>9}"
        both = f"{_ends(row, ''):<19}{_ends(row, 'calibrated_'):<19}"
        lines.append(place + both + seen + _outside(row))
    scored = [row for row in rows if "actual" in row]
    if scored:
        mean = sum(abs(row["error"]) for row in scored) / len(scored)
        said = f"mean error {mean:.2%}; {sum(r['inside'] for r in scored)} of {len(scored)} inside their interval"
        wide = [row["inside_calibrated"] for row in scored if "inside_calibrated" in row]
        lines.append(said + (f" if the law holds, {sum(wide)} of {len(wide)} by hold-outs" if wide else ""))
    return "\n".join(lines) + "\n"


def _ends(row: dict[str, Any], which: str) -> str:
    """An interval's ends; a row without hold-outs has only the first."""
    low, high = row.get(f"{which}low"), row.get(f"{which}high")
    return "-" if low is None else f"[{low:.5g}, {high:.5g}]"


def _outside(row: dict[str, Any]) -> str:
    if row.get("inside", True):
        return ""
    return {True: "  outside the first", False: "  outside both", None: "  outside"}[row.get("inside_calibrated")]
