"""a is to b as c is to what? Scorers over unit vectors, and the nearest words.

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
from scipy.optimize import minimize
from scipy.special import expit

from lm.errors import nearest, require
from lm.probe.index import ABSENT, Index
from lm.probe.spaces import Space, spaces_of
from lm.run import Model

METHODS = ("3cosadd", "3cosmul", "3cosavg", "lrcos")
OF_QUESTIONS = METHODS[:2]
CHUNK = 1 << 18
"""Scores held at once: few enough to stay in the processor's cache, which is four times as fast."""


def combine(method: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, *, epsilon: float = 1e-3) -> np.ndarray:
    """Scores of candidates from their cosines with a, b and c."""
    if method == "3cosadd":
        return b - a + c
    return (b + 1) * (c + 1) / (2 * (a + 1 + 2 * epsilon))


def require_method(method: str, known: Sequence[str] = METHODS) -> None:
    require(method in known, f"method {method}: no such method{nearest(method, known)}; one of {', '.join(known)}")


# --- one question ----------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Answer:
    """Best first, and what must be known to judge them. Scores of 3cosadd are cosines with b - a + c."""

    answers: list[tuple[str, float]]
    space: str
    about: str
    excluded: list[str]
    """The query's words when they could not be answers, else none."""
    searched: int
    """Words among which the answers were found."""
    only_c: str | None = None
    """The nearest neighbour of c alone, the query left out: an analogy proves nothing that this answers too."""
    only_b: str | None = None

    def to_json(self) -> dict:
        answers = [{"word": word, "score": score} for word, score in self.answers]
        return dataclasses.asdict(self) | {"answers": answers}


def analogy(
    m: Model | Space,
    b: str,
    a: str,
    c: str,
    *,
    space: str = "input",
    method: str = "3cosadd",
    exclude: bool = True,
    n: int = 10,
    case: str = "fold",
    restrict: int | None = None,
    **options,
) -> Answer:
    """b - a + c, in the order it is said: analogy(m, "king", "man", "woman").

    space: see `spaces_of`; contextual is its last layer. exclude: leave the three words out of the answers.
    case, restrict: see Index. options: see `spaces_of`.
    Raises UserError for words that the space does not have, with the nearest that it has.
    """
    require_method(method, OF_QUESTIONS)
    *_, chosen = spaces_of(m, [space], words=(b, a, c), case=case, **options)
    index = Index(chosen, case=case, restrict=restrict)
    keys = np.array([[index.require_key(word) for word in (a, b, c)]])
    a_V, b_V, c_V = index.cosines(keys[0])
    scores_QV = np.stack([combine(method, a_V, b_V, c_V), b_V, c_V])
    if method == "3cosadd":
        a_D, b_D, c_D = index.vectors(keys[0])
        scores_QV[0] /= max(np.linalg.norm(b_D - a_D + c_D), 1e-30)
    index.leave_out(scores_QV if exclude else scores_QV[1:], np.repeat(keys, 3 if exclude else 2, axis=0))
    only_b, only_c = (_best(index, row_V, 1) for row_V in scores_QV[1:])
    return Answer(
        _best(index, scores_QV[0], n), chosen.name, chosen.about, [b, a, c] if exclude else [], len(index.words),
        only_c=only_c[0][0] if only_c else None, only_b=only_b[0][0] if only_b else None,
    )  # fmt: skip


def neighbours(
    m: Model | Space,
    word: str,
    *,
    space: str = "input",
    n: int = 10,
    case: str = "fold",
    restrict: int | None = None,
    **options,
) -> Answer:
    """The words whose vectors have the largest cosine with a word's; otherwise as `analogy`."""
    *_, chosen = spaces_of(m, [space], words=(word,), case=case, **options)
    index = Index(chosen, case=case, restrict=restrict)
    key = np.array([index.require_key(word)])
    scores_1V = index.cosines(key)
    index.leave_out(scores_1V, key[:, None])
    return Answer(_best(index, scores_1V[0], n), chosen.name, chosen.about, [word], len(index.words))


def _best(index: Index, scores_V: np.ndarray, n: int) -> list[tuple[str, float]]:
    order = np.argsort(-scores_V, kind="stable")[:n]
    return [(index.words[i], float(scores_V[i])) for i in order if np.isfinite(scores_V[i])]


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


def answer_questions(index: Index, method: str, keys_Q3: np.ndarray, right_QA: np.ndarray) -> Verdicts:
    """Score questions by a method OF_QUESTIONS.

    keys_Q3: a, b, c. right_QA: keys that count as right, the first of them d, filled up with d.
    """
    word_U, place_Q3 = np.unique(keys_Q3, return_inverse=True)
    place_Q3 = place_Q3.reshape(keys_Q3.shape)
    cos_UV = index.cosines(word_U)
    nearest_UN = index.key_V[_largest(cos_UV, 3 * index.forms_KM.shape[1] + 1)]
    excluded, unexcluded = (np.empty(len(keys_Q3), np.int64) for _ in range(2))
    step = max(1, CHUNK // len(index.words))
    for start in range(0, len(keys_Q3), step):
        part = slice(start, start + step)
        scores_QV = combine(method, *(cos_UV[place] for place in place_Q3[part].T))
        unexcluded[part] = index.winners(scores_QV)
        index.leave_out(scores_QV, keys_Q3[part])
        excluded[part] = index.winners(scores_QV)
    only_b, only_c = (_first_other(nearest_UN[place_Q3[:, i]], keys_Q3) for i in (1, 2))
    a, b, c, d = (index.vectors(keys) for keys in (*keys_Q3.T, right_QA[:, 0]))
    rights = (among(keys, right_QA) for keys in (excluded, unexcluded, only_b, only_c))
    return Verdicts(*rights, offset_cosine=cosine(b - a, d - c))


def among(keys_Q: np.ndarray, right_QA: np.ndarray) -> np.ndarray:
    return (keys_Q[:, None] == right_QA).any(1)


def cosine(x_QD: np.ndarray, y_QD: np.ndarray) -> np.ndarray:
    """Cosines row by row; zero where a row is zero."""
    lengths = np.linalg.norm(x_QD, axis=1) * np.linalg.norm(y_QD, axis=1)
    return (x_QD * y_QD).sum(1) / np.where(lengths == 0, 1, lengths)


def _largest(scores_UV: np.ndarray, n: int) -> np.ndarray:
    """Places of the n largest in each row, in order."""
    n = min(n, scores_UV.shape[1])
    top_UN = np.argpartition(-scores_UV, n - 1, axis=1)[:, :n]
    order = np.argsort(-np.take_along_axis(scores_UV, top_UN, 1), axis=1, kind="stable")
    return np.take_along_axis(top_UN, order, 1)


def _first_other(nearest_QN: np.ndarray, keys_QX: np.ndarray) -> np.ndarray:
    """The first key of each row that is none of the question's; ABSENT where there is no other."""
    other_QN = (nearest_QN[:, :, None] != keys_QX[:, None]).all(2)
    first_Q = np.take_along_axis(nearest_QN, other_QN.argmax(1)[:, None], 1)[:, 0]
    return np.where(other_QN.any(1), first_Q, ABSENT)


# --- a section's pairs, each in turn ---------------------------------------------------------------------------------
def answer_pairs(index: Index, method: str, keys_P2: np.ndarray, right_PA: np.ndarray, seed: int = 0) -> Verdicts:
    """Ask each pair (c, d) of a section what the others teach; none may be another's reverse.

    Needs two pairs. lrcos draws as many random words as there are sources.
    """
    a_PD, b_PD = index.vectors(keys_P2[:, 0]), index.vectors(keys_P2[:, 1])
    cos_PV = index.cosines(keys_P2[:, 0])
    scores_PV, by_b_PV, offset_P = np.empty_like(cos_PV), np.empty_like(cos_PV), np.empty(len(keys_P2))
    random = np.random.default_rng(seed)
    for p in range(len(keys_P2)):
        others = np.arange(len(keys_P2)) != p
        mean_a_D, mean_b_D = a_PD[others].mean(0), b_PD[others].mean(0)
        by_b_PV[p] = index.unit_VD @ mean_b_D
        offset_P[p] = cosine((b_PD[p] - a_PD[p])[None], (mean_b_D - mean_a_D)[None])[0]
        if method == "3cosavg":
            target_D = a_PD[p] + mean_b_D - mean_a_D
            scores_PV[p] = index.unit_VD @ (target_D / max(np.linalg.norm(target_D), 1e-30))
        else:
            noise = random.integers(len(index.words), size=others.sum())
            negative_ND = np.concatenate([a_PD[others], index.unit_VD[noise]])
            scores_PV[p] = logistic_regression(b_PD[others], negative_ND)(index.unit_VD) * cos_PV[p]
    unexcluded = index.winners(scores_PV)
    for some_PV in (scores_PV, by_b_PV, cos_PV):
        index.leave_out(some_PV, keys_P2[:, :1])
    excluded, only_b, only_c = map(index.winners, (scores_PV, by_b_PV, cos_PV))
    rights = (among(keys, right_PA) for keys in (excluded, unexcluded, only_b, only_c))
    return Verdicts(*rights, offset_cosine=offset_P)


def logistic_regression(positive_ND: np.ndarray, negative_ND: np.ndarray, strength: float = 1.0):
    """P(positive) as a function of vectors [V, D].

    Minimises |w|^2 / 2 + strength * log loss, its classes weighted to count alike and the intercept free.
    """
    x_ND = np.concatenate([positive_ND, negative_ND]).astype(np.float64)
    sizes = np.array([len(positive_ND), len(negative_ND)])
    sign_N, weight_N = np.repeat([1.0, -1.0], sizes), np.repeat(strength * sizes.sum() / (2 * sizes), sizes)

    def loss(parameters):
        w_D, intercept = parameters[:-1], parameters[-1]
        margin_N = sign_N * (x_ND @ w_D + intercept)
        slope_N = -weight_N * sign_N * expit(-margin_N)
        value = w_D @ w_D / 2 + weight_N @ np.logaddexp(0, -margin_N)
        return value, np.append(w_D + slope_N @ x_ND, slope_N.sum())

    found = minimize(loss, np.zeros(x_ND.shape[1] + 1), jac=True, method="L-BFGS-B", options={"gtol": 1e-7}).x
    return lambda x_VD: expit(x_VD @ found[:-1].astype(x_VD.dtype) + found[-1])
