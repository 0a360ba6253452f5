"""What probes of embeddings found, as tables for a person."""

from collections.abc import Iterable, Sequence

from rich.table import Table

from lm.console import as_text
from lm.errors import printable
from lm.probe.analogies import Answer
from lm.probe.geometry import Clusters, Direction, Isotropy, Map
from lm.probe.similarities import Similarity
from lm.probe.suites import Suite


def table(columns: str, rows: Iterable[Sequence]) -> str:
    """Text; columns after the words in CAPITALS or before `|` are to the left, the others to the right."""
    left, _, right = columns.partition("|")
    made = Table(box=None, pad_edge=False, header_style="bold")
    for title in left.split(","):
        made.add_column(title.strip(), overflow="fold")
    for title in filter(None, right.split(",")):
        made.add_column(title.strip(), justify="right")
    for row in rows:
        made.add_row(*map(_cell, row))
    return as_text(made, width=150)


def _cell(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return " to ".join(map(_cell, value))
    return (
        f"{value:.3f}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else printable(str(value))
    )


def describe_answer(found: Answer, question: str) -> str:
    head = f"{question}   in {found.space}, {found.searched:,} words searched"
    head += f", {' '.join(found.excluded)} left out" if found.excluded else ", nothing left out"
    lines = [head + (f" ({found.about})" if found.about else ""), "", table("word | score", found.answers).rstrip()]
    if found.only_c:
        lines += ["", f"without analogy: nearest to the last word {found.only_c}, to the first {found.only_b}"]
    return "\n".join(lines) + "\n"


def describe_suite(found: Suite) -> str:
    rows = sorted(found.sections + found.totals, key=lambda row: list(found.spaces).index(row.space))
    if len(found.sections) == len(found.totals):
        rows = found.sections
    interval = f"{found.level:.0%} interval"
    columns = f"space, section | kept, dropped, accuracy, {interval}, not excluded, only c, only b, offset cosine"
    cells = [
        (r.space, r.name, r.kept, r.dropped, r.accuracy, r.interval, r.accuracy_unexcluded, r.only_c, r.only_b,
         r.offset_cosine) for r in rows
    ]  # fmt: skip
    notes = [
        f"{name}: {s['words']:,} words searched, {s['found']:,} of the suite's {s['asked']:,} among them"
        + (f"; {s['about']}" if s["about"] else "")
        for name, s in found.spaces.items()
    ]
    how = f"{found.method}, case rule {found.case}; intervals by bootstrap over pairs"
    return "\n".join([table(columns, cells), *notes, how]) + "\n"


def describe_similarity(found: Sequence[Similarity]) -> str:
    columns = "space | kept, dropped, Spearman, interval, Pearson, words"
    return table(
        columns, [(s.space, s.kept, s.dropped, s.rho, s.interval, s.pearson, s.words) for s in found]
    ) + _notes({s.space: s.about for s in found} | {"read as titles, not as a pair": found[0].titles})


def describe_clusters(found: Sequence[Clusters]) -> str:
    columns = "space | words, dropped, purity, by chance, silhouette, of the groups"
    rows = [
        (c.space, c.kept, c.dropped, c.purity, c.purity_by_chance, c.silhouette, c.silhouette_of_groups) for c in found
    ]
    lists = [f"{c.space} {i + 1}: {' '.join(words)}\n" for c in found for i, words in enumerate(c.clusters)]
    return table(columns, rows) + "\n" + "".join(lists)


def describe_directions(found: Sequence[Direction]) -> str:
    columns = "space, direction | pairs, dropped, in order, on their side, explained, by chance"
    rows = [
        (d.space, d.name, d.kept, d.dropped, d.ordered, d.separated, d.explained, d.explained_by_chance) for d in found
    ]
    return table(columns, rows) + "each pair held out in turn; in order by chance: 0.500\n"


def describe_map(found: Sequence[Map]) -> str:
    rows = [(m.space, word, x, y) for m in found for word, (x, y) in zip(m.words, m.places, strict=True)]
    return table("space, word | first, second", rows)


def describe_isotropy(found: Sequence[Isotropy]) -> str:
    columns = (
        "space | words, D, mean cosine, sd, 1/√D, sd of random, within 2/√D, of random, min Z/max Z, first component,"
        " effective D"
    )
    rows = [
        (i.space, i.words, i.width, i.mean_cosine, i.sd_cosine, i.sd_by_law, i.sd_of_random, i.nearly_orthogonal,
         i.nearly_orthogonal_of_random, i.partition, i.first_component, i.effective_dimensions) for i in found
    ]  # fmt: skip
    return table(columns, rows)


def _notes(about: dict[str, str]) -> str:
    return "".join(f"{name}: {text}\n" for name, text in about.items() if text)
