"""Each rule of choosing against a reference written another way, in NumPy, one token at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_cases import little

from lm.errors import UserError
from lm.sample import filters
from lm.sample.generate import generate
from lm.sample.samplers import Sampler

V = 11
COLLECTED = settings(max_examples=150, deadline=None, derandomize=True)


def reference(logits_V, sampler: Sampler, seen: set[int] = frozenset()) -> np.ndarray:
    """Probabilities [V], float64: the candidates, likeliest first, walked through rule by rule."""
    x = {i: float(v) for i, v in enumerate(logits_V) if v > -1e29}
    for i in seen:
        x[i] = x[i] / sampler.repetition_penalty if x[i] > 0 else x[i] * sampler.repetition_penalty
    order = sorted(x, key=lambda i: (-np.float32(x[i]), i))
    if sampler.temperature == 0:
        order, temperature = order[:1], 1.0
    else:
        order, temperature = order[: sampler.top_k], sampler.temperature
    weights = {i: np.exp((x[i] - x[order[0]]) / temperature) for i in order}
    if sampler.top_p is not None and sampler.top_p < 1:
        total, mass, nucleus = sum(weights.values()), 0.0, []
        for i in order:
            nucleus.append(i)
            mass += weights[i] / total
            if mass >= sampler.top_p:
                break
        order = nucleus
    if sampler.min_p is not None:
        order = [i for i in order if weights[i] >= sampler.min_p]
    result_V = np.zeros(len(logits_V))
    result_V[order] = [weights[i] for i in order]
    return result_V / result_V.sum()


@jax.jit
def _probabilities(logits_BV, numbers, seen_BV):
    def spread(weights_BC, tokens_BC):
        rows_B1 = jnp.arange(len(logits_BV))[:, None]
        return jnp.zeros_like(logits_BV).at[rows_B1, tokens_BC].add(weights_BC / weights_BC.sum(axis=1, keepdims=True))

    return filters.choose(spread, logits_BV, numbers, seen_BV)


def ours(logits_V, sampler: Sampler, seen: set[int] = frozenset()) -> np.ndarray:
    seen_V = np.isin(np.arange(len(logits_V)), list(seen))
    return np.asarray(_probabilities(np.float32(logits_V)[None], sampler.settings(), seen_V[None])[0])


# Multiples of 1/8 make ties common; thresholds that no sum of their exponentials hits.
logits = st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=V, max_size=V)
samplers = st.builds(
    Sampler,
    temperature=st.sampled_from([0, 0.3, 1.0, 1.9]),
    top_k=st.none() | st.integers(1, V + 2),
    top_p=st.none() | st.sampled_from([0.013, 0.1171, 0.5113, 0.9019, 0.9997, 1.0]),
    min_p=st.none() | st.sampled_from([0.0, 0.0513, 0.313, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.25, 0.5]),
)


@COLLECTED
@given(logits, samplers, st.sets(st.integers(0, V - 3)), st.integers(0, 2))
def test_probabilities_equal_the_reference(logits_V, sampler, seen, padding):
    """All rules together, with ties and with a padded vocabulary."""
    logits_V = np.array(logits_V)
    logits_V[V - padding :] = -1e30
    assert_close(ours(logits_V, sampler, seen), reference(logits_V, sampler, seen), relative=1e-5)


@COLLECTED
@given(logits, st.sampled_from([0.0171, 0.333, 0.7113, 0.9913]))
def test_top_p_keeps_the_smallest_sufficient_set(logits_V, p):
    """What is kept has at least p of the mass; without its least likely member it would have less."""
    mass_V = np.exp(np.array(logits_V) - max(logits_V))
    mass_V /= mass_V.sum()
    kept = ours(logits_V, Sampler(top_p=p)) > 0
    assert mass_V[kept].sum() >= p > mass_V[kept].sum() - mass_V[kept].min()
    assert mass_V[kept].min() >= mass_V[~kept].max(initial=0) - 1e-12


@COLLECTED
@given(logits, st.integers(1, V))
def test_top_k_keeps_exactly_k_ties_or_not(logits_V, k):
    kept = ours(logits_V, Sampler(top_k=k)) > 0
    assert kept.sum() == k
    assert np.min(np.array(logits_V)[kept]) >= np.max(np.array(logits_V)[~kept], initial=-np.inf)


@COLLECTED
@given(logits, st.sampled_from([0.013, 0.171, 0.813]))
def test_min_p_is_a_fraction_of_the_likeliest(logits_V, p):
    ratio_V = np.exp(np.array(logits_V) - max(logits_V))
    np.testing.assert_array_equal(ours(logits_V, Sampler(min_p=p)) > 0, ratio_V >= p)


@COLLECTED
@given(logits)
def test_temperature_towards_zero_is_greedy(logits_V):
    """Zero takes the first of the likeliest; a very small one shares among those exactly equal."""
    best = np.array(logits_V) == max(logits_V)
    assert np.argmax(ours(logits_V, Sampler(temperature=0))) == np.argmax(logits_V)
    assert ours(logits_V, Sampler(temperature=0)).max() == 1
    assert_close(ours(logits_V, Sampler(temperature=1e-5)), best / best.sum(), relative=1e-6)


def test_greedy_tells_neighbouring_numbers_apart():
    """The likeliest by its logit; by weights, exp of their difference, these would be equal."""
    logits_V = np.float32([0, 1, np.nextafter(np.float32(1), np.float32(2)), 1])
    np.testing.assert_array_equal(ours(logits_V, Sampler(temperature=0)), [0, 0, 1, 0])


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(), Sampler(top_k=5), Sampler(top_p=0.2), Sampler(top_p=0.97), Sampler(top_k=300),
        Sampler(top_k=300, top_p=0.9), Sampler(min_p=0.5), Sampler(min_p=0.001), Sampler(top_p=0.97, temperature=3.0),
        Sampler(temperature=0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])
def test_a_vocabulary_longer_than_the_shortlist(sampler, spread):
    """400 tokens: some of these cuts fall among the 256 likeliest, others need everything sorted."""
    logits_V = np.float32(np.random.default_rng(1).normal(size=400) * spread)
    assert_close(ours(logits_V, sampler), reference(logits_V, sampler), relative=1e-5)


def test_frequencies_match_the_probabilities():
    """20,000 draws: chi-squared stays below its 99.9% point for the kept tokens, and nothing else is drawn."""
    logits_V = np.float32(np.random.default_rng(0).normal(size=V) * 1.5)
    sampler, n = Sampler(temperature=0.8, top_k=8, top_p=0.97), 20_000
    keys = jax.random.split(jax.random.key(0), n)
    logits_BV = jnp.broadcast_to(jnp.array(logits_V), (n, V))
    tokens, logprobs = jax.jit(filters.sample)(keys, logits_BV, sampler.settings(), jnp.zeros((n, V), bool))
    expected = n * reference(logits_V, sampler)
    counts, kept = np.bincount(tokens, minlength=V), expected > 0
    assert counts[~kept].sum() == 0 and 2 < kept.sum() < V
    critical = {5: 20.5, 6: 22.5, 7: 24.3}[kept.sum() - 1]
    assert ((counts - expected)[kept] ** 2 / expected[kept]).sum() < critical
    assert_close(logprobs, jax.nn.log_softmax(logits_V)[tokens], relative=1e-5)


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(top_p=0.999)])
def test_frequencies_over_blocks_of_the_vocabulary(sampler):
    """600 tokens are three blocks to draw from: counts of 30 groups of tokens follow the probabilities."""
    logits_V = np.float32(np.random.default_rng(0).normal(size=600))
    n = 20_000
    logits_BV, seen_BV = jnp.broadcast_to(jnp.array(logits_V), (n, 600)), jnp.zeros((n, 600), bool)
    draw = jax.jit(lambda keys, x: filters.sample(keys, x, sampler.settings(), seen_BV)[0])
    counts = np.bincount(draw(jax.random.split(jax.random.key(1), n), logits_BV), minlength=600)
    expected = n * reference(logits_V, sampler)
    assert counts[expected == 0].sum() == 0
    groups = np.array_split(np.random.default_rng(1).permutation(600), 30)
    chi = sum((counts[g].sum() - expected[g].sum()) ** 2 / expected[g].sum() for g in groups)
    assert chi < 58.3  # 99.9% point for 29 degrees of freedom


def test_a_row_is_drawn_the_same_beside_one_that_needs_everything_sorted():
    rng = np.random.default_rng(0)
    peaked_V, flat_V = np.float32(rng.normal(size=400) * 6), np.float32(rng.normal(size=400) * 0.01)
    sampler = Sampler(top_p=0.9).settings()
    sample = jax.jit(lambda keys, x: filters.sample(keys, x, sampler, jnp.zeros(x.shape, bool))[0])
    for seed in range(20):
        keys = jax.random.split(jax.random.key(seed), 2)
        alone, beside = sample(keys, np.stack([peaked_V, peaked_V])), sample(keys, np.stack([peaked_V, flat_V]))
        assert alone[0] == beside[0]


def test_the_padded_vocabulary_is_never_sampled():
    """65 tokens padded to 72, so hot that all are equally likely: the 65 all come, the padding does not."""
    m = little()
    assert (m.experiment.model.vocab, m.experiment.model.V) == (65, 72)
    tokens = []
    for seed in range(16):
        for sample in generate(m, ["a"], Sampler(temperature=1e6), max_tokens=31, samples=2, seed=seed):
            tokens += sample.tokens
    assert set(tokens) == set(range(65))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(temperature=-1.0), r"temperature -1.0: must be 0 \(greedy\) or a positive number"),
        (dict(temperature=float("nan")), "temperature nan: must be"),
        (dict(temperature=float("inf")), "temperature inf: must be"),
        (dict(temperature=1e30), "temperature 1e\\+30: must be"),
        (dict(temperature="warm"), "temperature 'warm': expected float"),
        (dict(top_k=2.5), "top_k 2.5: expected int"),
        (dict(top_k=True), "top_k True: expected int"),
        (dict(top_p=float("nan")), "top_p nan: must be"),
        (dict(min_p=float("nan")), "min_p nan: must be"),
        (dict(repetition_penalty=float("nan")), "repetition_penalty nan: must be"),
        (dict(top_k=0), "top_k 0: must be at least 1"),
        (dict(top_p=0.0), "top_p 0.0: must be above 0 and at most 1"),
        (dict(top_p=1.5), "top_p 1.5: must be above 0 and at most 1"),
        (dict(min_p=-0.1), "min_p -0.1: must be between 0 and 1"),
        (dict(repetition_penalty=0.0), "repetition_penalty 0.0: must be between 0.01 and 100"),
    ],
)
def test_a_sampler_refuses_nonsense(changes, message):
    with pytest.raises(UserError, match=message):
        Sampler(**changes)
