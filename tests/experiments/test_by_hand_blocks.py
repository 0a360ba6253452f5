"""The exercises of a block come out as by hand and as torch has them, and a wrong number stops them."""

import numpy as np
import pytest

from lm.figures import save

SCRIPT = "by_hand_blocks"
SECTIONS = ("several_heads", "position_by_position", "batch_norm", "residual_connections")


def test_every_section_is_run_here(script):
    assert tuple(section.__name__ for section in script.SECTIONS) == SECTIONS


@pytest.mark.parametrize("name", SECTIONS)
def test_sections_hold(script, name, capsys):
    """Each asserts its own values: in fractions, by closed forms, to the bit where it says so."""
    getattr(script, name)()
    assert len(capsys.readouterr().out) > 100


@pytest.mark.parametrize(
    ("section", "exercise", "changed"),
    [("several_heads", "HEADS", "Wo"), ("batch_norm", "FEATURES", None), ("batch_norm", "OTHER", None)],
)
def test_another_number_stops_them(script, monkeypatch, section, exercise, changed):
    """Blocks of one matrix are an average after all; a feature of other numbers; a neighbour that is the same."""
    values = getattr(script, exercise)
    if exercise == "HEADS":
        one = np.hstack([values["Wo"][:, :2]] * 2)
        values = values | {changed: one}
    else:
        values = 0 * values if exercise == "OTHER" else values + np.eye(4, dtype=int)
    monkeypatch.setattr(script, exercise, values)
    with pytest.raises(AssertionError):
        getattr(script, section)()


@pytest.mark.parity
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_several_heads_are_torchs(script, heads):
    """The library's heads, of whole numbers, against torch.nn.MultiheadAttention: mixtures projected, and weights."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(heads)
    X, Wq, Wk, Wv, Wo = (rng.integers(-2, 3, (4, columns)) for columns in (5, 4, 4, 4, 4))
    theirs = torch.nn.MultiheadAttention(4, heads, bias=False, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.tensor(np.vstack([Wq, Wk, Wv])))
        theirs.out_proj.weight.copy_(torch.tensor(Wo))
        x_TD = torch.tensor(X.T, dtype=torch.float64)
        y_TD, _ = theirs(x_TD, x_TD, x_TD)
    H = 4 // heads
    _, Y = script.multi_head(X, Wq, Wk, Wv, Wo, heads, rule=lambda S: S / H**0.5)
    np.testing.assert_allclose(Y, y_TD.numpy().T, rtol=0, atol=1e-12)


def test_the_figure_shows_the_numbers(script, tmp_path):
    figure = script.draw()
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert texts[16:32] == [f"{x:g}" for x in (1, 1, -1, -1, 1, -1, 1, -1, -1, -1, 1, 1, -1, 1, 1, -1)]
    assert texts[:2] == ["-0.34", "0.57"] and texts[32:34] == ["0", "0"]
    gradients = [line.get_ydata()[-1] for line in figure.axes[3].lines]
    assert gradients == [1.5**8, 0.5**8, 3.0**8, 2.0**8]
    save(figure, tmp_path / "blocks.svg")
    assert (tmp_path / "blocks.svg").stat().st_size > 10_000
