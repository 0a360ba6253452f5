"""The chain of products is that of the formulas, and what was timed is printed and drawn."""

import jax
import jax.numpy as jnp
import pytest

SCRIPT = "serial"


@pytest.mark.parametrize("T", [3, 8])
def test_the_chain_is_counted_as_the_formulas_have_it(script, T):
    """A layer's T tokens one after another, then the next layer's, then the head; or six products a block."""
    for name in script.NAMES:
        model = script.shape(name, T)
        L = model.config.layers
        assert script.chain(model, T) == (6 * L + 1 if name == "transformer" else L * T + 1)


def test_products_beside_each_other_are_one_link(script):
    def program(x):
        beside = x @ x + x @ (x + 1)  # 1
        carried, each = jax.lax.scan(lambda h, y: (h @ x, h @ y), beside, jnp.zeros((5, 2, 2)))
        return carried, each, x

    traced = jax.make_jaxpr(jax.jit(program))(jnp.zeros((2, 2)))
    assert script.depths(traced.jaxpr, [0]) == [6, 6, 0]


def test_times_are_printed_and_drawn(script, tmp_path):
    one = dict(seconds=[0.002, 0.001, 0.003], ratio=[0.5, 0.4, 0.6])
    lengths = [8, 16]
    chains = {(name, T): T for name in script.NAMES for T in lengths}
    times = {(n, b, T): one for n in script.NAMES for b in script.BATCHES for T in lengths}
    assert "| tanh RNN | 64 | 16 | 16 | 2.00 | 0.50 (0.40 to 0.60) |" in script.table(chains, times)
    script.save(script.draw(chains, times, lengths), tmp_path / "out.svg")
    assert "training, batch 64" in (tmp_path / "out.svg").read_text()
