"""Fine-tuning on questions: what was found is counted by way and kind, and drawn."""

SCRIPT = "fine_tuning"


def found(script):
    ways = [*script.WAYS, script.UNREAD]
    return [
        script.Tuned(
            way, seed, {split: {"all": 0.5 + 0.1 * seed, "count": 0.25} for split in script.SPLITS}, 0.1 * i, 1000 * i
        )
        for i, way in enumerate(ways)
        for seed in (0, 1)
    ]


def test_tables(script):
    lines = script.table(found(script)).splitlines()
    assert lines[2].startswith("| all parameters | 0.550 (0.500 to 0.600) | 0.550 (0.500 to 0.600) | +0.000")
    assert lines[-1].startswith("| count | 0.25 |") and lines[-1].count("|") == 2 + 2 * (len(script.WAYS) + 1)


def test_figure(script, tmp_path):
    script.draw(found(script), tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 5000
