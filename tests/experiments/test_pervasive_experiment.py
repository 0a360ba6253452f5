"""The grid is causal along the target and blind to padding; its convolution is torch's; the contest is of equals."""

import lzma
import sys

import jax
import numpy as np
import pytest
from flax import nnx

import lm

SCRIPT = "pervasive"
V, B, S, T = 20, 3, 6, 7


@pytest.fixture(scope="module")
def grid(script):
    """A small model whose every parameter is drawn, a function of source, counts and target so far, and inputs."""
    graph, state = nnx.split(script.Pervasive(V, width=4, layers=3, growth=4, rows=2, rngs=nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(nnx.to_pure_dict(state))
    rng = np.random.default_rng(0)
    drawn = jax.tree.unflatten(tree, [rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])
    logits = jax.jit(script.logits_of_pervasive(graph))
    tokens = rng.integers(V, size=(B, S)), np.array([S, 4, 1]), rng.integers(V, size=(B, T))
    return lambda source_BS, count_B, tokens_BT: np.asarray(logits(drawn, source_BS, count_B, tokens_BT)), tokens


@pytest.mark.parametrize("place", [0, 3, T - 1])
def test_a_future_target_changes_nothing_before_it(grid, place):
    logits, (source_BS, count_B, tokens_BT) = grid
    changed_BT = tokens_BT.copy()
    changed_BT[:, place] = (changed_BT[:, place] + 1) % V
    difference_BTV = logits(source_BS, count_B, changed_BT) - logits(source_BS, count_B, tokens_BT)
    assert np.abs(difference_BTV[:, :place]).max(initial=0) == 0
    assert (np.abs(difference_BTV[:, place]).max(-1) > 0.01).all()


def test_what_pads_the_source_changes_nothing(grid):
    logits, (source_BS, count_B, tokens_BT) = grid
    padded_BS = np.arange(S) >= count_B[:, None]
    before_BTV = logits(source_BS, count_B, tokens_BT)
    assert np.abs(logits(np.where(padded_BS, 19, source_BS), count_B, tokens_BT) - before_BTV).max() == 0
    read_BTV = logits(np.where(padded_BS, source_BS, (source_BS + 1) % V), count_B, tokens_BT)
    assert (np.abs(read_BTV - before_BTV).max((1, 2)) > 0.01).all()
    alone_BTV = logits(source_BS[1:2, :4], count_B[1:2], tokens_BT[1:2])  # the same without the padding
    np.testing.assert_allclose(alone_BTV[0], before_BTV[1], atol=1e-4 * np.abs(before_BTV).max())


@pytest.mark.parametrize("rows", [2, 3])
def test_the_convolution_is_a_square_one_of_torch_with_the_future_masked(script, rows):
    """The paper's own form: a kernel of 2 rows - 1 each way, the rows below its middle set to zero."""
    torch = pytest.importorskip("torch")
    model = script.Pervasive(V, width=2, layers=1, growth=5, rows=rows, rngs=nnx.Rngs(1))
    ours, side = model.layers[0], 2 * rows - 1
    theirs = torch.nn.Conv2d(4, 5, side, padding="same")
    x_BTSC = np.random.default_rng(2).normal(size=(B, T, S, 4)).astype(np.float32)
    with torch.no_grad():
        theirs.weight.zero_()
        theirs.weight[:, :, :rows] = torch.tensor(np.asarray(ours.kernel[...]).transpose(3, 2, 0, 1).copy())
        theirs.bias.copy_(torch.arange(5.0))
        expected_BTSC = theirs(torch.tensor(x_BTSC.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)
    ours.bias[...] = np.arange(5.0, dtype=np.float32)
    np.testing.assert_allclose(np.asarray(ours(x_BTSC)), expected_BTSC, atol=2e-6)


def test_both_have_as_many_parameters(script):
    encoder_decoder, _ = lm.build(script.encoder_decoder(2048)).parameter_count()
    leaves = jax.tree.leaves(nnx.eval_shape(lambda: nnx.state(script.pervasive(2048, 0))))
    assert sum(leaf.size for leaf in leaves) == pytest.approx(encoder_decoder, rel=0.02)


def test_only_real_targets_count(script):
    """Against NumPy, pair by pair; end-of-text is one of them."""
    pairs = script.Pairs(
        np.zeros((2, 3), int), np.array([3, 2]), np.array([[7, 1, 2, 7], [7, 3, 7, 7]]), np.array([3, 2])
    )
    logits_BTV = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    nats, count = script.nats_and_tokens(lambda *_: logits_BTV, None, pairs)
    p_BTV = np.exp(logits_BTV) / np.exp(logits_BTV).sum(-1, keepdims=True)
    expected = -np.log([p_BTV[0, 0, 1], p_BTV[0, 1, 2], p_BTV[0, 2, 7], p_BTV[1, 0, 3], p_BTV[1, 1, 7]]).sum()
    assert count == 5 and nats == pytest.approx(expected, rel=1e-6)


def test_pairs_are_read_cut_and_shuffled(script, tmp_path, monkeypatch):
    write_pairs(tmp_path)
    tokenizer, train, held_out = script.read(tmp_path, 300)
    assert len(train.source_BS) == 130 and len(held_out.source_BS) == 1  # what is too long is left out
    row, end = held_out.target_BU[0], tokenizer.eot_token
    count = held_out.target_count_B[0]
    assert row[0] == end and (row[count:] == end).all() and tokenizer.decode(row[1:count]) == "pas 3"
    monkeypatch.setattr(script, "BATCH", 10)
    one, same, other = (script.batches(train, seed) for seed in (0, 0, 1))
    passes = [np.concatenate([next(b).source_BS for _ in range(13)]) for b in (one, same, other, one)]
    assert (passes[0] == passes[1]).all()
    for order in passes[2:]:
        assert (order != passes[0]).any() and sorted(map(tuple, order)) == sorted(map(tuple, passes[0]))


def test_a_folder_without_the_pairs_is_refused_in_a_line(script, tmp_path):
    with pytest.raises(lm.UserError, match=r"--data .*has no fra-eng.train.tsv.xz"):
        script.read(tmp_path, 300)


def write_pairs(folder) -> None:
    pairs = [f"not {i}\tpas {i}" for i in range(130)] + ["a " * 30 + "\tun", "one\t" + "un " * 30]
    with lzma.open(folder / "fra-eng.train.tsv.xz", "wt") as file:
        file.write("\n".join(pairs) + "\n")
    (folder / "fra-eng.valid.tsv").write_text("not 3\tpas 3\n")


@pytest.mark.slow
def test_a_little_of_it_trains_and_draws(script, monkeypatch, tmp_path, capsys):
    """Both learn, as long as each other; what was kept is not trained again."""
    write_pairs(tmp_path)
    arguments = ["--data", str(tmp_path), "--seconds", "2", "--seeds", "0", "--vocab", "300"]
    arguments += ["--runs", str(tmp_path), "--figure", str(tmp_path / "out.svg")]
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
    script.main()
    results = [script.json.loads(file.read_text()) for file in tmp_path.glob("*-seed-0.json")]
    for one in results[0].values():
        assert one["curve"][-1][0] >= 2 and one["curve"][-1][2] < one["curve"][0][2]
    monkeypatch.setattr(script, "contest", None)
    script.main()
    assert (tmp_path / "out.svg").is_file() and "nan" not in capsys.readouterr().out.splitlines()[3][:40]
