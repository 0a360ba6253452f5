"""Planted shapes are found, shapeless spaces look like chance, and laws of random vectors hold."""

import numpy as np
import pytest
from close import assert_close
from probe_cases import lattice

from lm.errors import UserError
from lm.probe import Space, clusters, directions, isotropy, principal_map, read_suite
from lm.probe.actions.geometry import purity


def gaussian(words: int, width: int, seed: int = 0, shift: float = 0.0) -> Space:
    vectors = np.random.default_rng(seed).normal(size=(words, width)) + shift
    return Space("gaussian", tuple(f"w{i}" for i in range(words)), vectors.astype("float32"))


# --- clusters --------------------------------------------------------------------------------------------------------
def test_planted_clusters_are_found():
    rng = np.random.default_rng(0)
    words = [f"{group}{i}" for group in "abc" for i in range(8)]
    vectors = np.repeat(np.eye(3, 12), 8, axis=0) + rng.normal(size=(24, 12)) * 0.05
    groups = {group: [word for word in words if word[0] == group] for group in "abc"} | {"none": ["absent"]}
    found = clusters(Space("s", tuple(words), vectors), groups)
    assert found.purity == 1 and found.silhouette > 0.9 and found.silhouette == found.silhouette_of_groups
    assert sorted(map(sorted, found.clusters)) == [sorted(groups[group]) for group in "abc"]
    assert (found.kept, found.dropped) == (24, 1)
    assert 1 / 3 < found.purity_by_chance < 0.6


def test_groups_of_random_words_are_no_clusters():
    space = gaussian(30, 40)
    groups = {str(i): space.words[i::3] for i in range(3)}
    found = clusters(space, groups)
    assert abs(found.purity - found.purity_by_chance) < 0.15 and abs(found.silhouette_of_groups) < 0.05
    with pytest.raises(UserError, match="1 groups with 10 words"):
        clusters(space, {"one": space.words[:10]})


def test_silhouette_and_purity_are_the_plain_ones():
    """By definition, a word at a time, with cosine distance; one group has a single word, which counts zero."""
    label, truth = np.array([0, 0, 0, 1, 1, 2, 1, 0]), np.array([0, 1, 0, 1, 1, 0, 0, 0])
    space = gaussian(8, 3, seed=1)
    unit = space.vectors_VD / np.linalg.norm(space.vectors_VD, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T

    def plain(label):
        each = []
        for i in range(8):
            to = {k: [distance[i, j] for j in range(8) if j != i and label[j] == k] for k in range(3)}
            own = to.pop(label[i])
            a, b = np.mean(own) if own else 0, min(np.mean(other) for other in to.values() if other)
            each.append((b - a) / max(a, b) if own else 0)
        return np.mean(each)

    groups = {str(k): [space.words[i] for i in np.flatnonzero(label == k)] for k in range(3)}
    found = clusters(space, groups)
    assert found.silhouette_of_groups == pytest.approx(plain(label), abs=1e-6)
    by_word = {word: k for k, words in enumerate(found.clusters) for word in words}
    assert found.silhouette == pytest.approx(plain([by_word[word] for word in space.words]), abs=1e-6)
    assert purity(label, truth) == 6 / 8  # 3 of 4, 2 of 3, 1 of 1


# --- directions ------------------------------------------------------------------------------------------------------
def test_planted_directions_carry_over_to_held_out_pairs(tmp_path):
    space, file = lattice(tmp_path)
    sections = read_suite(file)
    for one in directions(space, sections):
        assert (one.kept, one.dropped, one.ordered, one.separated) == (16, 0, 1.0, 1.0)
        assert one.explained == pytest.approx(1)
        places = np.array(one.projections)
        assert (places[:, 0] < 0).all() and (places[:, 1] > 0).all()
    noise = gaussian(len(space.words), 40)
    (gender, age) = directions(Space("noise", space.words, noise.vectors_VD), sections)
    for one in (gender, age):
        assert 0.1 < one.ordered < 0.9 and one.explained < 0.15 and one.explained_by_chance == 1 / 40


def test_directions_take_pairs_as_they_first_came(tmp_path):
    """`queen king` after `king queen` says nothing new, and does not turn the direction round."""
    space, file = lattice(tmp_path)
    flips = tmp_path / "flips.txt"
    lines = file.read_text().splitlines()[1:241]
    turned = [" ".join((b, a, d, c)) for a, b, c, d in map(str.split, lines)]
    flips.write_text("\n".join([": gender", *lines, *turned]))
    (once,), (twice,) = (directions(space, read_suite(path)[:1]) for path in (file, flips))
    assert once == twice
    with pytest.raises(UserError, match="no section has three pairs"):
        directions(Space("s", ("m0o", "f0o"), np.eye(2)), read_suite(file))


# --- maps ------------------------------------------------------------------------------------------------------------
def test_a_map_keeps_the_distances_of_a_plane():
    """Points of a circle in a plane of twelve dimensions: unit vectors, so distances and shares are known."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(12, 2)))[0]
    angles = np.linspace(0, 2 * np.pi, 9)[:-1]
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    words = tuple("abcdefgh")
    found = principal_map(Space("s", words, circle @ basis.T * 3), [*words, "z", "a"])
    places = np.array(found.places)
    apart, expected = (np.linalg.norm(x[:, None] - x, axis=2) for x in (places, circle))
    assert_close(apart, expected, relative=1e-5)
    assert found.shares == pytest.approx((0.5, 0.5)) and found.dropped == ["z"] and found.words == list(words)
    with pytest.raises(UserError, match="1 of 2 words are in space s: a map needs at least three"):
        principal_map(Space("s", words, circle), ["a", "z"])


# --- isotropy --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [16, 100])
def test_random_vectors_are_nearly_orthogonal(width):
    """The cosine of random directions has standard deviation 1/sqrt(D), and the measures of evenness are near one."""
    found = isotropy(gaussian(1500, width))
    assert found.sd_by_law == width**-0.5
    assert found.sd_cosine == pytest.approx(found.sd_by_law, rel=0.02) and abs(found.mean_cosine) < 0.005
    assert found.sd_of_random == pytest.approx(found.sd_by_law, rel=0.02)
    assert found.nearly_orthogonal == pytest.approx(0.955, abs=0.01)
    assert found.partition > 0.9 and found.effective_dimensions > 0.9 * width


def test_a_common_direction_is_seen():
    """All vectors moved by the same one: |m|^2 / (|m|^2 + D) is the mean cosine, here 1/2."""
    found = isotropy(gaussian(1500, 100, shift=1.0))
    assert found.mean_cosine == pytest.approx(0.5, abs=0.01)
    assert found.nearly_orthogonal < 0.01 and found.partition < 0.5
    assert found.nearly_orthogonal_of_random > 0.9


def test_fewer_dimensions_than_the_width_are_seen():
    """Vectors that live in 4 of 64 dimensions: the standard deviation is 1/sqrt(4), the effective dimensions 4."""
    space = gaussian(800, 4)
    found = isotropy(Space("flat", space.words, np.pad(space.vectors_VD, ((0, 0), (0, 60)))))
    assert found.sd_cosine == pytest.approx(0.5, rel=0.02) and found.sd_by_law == 0.125
    assert found.effective_dimensions == pytest.approx(4, rel=0.03)
    assert set(found.to_json()) >= {"mean_cosine", "sd_cosine", "sd_by_law"} and "cosines" not in found.to_json()
