"""A damaged run's folder is refused on one short line, or served where the damage touches nothing that is read."""

import random
import shutil

import damage
import fuzzing
import pytest

FOLDERS = 100
VERBS = (
    ["eval", "RUN"],
    ["sample", "RUN", "--max-tokens", "2", "--prompt", "the"],
    ["runs", "--folder", "damaged"],
    ["plot", "RUN"],
    ["probe", "RUN", "loss", "the king"],
    ["tokenizer", "show", "RUN", "--text", "the"],
    ["train", "demo", "--name", "tiny"],
    ["train", "RUN"],
)
"""RUN is the damaged folder, called as it was recorded; `train demo --name tiny` goes on with it as runs/tiny."""


def tried(place, seed: int, folders: int, each: int = 1) -> list[str]:
    """The faults of what verbs, `each` of them a folder, made of folders that were damaged."""
    rng, bad = random.Random(seed), []
    whole, runs = place / "whole", place / "runs" / "tiny"
    if not whole.exists():
        shutil.copytree(runs, whole)
    for number in range(folders):
        shutil.rmtree(place / "damaged", ignore_errors=True)
        shutil.copytree(whole, place / "damaged" / "tiny")
        done = damage.damage(place / "damaged" / "tiny", rng)
        for verb in (VERBS[number % len(VERBS)], *rng.sample(VERBS, each - 1)):
            if "tiny" in verb:
                shutil.rmtree(runs)
                shutil.copytree(place / "damaged" / "tiny", runs)
            arguments = ["damaged/tiny" if word == "RUN" else word for word in verb]
            outcome = fuzzing.outcome(arguments, place)
            if faults := [fault for fault in outcome.faults() if verb[0] != "train" or "one line" not in fault]:
                bad.append(f"{done}: {outcome}\n    {'; '.join(faults)}")
    shutil.rmtree(runs)
    shutil.copytree(whole, runs)
    return bad


def test_damaged_runs_are_refused_on_one_line(place, request):
    seed, times = (request.config.getoption(name) for name in ("--fuzz-seed", "--fuzz-cases"))
    bad = tried(place, seed, round(FOLDERS * times))
    assert not bad, f"{len(bad)}:\n" + "\n".join(bad)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_other_damaged_runs(place, seed):
    bad = tried(place, seed, FOLDERS, each=3)
    assert not bad, f"{len(bad)}:\n" + "\n".join(bad)
