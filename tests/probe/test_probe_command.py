"""`lm probe RUN ACTION` as people use it: the keys that programs rely on, tables, figures, and mistakes on one line."""

import importlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import tiny

from lm.probe import actions

ROW = {
    "name", "kept", "dropped", "accuracy", "accuracy_unexcluded", "only_c", "only_b", "offset_cosine", "interval",
}  # fmt: skip
SUITE = ": one\nking queen fish mat\nfish mat king queen\nking queen river fish\n: two\nking queen absent mat\n"
SPACES = ["input", "unembedding", "contextual.1", "contextual.2"]


@pytest.fixture(scope="module")
def words_run(corpus, tmp_path_factory, session_cache):
    """The tiny experiment on words, 10 steps of it."""
    from lm.training.loop import train

    e = tiny.experiment(corpus, data__tokenizer="words", data__vocab=300, train__steps=10)
    return train(e, folder=tmp_path_factory.mktemp("words") / "runs")


@pytest.fixture
def place(workplace, words_run, tiny_run):
    """A directory with runs/words, runs/tiny (of characters) and files to ask."""
    shutil.copytree(words_run.path, workplace / "runs" / "words")
    shutil.copytree(tiny_run.path, workplace / "runs" / "tiny")
    (workplace / "suite.txt").write_text(SUITE)
    (workplace / "rated.txt").write_text("king\tqueen\t9\nking\tmat\t1\nfish\triver\t7\nold\tabsent\t1\nsat\tran\t5\n")
    (workplace / "groups.txt").write_text(": who\nking queen fish\n: what\nmat river the\n")
    pairs = ": way\nking queen fish mat\nking queen river sat\n"
    (workplace / "pairs.txt").write_text(pairs)
    return workplace


@pytest.fixture
def answer(lm):
    def run(*arguments):
        status, out, err = lm("probe", *arguments, "--json")
        assert status == 0, err
        assert out.count("\n") == 1
        return json.loads(out)

    return run


def test_an_analogy(place, answer, lm):
    found = answer("words", "analogy", "king", "queen", "fish", "--n", 3)
    assert found["space"] == "input" and found["excluded"] == ["king", "queen", "fish"]
    assert len(found["answers"]) == 3 and all(set(one) == {"word", "score"} for one in found["answers"])
    assert not {"king", "queen", "fish"} & {one["word"] for one in found["answers"]}
    free = answer("words", "analogy", "king", "queen", "fish", "--space", "unembedding", "--unexcluded", "--n", 20)
    assert free["space"] == "unembedding" and free["excluded"] == []
    assert {"king", "fish"} <= {one["word"] for one in free["answers"]}
    status, out, _ = lm("probe", "words", "analogy", "king", "queen", "fish")
    assert status == 0 and "king - queen + fish" in out and "without analogy: nearest to the last word" in out
    by_hand = answer("words", "analogy", "king", "queen", "fish", "--space", "contextual.1", "--center", "--n", 1)
    assert by_hand["space"] == "contextual.1, centred"


def test_neighbours(place, answer):
    found = answer("words", "neighbours", "king", "--n", 4, "--space", "contextual")
    assert found["space"] == "contextual.2" and found["excluded"] == ["king"] and "places" in found["about"]
    scores = [one["score"] for one in found["answers"]]
    assert scores == sorted(scores, reverse=True) and len(scores) == 4 and max(scores) <= 1.0001


def test_a_suite_in_every_space(place, answer, lm):
    found = answer("words", "suite", "suite.txt")
    assert [(row["space"], row["name"]) for row in found["sections"]] == [
        (s, n) for s in SPACES for n in ("one", "two")
    ]
    assert all(set(row) >= ROW for row in found["sections"])
    one, two = found["sections"][:2]
    assert (one["kept"], one["dropped"], two["kept"], two["dropped"]) == (3, 0, 0, 1)
    assert two["accuracy"] is None and 0 <= one["accuracy"] <= 1 and found["tied"] is False
    chosen = answer("words", "suite", "suite.txt", "--space", "input", "contextual.2", "--method", "3cosmul")
    assert list(chosen["spaces"]) == ["input", "contextual.2"] and chosen["method"] == "3cosmul"
    for method in ("3cosavg", "lrcos"):
        assert answer("words", "suite", "suite.txt", "--space", "input", "--method", method)["totals"][0]["kept"] == 3
    status, out, _ = lm("probe", "words", "suite", "suite.txt", "--text", "suite.txt")
    assert status == 0 and "words searched" in out and "bootstrap over pairs" in out and "not excluded" in out


def test_a_folder_of_sections_with_bats_names(place, lm):
    """They have brackets, which a table must not take for a style."""
    (place / "bats" / "1_Some").mkdir(parents=True)
    (place / "bats" / "1_Some" / "I01 [noun - plural_reg].txt").write_text("king\tqueen/fish\nmat\triver\n")
    status, out, err = lm("probe", "words", "suite", "bats", "--space", "input", "--figure", "bats.svg")
    assert status == 0, err
    assert "input  I01 [noun - plural_reg]     2        0" in out and "</svg>" in (place / "bats.svg").read_text()


def test_similarity(place, answer):
    found = answer("words", "similarity", "rated.txt", "--space", "input")["spaces"]
    assert [(one["space"], one["kept"], one["dropped"]) for one in found] == [("input", 4, 1)]
    assert -1 <= found[0]["rho"] <= 1


def test_geometry(place, answer):
    (found,) = answer("words", "geometry", "clusters", "groups.txt", "--space", "input")["clusters"]
    assert 0.5 <= found["purity"] <= 1 and sum(map(len, found["clusters"])) == found["kept"] == 6
    found = answer("words", "geometry", "directions", "pairs.txt")["directions"]
    assert [one["space"] for one in found] == SPACES and found[0]["kept"] == 3
    (found,) = answer("words", "geometry", "map", "king", "queen", "fish", "--space", "unembedding")["map"]
    assert found["words"] == ["king", "queen", "fish"] and len(found["places"]) == 3
    (found,) = answer("words", "geometry", "isotropy", "--space", "input")["isotropy"]
    assert found["sd_by_law"] == 0.25 and found["width"] == 16


@pytest.mark.parametrize("action", [
    "analogy king queen fish", "neighbours king", "suite suite.txt --space input unembedding",
    "similarity rated.txt --space input unembedding", "geometry clusters groups.txt --space input",
    "geometry directions pairs.txt --space input", "geometry map pairs.txt --space input",
    "geometry isotropy --space input unembedding",
])  # fmt: skip
def test_figures(place, lm, action):
    status, out, err = lm("probe", "words", *action.split(), "--figure", "made/figure.svg")
    assert status == 0, err
    assert out.splitlines()[-1] == "made/figure.svg" and "</svg>" in (place / "made" / "figure.svg").read_text()


@pytest.mark.parametrize("arguments, said", [
    ("words", "no action given (lm probe RUN ablate | analogy | attention |"),
    ("words analogies king queen fish", "analogies: no such action; did you mean analogy?"),
    ("analogy king queen fish", "analogy: the run comes first: lm probe RUN analogy ..."),
    ("word neighbours king", "no run word; did you mean words?"),
    ("words analogy king queen", "an analogy takes three words, not 2"),
    ("words analogy king queen fsh", "words of space input; did you mean fish? (words of several tokens:"),
    ("words neighbours king --space inside", "space inside: no such space"),
    ("words neighbours king --n 0", "--n 0: must be at least 1"),
    ("words neighbours king --figure a.jpg", "--figure a.jpg: write a .png, .svg, .pdf"),
    ("words suite nowhere.txt", "cannot read nowhere.txt: No such file or directory"),
    ("words suite rated.txt", "rated.txt, line 1: words before the first section"),
    ("words suite suite.txt --level 2", "--level 2.0: must be above 0 and below 1"),
    ("words suite suite.txt --restrict 0", "--restrict 0: must be at least 1"),
    ("words suite suite.txt --restrict 1 --space input", "no question kept of 4: the vocabulary lacks"),
    ("words similarity suite.txt", "suite.txt, line 1: `word word score` was expected, not ': one'"),
    ("words geometry clusters", "geometry clusters: which FILE?"),
    ("words geometry isotropy king", "geometry isotropy takes no words, not king"),
    ("words geometry map king queen", "2 of 2 words are in space input: a map needs at least three"),
    ("words geometry shape", "invalid choice"),
    ("words geometry isotropy --seed -1", "--seed -1: must be at least 0"),
    ("words similarity rated.txt --samples 0", "--samples 0: must be at least 1"),
    ("words neighbours king --space contextual.1 --tokens 0", "--tokens 0: must be at least 1"),
    ("words suite suite.txt --level nan", "--level nan: not a finite number"),
    ("words suite suite.txt --samples 2000000000", "samples 2000000000, seed 0: a level between 0 and 1"),
    ("words suite suite.txt --seed 18446744073709551616", "--seed 18446744073709551616: must be at least 0"),
    ("words suite pipe", "cannot read pipe: not a file of text"),
    ("words suite latin.txt", "latin.txt, line 3: not UTF-8 text"),
    ("words suite suite.txt --text pipe", "--text pipe: is no regular file"),
    ("words similarity pipe", "cannot read pipe: not a file of text"),
    ("words geometry clusters latin.txt", "latin.txt, line 3: not UTF-8 text"),
    ("words neighbours \x1b[31mking", "\\x1b[31mking: not among the"),
    ("words neighbours [/bold]", "[/bold]: not among the"),
    ("words neighbours \u3000\u00a0", "a word is blank"),
    ("tiny neighbours king", "no word is a single token of tokenizer chars: average over pieces"),
])  # fmt: skip
def test_mistakes_are_told_on_one_line(place, lm, arguments, said):
    os.mkfifo(place / "pipe")
    (place / "latin.txt").write_bytes(b": one\nking queen fish mat\nk\xf6nig queen fish mat\n")
    status, out, err = lm("probe", *arguments.split(" "))
    assert (status, out) == (2, ""), err
    assert said in err and err.startswith("lm: ") and err.count("\n") == 1


@pytest.mark.parametrize("verb", ["suite", "geometry directions"])
def test_names_with_markup_and_control_characters_are_shown_as_they_are_and_harm_no_terminal(place, lm, verb):
    """In tables and figures; dollars are no formula."""
    name = "a[/x] \x1b[31mred $x_^$"
    (place / "odd.txt").write_text(f": {name}\nking queen fish mat\nking queen river sat\n")
    arguments = ("words", *verb.split(), "odd.txt", "--space", "input")
    status, out, err = lm("probe", *arguments, "--figure", "odd.svg")
    assert (status, err) == (0, "") and "a[/x] \\x1b[31mred $x_^$" in out and "\x1b" not in out
    found = json.loads(lm("probe", *arguments, "--json")[1])
    assert found["sections" if verb == "suite" else "directions"][0]["name"] == name


def test_characters_have_words_when_their_pieces_are_averaged(place, answer):
    found = answer("tiny", "analogy", "king", "queen", "fish", "--pieces", "mean", "--space", "contextual.2")
    assert found["searched"] == 3 and found["answers"] == []


def test_public_names_are_there_whatever_was_imported_before():
    """A module of the same name would hide a function once it is imported."""
    from lm import probe
    from lm.commands.probe import names

    for _ in range(2):
        assert all(callable(getattr(probe, name)) for name in probe.__all__ if not name.isupper())
        for name in names():
            importlib.import_module(f"lm.probe.actions.{name}")
    assert probe.analogy is importlib.import_module("lm.probe.actions.analogy").analogy
    with pytest.raises(AttributeError):
        probe.nothing  # noqa: B018


def test_a_module_beside_the_others_is_a_probe(place, lm, monkeypatch):
    """One file: its first line is listed, its options parsed, its report printed."""
    (place / "length.py").write_text(
        '"""length WORD: how long a word is."""\n'
        "import dataclasses\n"
        "from typing import Annotated\n"
        "import tyro\n"
        "from lm.probe.options import ProbeOptions, Report\n"
        "from lm.tables import table\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Options(ProbeOptions):\n"
        "    word: Annotated[str, tyro.conf.Positional]\n"
        "def run(m, o):\n"
        "    value = {'length': len(o.word), 'vocab': m.tokenizer.n_vocab}\n"
        "    return Report(value, [table(('of', 'letters'), [(o.word, len(o.word))])], print)\n"
    )
    monkeypatch.setattr("lm.probe.actions.__path__", [*actions.__path__, str(place)])
    assert "  length WORD " in lm("probe")[1] and "how long a word is" in lm("probe")[1]
    assert json.loads(lm("probe", "words", "length", "king", "--json")[1])["length"] == 4
    assert lm("probe", "words", "length", "king")[1].split() == ["of", "letters", "king", "4"]
    assert "did you mean length?" in lm("probe", "words", "lenght", "king")[2]


def test_help_names_every_action_without_jax():
    code = (
        "import sys; from lm.cli import main; from lm.commands.probe import names, usage\n"
        "assert len(names()) == 11 and all(f'\\n  {name} ' in usage() for name in names())\n"
        "print(main(['probe']), main(['probe', 'x', 'analogyy']), 'jax' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "0 2 False" and done.stdout.startswith("lm probe RUN ACTION")
