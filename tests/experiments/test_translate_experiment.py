"""The translators are of one size, the LSTM with attention is torch's, and what is measured is what it says."""

import lzma
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm.model import Inputs

SCRIPT = "translate"
PAIRS = [("Go.", "Va !"), ("Hi.", "Salut !"), ("Go.", "Bouge !"), ("I am here.", "Je suis là."), ("No.", "Non.")]
WIDTH, VOCAB = 6, 11


def small(script, attention: bool):
    """A tiny model of LSTM cells, with parameters that are nowhere zero."""
    shape = dict(layers=2, width=WIDTH, context=8, vocab=VOCAB)
    model = lm.build(script.LuongConfig(**shape, attention=attention, encoder=lm.RecurrentConfig(**shape)))
    leaves, tree = jax.tree.flatten(model.init(0))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return model, tree.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def read(model, params, tokens, source, count, **options):
    inputs = Inputs(jnp.array(tokens), source=Inputs(jnp.array(source), count_B=jnp.array(count)))
    return model.apply(params, inputs, **options)


def test_the_models_are_of_one_size(script):
    sizes = {
        name: lm.build(c_with_vocabulary(c)).parameter_count()[0]
        for name, c in script.MODELS.items()
        if name in script.SMALL
    }
    least, most = min(sizes.values()), max(sizes.values())
    assert most < 1.03 * least, sizes


def c_with_vocabulary(c):
    return lm.replace(lm.Experiment(model=c, data=lm.DataConfig(examples="pairs.tsv")), {"model.vocab": 4096}).model


@pytest.mark.parametrize("attention", [True, False])
def test_the_lstm_is_torchs(script, attention):
    """A row of 5 tokens and one of 3: torch reads each alone, from its end; scores "general", then tanh(W [c; h])."""
    torch = pytest.importorskip("torch")
    model, params = small(script, attention)
    p = jax.tree.map(lambda x: torch.tensor(np.asarray(x)), params)

    def cells(side: dict):
        made = torch.nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)
        layer = side["blocks"]
        for index in range(2):
            getattr(made, f"weight_ih_l{index}").data = layer["input"]["kernel"][index].T
            getattr(made, f"weight_hh_l{index}").data = layer["recurrent"][index].T
            getattr(made, f"bias_ih_l{index}").data = layer["input"]["bias"][index]
            getattr(made, f"bias_hh_l{index}").data.zero_()
        return made

    tokens, source = np.array([[1, 5, 9, 2], [1, 3, 3, 7]]), np.array([[4, 8, 2, 6, 10], [7, 3, 10, 0, 0]])
    logits_BTV, _ = read(model, params, tokens, source, [5, 3])
    for row, count in enumerate([5, 3]):
        states_1SD, last = cells(p["reader"])(p["source_embedding"][source[row, :count][::-1].copy()][None])
        h_1TD, _ = cells(p["blocks"])(p["embedding"][tokens[row]][None], last)
        if attention:
            scores_1TS = h_1TD @ p["general"]["kernel"] + p["general"]["bias"]
            weights_1TS = (scores_1TS @ states_1SD.transpose(1, 2)).softmax(-1)
            beside_1TC = torch.cat([weights_1TS @ states_1SD, h_1TD], dim=-1)
            h_1TD = torch.tanh(beside_1TC @ p["combine"]["kernel"] + p["combine"]["bias"])
        expected_TV = (h_1TD @ p["embedding"].T)[0, :, :VOCAB].detach().numpy()
        np.testing.assert_allclose(logits_BTV[row, :, :VOCAB], expected_TV, atol=1e-5)


def test_the_lstm_reads_no_padding_and_no_future_and_goes_on_from_its_state(script):
    model, params = small(script, attention=True)
    tokens, source = np.array([[1, 5, 9, 2]]), np.array([[7, 3, 10, 0, 0]])
    logits_BTV, _ = read(model, params, tokens, source, [3])
    padded_BTV, _ = read(model, params, tokens, np.array([[7, 3, 10, 8, 9]]), [3])
    assert np.array_equal(logits_BTV, padded_BTV)
    changed_BTV, _ = read(model, params, np.array([[1, 5, 9, 8]]), source, [3])
    assert np.array_equal(logits_BTV[:, :3], changed_BTV[:, :3]) and not np.array_equal(logits_BTV, changed_BTV)
    some_BTV, state = read(model, params, tokens[:, :2], source, [3], state=model.state(1, 8))
    rest_BTV, _ = model.apply(params, Inputs(jnp.array(tokens[:, 2:])), state=state)
    np.testing.assert_allclose(jnp.concatenate([some_BTV, rest_BTV], axis=1), logits_BTV, atol=1e-6)


@pytest.fixture(scope="module")
def tried(script, tmp_path_factory):
    """A translator of bytes that learnt the held-out pairs by heart, two of which begin alike, and the pairs."""
    folder = tmp_path_factory.mktemp("translate")
    (folder / "translation").mkdir()
    lines = "".join(f"{source}\t{target}\n" for source, target in [*PAIRS, ("word " * 11, "trop long")])
    (folder / "translation" / "fra-eng.valid.tsv").write_text(lines)
    with lzma.open(folder / "translation" / "fra-eng.train.tsv.xz", "wt") as file:
        file.write(lines)
    held = script.short_pairs(folder / "translation", folder / "runs")
    e = script.experiment("encoder-decoder", 0, 100, folder / "runs")
    tiny = {"model.width": 32, "model.layers": 1, "model.encoder.width": 32, "model.encoder.layers": 1}
    e = lm.replace(e, tiny | {"data.tokenizer": "bytes", "train.batch": 4, "model.context": 24})
    return script.roomy(lm.load(lm.train(e, folder=folder / "runs").path)), held


def test_pairs_are_short(tried):
    assert tried[1] == PAIRS


def test_answers_are_the_forced_choices_up_to_the_first_mistake(script, tried):
    """Two ways to the same: a state and the model's own tokens, and one pass over the reference's."""
    m, held = tried
    right, own = script.forced(m, held)["right"], script.free(m, held, 10)["own"]
    assert any(map(all, right)) and not all(map(all, right))
    for right_T, own_T in zip(right, own, strict=True):
        until = len(right_T) if all(right_T) else right_T.index(False) + 1
        assert right_T[:until] == own_T[:until]


def test_shares_behind_a_mistake(script):
    shares = script.after_mistakes([[1, 0, 1, 1], [1, 1], [0, 1]], [[1, 0, 0, 1], [1, 1], None])
    assert shares == (1.0, 0.5)
    assert script.places([3, 4], [3, 5, 6]) == [True, False, False] and script.places(None, [1]) is None


def test_nothing_is_done_without_the_data(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--data", str(tmp_path), "--runs", str(tmp_path / "runs")])
    script.main()
    assert "Nothing was done" in capsys.readouterr().out and not (tmp_path / "runs").exists()
