"""No command line ends in a traceback: each is carried out, or refused on one short line that leaves nothing behind.

All of them, or others: pytest tests/fuzz --fuzz-cases 1 --fuzz-seed 7
"""

import random

import fuzzing
import lines
import pytest

CASES = 1000


def test_command_lines_are_carried_out_or_refused_on_one_line(place, request):
    seed, times = (request.config.getoption(name) for name in ("--fuzz-seed", "--fuzz-cases"))
    bad = []
    for arguments in lines.lines(seed, round(CASES * times)):
        outcome = fuzzing.outcome(arguments, place)
        if outcome.faults():
            bad.append(outcome)
    assert not bad, f"{len(bad)} lines:\n{fuzzing.told(bad)}"


def test_damaged_files_are_refused_on_one_line(place, request):
    """Every kind of file that a verb reads, in every verb that reads it, after something happened to it."""
    rng = random.Random(request.config.getoption("--fuzz-seed"))
    readers = {
        "text": [
            ["eval", "tiny", "--stride", "99", "--text"],
            ["data", "prepare"],
            ["tokenizer", "train", "--kind", "chars"],
        ],
        "records": [["data", "prepare"], ["tokenizer", "train", "--kind", "words"]],
        "points": [["fit", "--bootstraps", "0"], ["plot", "--bootstraps", "0", "--figures", "losses"]],
        "suite": [["probe", "tiny", "suite"], ["probe", "tiny", "geometry", "directions"]],
        "groups": [["probe", "tiny", "geometry", "clusters"]],
        "facts": [["probe", "tiny", "facts"]],
        "similarity": [["probe", "tiny", "similarity"]],
        "tokenizer": [["tokenizer", "show"]],
        "design": [["sweep"]],
        "prediction": [["fit", "points.csv", "--bootstraps", "0", "--score"]],
        "demo": [["train", "--train.steps", "nothing"]],
    }
    bad = []
    for kind, commands in readers.items():
        for file in sorted(place.glob(f"damaged-{kind}*")):
            command = rng.choice(commands)
            where = 2 if command[0] in ("data", "tokenizer") else len(command) if command[0] != "train" else 1
            if command[0] in ("fit", "plot") and "--score" not in command:
                where = 1
            outcome = fuzzing.outcome([*command[:where], file.name, *command[where:]], place)
            if outcome.faults():
                bad.append(outcome)
    assert not bad, f"{len(bad)} lines:\n{fuzzing.told(bad)}"


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.slow
def test_other_command_lines(place, seed):
    bad = [case for case in (fuzzing.outcome(line, place) for line in lines.lines(seed, CASES)) if case.faults()]
    assert not bad, f"{len(bad)} lines:\n{fuzzing.told(bad)}"
