"""Batch norm is torch's and leaks what comes later; the other models are lm's own; what is counted is what is said."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

import lm
from lm.model import Norm, Taps

SCRIPT = "norms"
SHAPE = dict(layers=2, width=8, heads=2, context=6, vocab=11, bias=True, qk_norm=False, zero_init=False)


def tiny(measured, norm: str, **changes):
    """A configuration, with parameters in which no scale is one and no offset zero, and tokens [B, U]."""
    c = measured.Study(norm=norm, **(SHAPE | changes))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), lm.build(c).init(0))
    return c, params, rng.integers(0, 11, (4, 7))


@pytest.fixture
def measured(script):
    """The module beside the script, which has loaded it."""
    return sys.modules["norms_model"]


# --- norms -----------------------------------------------------------------------------------------------------------
@pytest.mark.parity
def test_batch_norm_is_torchs(measured):
    """What leaves it, its gradients, the running moments of three batches, and what it gives in evaluation."""
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm1d(8, momentum=None)  # plain averages over batches
    ours = measured.BatchNorm(measured.Study(**SHAPE))
    rng = np.random.default_rng(1)
    scale, offset, weights = rng.normal(size=(3, 8)).astype(np.float32)
    ours.scale[...], ours.bias[...] = scale, offset
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(scale))
        theirs.bias.copy_(torch.tensor(offset))
    moments = []
    for x_BTD in (3 + 2 * rng.normal(size=(3, 4, 5, 8))).astype(np.float32):
        taps = Taps(read=["m"])
        x_MD = torch.tensor(x_BTD.reshape(-1, 8), requires_grad=True)
        y_MD = theirs(x_MD)
        assert_close(ours(jnp.asarray(x_BTD), taps, "m").reshape(-1, 8), y_MD.detach().numpy(), relative=1e-6)
        (torch.sin(y_MD) * torch.tensor(weights)).sum().backward()
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(ours(x, Taps(), "m")) * weights))(jnp.asarray(x_BTD))
        assert_close(gradient.reshape(-1, 8), x_MD.grad.numpy(), relative=1e-5)
        moments.append(taps.values)
    kept = measured.averaged(moments, tokens=20)
    assert_close(kept["m"], np.stack([theirs.running_mean, theirs.running_var]), relative=1e-6)
    y_BTD = ours(jnp.asarray(x_BTD), Taps(edits=measured.in_place(kept)), "m")
    expected = theirs.eval()(torch.tensor(x_BTD.reshape(-1, 8))).detach().numpy()
    assert_close(y_BTD.reshape(-1, 8), expected, relative=1e-6)


@pytest.mark.parity
def test_layer_norm_is_torchs(measured):
    torch = pytest.importorskip("torch")
    ours, theirs = Norm(measured.Study(**SHAPE), 8, "D", "layernorm"), torch.nn.LayerNorm(8)
    x, scale, offset = (np.random.default_rng(2).normal(size=shape).astype(np.float32) for shape in ((5, 8), 8, 8))
    ours.scale[...], ours.bias[...] = scale, offset
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(scale))
        theirs.bias.copy_(torch.tensor(offset))
    assert_close(ours(jnp.asarray(x)), theirs(torch.tensor(x)).detach().numpy(), relative=1e-6)


@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_the_models_are_lms_own(measured, norm, place):
    """With the norms that lm has, the same parameters give the same logits."""
    c, params, tokens_BU = tiny(measured, norm, norm_place=place)

    def renamed(tree):
        return {k: renamed(v.get("norm", v)) if isinstance(v, dict) else v for k, v in tree.items()}

    own = lm.build(lm.ModelConfig(norm=norm, norm_place=place, **SHAPE))
    theirs, _ = own.apply(renamed(params), lm.Inputs(jnp.asarray(tokens_BU[:, :-1])))
    ours, _ = lm.build(c).apply(params, lm.Inputs(jnp.asarray(tokens_BU[:, :-1])))
    assert_close(ours[..., :11], theirs[..., :11], relative=1e-6)


# --- leaks and gradients ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "batchnorm", "none"])
def test_only_batch_norm_leaks_and_only_in_training(measured, norm, place):
    c, params, tokens_BU = tiny(measured, norm, norm_place=place)
    tokens_BT = jnp.asarray(tokens_BU[:, :-1])
    change_BT = np.array(measured.change(c, params, {}, tokens_BT))
    assert change_BT[0, -1] > 0
    change_BT[0, -1] = 0
    assert (change_BT > 0).sum() == (change_BT.size - 1 if norm == "batchnorm" else 0)
    moments = measured.averaged([measured.moments_of_batch(c, params, tokens_BT)], tokens=24)
    change_BT = np.array(measured.change(c, params, moments, tokens_BT))
    assert change_BT[0, -1] > 0 and not change_BT[1:].any() and not change_BT[0, :-1].any()


def test_gradients_pass_blocks_that_add_nothing_only_beside_them(measured):
    """Blocks whose last matrices are zero: the same gradient at each with residual connections, 0 without."""
    for residual in (True, False):
        c, params, tokens_BU = tiny(measured, "layernorm", residual=residual)
        for name in ("attention", "feedforward"):
            last = params["blocks"][name]["out" if name == "attention" else "outer"]
            params["blocks"][name] |= {"out" if name == "attention" else "outer": jax.tree.map(jnp.zeros_like, last)}
        norms_L = np.asarray(measured.gradients(c, params, jnp.asarray(tokens_BU)))
        assert norms_L[0] == norms_L[1] and (norms_L[0] > 0) == residual


def test_gradients_are_differences_of_the_loss(measured):
    """Against a small step along the gradient of what enters the last block, for batch norm too."""
    c, params, tokens_BU = tiny(measured, "batchnorm")
    tokens_BU = jnp.asarray(tokens_BU)

    @jax.jit
    def loss(added_BTD):
        edit = {"residual.before": lambda x, layer: x + jnp.where(layer == 1, 1, 0) * added_BTD}
        return measured.nats(c, params, tokens_BU, edit).mean()

    gradient_BTD = jax.grad(loss)(jnp.zeros((4, 6, 8)))
    size = float(jnp.linalg.norm(gradient_BTD))
    step_BTD = 1e-2 * gradient_BTD / size
    slope = (float(loss(step_BTD)) - float(loss(-step_BTD))) / 2e-2
    assert slope == pytest.approx(size, rel=1e-3)
    assert float(measured.gradients(c, params, tokens_BU)[1]) == pytest.approx(size, rel=1e-5)


# --- the tables ------------------------------------------------------------------------------------------------------
def test_the_largest_rate_is_the_last_that_every_seed_takes(script):
    losses = {0.002: (2.0, 2.1), 0.004: (1.5, 1.6), 0.008: (1.7, 1.8), 0.016: (1.6, 1.95), 0.032: (1.6, None)}
    rows = [{"rate": rate, "seed": seed, "loss": x} for rate, pair in losses.items() for seed, x in enumerate(pair)]
    rate, losses_R = script.best(rows)
    assert rate == 0.004 and losses_R.tolist() == [1.5, 1.6]
    assert script.taken(rows) == (0.008, 0.032)


@pytest.mark.slow
def test_a_little_of_it_trains_and_draws(script, measured, monkeypatch, tmp_path, capsys):
    """One layer, two rates; the losses are the runs' own; a second time nothing is trained."""
    text = tmp_path / "text.txt"
    text.write_text("the king sat on a mat and his queen ran to the river.\n" * 400)
    kinds = [script.Kind("layernorm", layers=1), script.Kind("batchnorm", "post", layers=1)]
    by_depth = [kinds[0], script.Kind("layernorm", residual=False, layers=1)]
    for name, value in (
        ("RATES", (0.004, 0.008)), ("DEPTH_RATES", (0.004,)), ("DEPTHS", (1,)), ("BY_DEPTH", by_depth),
        ("GRADIENTS", by_depth), ("GRID", [*kinds, script.Kind("none", layers=1)]),
    ):  # fmt: skip
        monkeypatch.setattr(script, name, value)
    figure = tmp_path / "norms.svg"
    arguments = ["--corpus", str(text), "--steps", "3", "--seeds", "0", "1", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments, "--figure", str(figure)])
    script.main()
    printed, drawn = capsys.readouterr().out, figure.read_bytes()
    assert printed.count("0 exactly") == 3 + 1 + 3 and "nan" not in printed
    run = lm.Run(tmp_path / "runs" / "3-steps" / "layernorm-pre-with-1" / "0.004-0")
    recorded = run.metrics()[-1]["val_loss"]
    assert measured.losses_by_moments(measured.Reader(run)) == pytest.approx((recorded, recorded), rel=1e-6)
    monkeypatch.setattr(lm, "train_pack", None)
    script.main()
    assert figure.read_bytes() == drawn
