"""A space ready to be searched: unit vectors, and which of its words count as one."""

from collections.abc import Iterable

import numpy as np

from lm.errors import nearest, require
from lm.probe.words import CASES, Space

ABSENT = -1


class Index:
    """The words of a space, or the first `restrict` of them, under a case rule.

    Every word can be an answer. Forms of a word that the case rule makes one share a key: the first of them stands for
    a question's word, any of them is the answer, and all of them are left out when that word is (as in gensim).
    """

    def __init__(self, space: Space, *, case: str = "fold", restrict: int | None = None):
        require(case in CASES, f"case {case!r}: one of {', '.join(CASES)}")
        require(restrict is None or restrict >= 1, f"restrict {restrict}: how many words to search, at least 1")
        self.space, self.case, self.fold = space, case, CASES[case]
        self.words = space.words[:restrict]
        vectors_VD = np.asarray(space.vectors_VD[:restrict], np.float32)
        length_V1 = np.linalg.norm(vectors_VD, axis=1, keepdims=True)
        self.unit_VD = vectors_VD / np.maximum(length_V1, np.finfo(np.float32).tiny)
        self.key_of: dict[str, int] = {}
        self.key_V = np.array([self.key_of.setdefault(self.fold(word), len(self.key_of)) for word in self.words])
        order = np.argsort(self.key_V, kind="stable")
        count_U = np.bincount(self.key_V)
        self.first_U = order[np.cumsum(count_U) - count_U]
        # All forms of each key, filled up with the first: an array to leave words out by.
        rank = np.arange(len(order)) - np.repeat(np.cumsum(count_U) - count_U, count_U)
        self.forms_UM = np.repeat(self.first_U[:, None], count_U.max(), axis=1)
        self.forms_UM[self.key_V[order], rank] = order

    def key(self, word: str) -> int:
        """The key of a word, ABSENT where the space has no form of it."""
        return self.key_of.get(self.fold(word), ABSENT)

    def require_key(self, word: str) -> int:
        """The key of a word; raises UserError with the nearest word there is."""
        key = self.key(word)
        require(
            key != ABSENT,
            f"{word}: not among the {len(self.words):,} words of space {self.space.name}{nearest(word, self.words)}"
            " (words of several tokens: --pieces mean)",
        )
        return key

    def known(self, words: Iterable[str]) -> tuple[list[str], np.ndarray]:
        """Those of the words that the space has, and their unit vectors [W, D]."""
        words = [word for word in words if self.key(word) != ABSENT]
        return words, self.vectors(np.array([self.key(word) for word in words], np.int64))

    def vectors(self, keys_Q: np.ndarray) -> np.ndarray:
        """Unit vectors [Q, D] of the words that stand for these keys."""
        return self.unit_VD[self.first_U[keys_Q]]

    def cosines(self, keys_Q: np.ndarray) -> np.ndarray:
        """Cosines [Q, V] of these words with every word."""
        return self.vectors(keys_Q) @ self.unit_VD.T

    def leave_out(self, scores_QV: np.ndarray, keys_QX: np.ndarray) -> None:
        """Take every form of row q's keys_QX[q] out of the running, in place."""
        forms_QM = self.forms_UM[keys_QX].reshape(len(keys_QX), -1)
        scores_QV[np.arange(len(keys_QX))[:, None], forms_QM] = -np.inf

    def winners(self, scores_QV: np.ndarray) -> np.ndarray:
        """The key of each row's best word, ABSENT where all were left out."""
        best_Q = scores_QV.argmax(1)
        return np.where(np.isfinite(scores_QV[np.arange(len(best_Q)), best_Q]), self.key_V[best_Q], ABSENT)

    def best(self, scores_V: np.ndarray, n: int) -> list[tuple[str, float]]:
        """The n words of the largest scores, best first, with their scores; none that was left out."""
        order = np.argsort(-scores_V, kind="stable")[:n]
        return [(self.words[i], float(scores_V[i])) for i in order if np.isfinite(scores_V[i])]
