"""a is to b as c is to what? Ways to score the words of a space, over unit vectors.

3cosadd  cos(x, b) - cos(x, a) + cos(x, c)                      Mikolov et al. 2013, as a cosine of each
3cosmul  cos(x, b) cos(x, c) / (cos(x, a) + e), cosines in 0..1  Levy and Goldberg 2014, eq. 4, e = 0.001
3cosavg  cos(x, c + mean b - mean a) over the other pairs       Drozd et al. 2016
lrcos    P(x is a target) cos(x, c), a logistic regression told the other pairs' targets from their sources and random
         words                                                  Drozd et al. 2016
The first two take a question; the last two take a section, each of its pairs asked in turn with itself left out.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from lm.errors import nearest, require
from lm.probe.index import ABSENT, Index

METHODS = ("3cosadd", "3cosmul", "3cosavg", "lrcos")
OF_QUESTIONS = METHODS[:2]
CHUNK = 1 << 18
"""Scores held at once: few enough to stay in the processor's cache, which is four times as fast."""


def combine(method: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, *, epsilon: float = 1e-3) -> np.ndarray:
    """Score candidates from their cosines with a, b and c."""
    if method == "3cosadd":
        return b - a + c
    return (b + 1) * (c + 1) / (2 * (a + 1 + 2 * epsilon))


def require_method(method: str, known: Sequence[str] = METHODS) -> None:
    """Raise UserError unless the method is one of those known."""
    require(method in known, f"method {method}: no such method{nearest(method, known)}; one of {', '.join(known)}")


# --- many questions --------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Verdicts:
    """Whether each question was answered rightly, bool [Q], by each way of asking."""

    excluded: np.ndarray
    """The question's words cannot be answers."""
    unexcluded: np.ndarray
    only_b: np.ndarray
    """The nearest neighbour of b alone, the question's words left out; in answer_pairs, of the mean of the b's."""
    only_c: np.ndarray
    offset_cosine: np.ndarray
    """cos(b - a, d - c) of unit vectors, [Q]."""


def answer_questions(index: Index, method: str, keys_Q3: np.ndarray, right_QR: np.ndarray) -> Verdicts:
    """Score questions by a method OF_QUESTIONS.

    keys_Q3: a, b, c. right_QR: keys that count as right, the first of them d, filled up with d.
    """
    word_U, place_Q3 = np.unique(keys_Q3, return_inverse=True)
    place_Q3 = place_Q3.reshape(keys_Q3.shape)
    cos_UV = index.cosines(word_U)
    nearest_UX = index.key_V[_largest(cos_UV, 3 * index.forms_UM.shape[1] + 1)]
    excluded, unexcluded = (np.empty(len(keys_Q3), np.int64) for _ in range(2))
    step = max(1, CHUNK // len(index.words))
    for start in range(0, len(keys_Q3), step):
        part = slice(start, start + step)
        scores_QV = combine(method, *(cos_UV[place] for place in place_Q3[part].T))
        unexcluded[part] = index.winners(scores_QV)
        index.leave_out(scores_QV, keys_Q3[part])
        excluded[part] = index.winners(scores_QV)
    only_b, only_c = (_first_other(nearest_UX[place_Q3[:, i]], keys_Q3) for i in (1, 2))
    a, b, c, d = (index.vectors(keys) for keys in (*keys_Q3.T, right_QR[:, 0]))
    return _verdicts((excluded, unexcluded, only_b, only_c), right_QR, cosine(b - a, d - c))


def _verdicts(answers: Sequence[np.ndarray], right_QR: np.ndarray, offset_cosine: np.ndarray) -> Verdicts:
    """Judge the keys [Q] that each way of asking gave, in the order of the fields of Verdicts."""
    excluded, unexcluded, only_b, only_c = ((keys_Q[:, None] == right_QR).any(1) for keys_Q in answers)
    return Verdicts(excluded=excluded, unexcluded=unexcluded, only_b=only_b, only_c=only_c, offset_cosine=offset_cosine)


def cosine(x_QD: np.ndarray, y_QD: np.ndarray) -> np.ndarray:
    """Compute cosines row by row, [Q]; zero where a row is zero."""
    lengths = np.linalg.norm(x_QD, axis=1) * np.linalg.norm(y_QD, axis=1)
    return (x_QD * y_QD).sum(1) / np.where(lengths == 0, 1, lengths)


def _largest(scores_UV: np.ndarray, n: int) -> np.ndarray:
    """Find the places of the n largest in each row, in order."""
    n = min(n, scores_UV.shape[1])
    top_UX = np.argpartition(-scores_UV, n - 1, axis=1)[:, :n]
    order = np.argsort(-np.take_along_axis(scores_UV, top_UX, 1), axis=1, kind="stable")
    return np.take_along_axis(top_UX, order, 1)


def _first_other(nearest_QX: np.ndarray, keys_QX: np.ndarray) -> np.ndarray:
    """Find the first key of each row that is none of the question's; ABSENT where there is no other."""
    other_QX = (nearest_QX[:, :, None] != keys_QX[:, None]).all(2)
    first_Q = np.take_along_axis(nearest_QX, other_QX.argmax(1)[:, None], 1)[:, 0]
    return np.where(other_QX.any(1), first_Q, ABSENT)


# --- a section's pairs, each in turn ---------------------------------------------------------------------------------
def answer_pairs(index: Index, method: str, keys_J2: np.ndarray, right_JR: np.ndarray, seed: int = 0) -> Verdicts:
    """Ask each pair (c, d) of a section what the others teach; none may be another's reverse.

    Needs two pairs. lrcos draws as many random words as there are sources.
    """
    a_JD, b_JD = index.vectors(keys_J2[:, 0]), index.vectors(keys_J2[:, 1])
    cos_JV = index.cosines(keys_J2[:, 0])
    scores_JV, by_b_JV, offset_J = np.empty_like(cos_JV), np.empty_like(cos_JV), np.empty(len(keys_J2))
    random = np.random.default_rng(seed)
    for j in range(len(keys_J2)):
        others = np.arange(len(keys_J2)) != j
        mean_a_D, mean_b_D = a_JD[others].mean(0), b_JD[others].mean(0)
        by_b_JV[j] = index.unit_VD @ mean_b_D
        offset_J[j] = cosine((b_JD[j] - a_JD[j])[None], (mean_b_D - mean_a_D)[None])[0]
        if method == "3cosavg":
            target_D = a_JD[j] + mean_b_D - mean_a_D
            scores_JV[j] = index.unit_VD @ (target_D / max(np.linalg.norm(target_D), 1e-30))
        else:
            noise = random.integers(len(index.words), size=others.sum())
            negative_WD = np.concatenate([a_JD[others], index.unit_VD[noise]])
            scores_JV[j] = logistic_regression(b_JD[others], negative_WD)(index.unit_VD) * cos_JV[j]
    unexcluded = index.winners(scores_JV)
    for some_JV in (scores_JV, by_b_JV, cos_JV):
        index.leave_out(some_JV, keys_J2[:, :1])
    excluded, only_b, only_c = map(index.winners, (scores_JV, by_b_JV, cos_JV))
    return _verdicts((excluded, unexcluded, only_b, only_c), right_JR, offset_J)


def logistic_regression(positive_WD: np.ndarray, negative_WD: np.ndarray, strength: float = 1.0):
    """Learn to tell two sets of words; returns P(positive) as a function of vectors [V, D].

    Minimises |w|^2 / 2 + strength * log loss, its classes weighted to count alike and the intercept free.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    x_WD = np.concatenate([positive_WD, negative_WD]).astype(np.float64)
    truth_W = np.repeat([1, 0], [len(positive_WD), len(negative_WD)])
    model = LogisticRegression(C=strength, class_weight="balanced", tol=1e-7, max_iter=1000).fit(x_WD, truth_W)
    return lambda x_VD: expit(x_VD @ model.coef_[0].astype(x_VD.dtype) + model.intercept_[0])
