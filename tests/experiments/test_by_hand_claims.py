"""The exact statements hold, counts are of every parameter, and the figure shows what was measured."""

import itertools

import numpy as np
import pytest

import lm
from lm.model.api import build

SCRIPT = "by_hand_claims"
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["sinusoidal_positions", "layer_norm", "variance_of_scores", "parameters"])
def test_statements_hold(script, name, capsys):
    getattr(script, name)()
    assert len(capsys.readouterr().out) > 100


def test_every_parameter_is_counted_once(script):
    for c in (*script.MODELS.values(), lm.ModelConfig(layers=1, width=8, heads=2, vocab=8, bias=True, qk_norm=True)):
        assert sum(script.parts(c).values()) == build(c).parameter_count()[0]


def test_published_sizes(script):
    """GPT-2's 124,439,808 parameters, plus 47 rows that pad its vocabulary."""
    assert sum(script.parts(script.MODELS["GPT-2 124M"]).values()) == 124_439_808 + 47 * 768


def test_what_is_measured_is_printed_and_drawn(script, monkeypatch, tmp_path, capsys):
    """Real runs at small sizes, by a clock that a list stands in for."""
    clock = itertools.chain([0.01, 0.02, 0.01, 0.04], [1e-3, 1e-3, 4e-3, 2e-3, 16e-3, 4e-3])

    def fastest(run, rounds=5):
        run()
        return next(clock)

    monkeypatch.setattr(script, "fastest", fastest)
    monkeypatch.setattr(script, "DECODED", (4, 8))
    monkeypatch.setattr(script, "LENGTHS", (16, 32, 64))
    cache, growth = script.kv_cache(), script.quadratic_attention()
    assert cache["times"] == pytest.approx([2, 4]) and growth["ms, T^2"] == pytest.approx([1, 4, 16])
    assert (np.diff(cache["ratio"]) > 0).all() and 4 < cache["ratio"][1] < 4.5  # between (n + 2)/3 and (n + 1)/2
    assert "16.0 times as long to attend, 4.0 times for the rest" in capsys.readouterr().out
    figure = script.draw(
        {name: script.parts(script.MODELS[name]) for name in ("quick start", "Llama 1B")}, cache, growth
    )
    lines = [line.get_ydata() for line in figure.axes[2].lines]
    assert any(np.array_equal(line, cache["times"]) for line in lines)
    script.save(figure, tmp_path / "claims.svg")
    assert (tmp_path / "claims.svg").stat().st_size > 10_000


def test_a_linear_clock_is_refused(script, monkeypatch, capsys):
    """Times that do not grow faster than the rest's are not quadratic attention."""
    monkeypatch.setattr(script, "fastest", lambda run, rounds=5: 1.0)
    monkeypatch.setattr(script, "LENGTHS", (16, 32, 64))
    with pytest.raises(AssertionError):
        script.quadratic_attention()
