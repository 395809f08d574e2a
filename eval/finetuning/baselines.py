"""Baselines without a language model: the most frequent class, and a bag of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from dept.evaluation.finetuning.examples import Example

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Inverse strengths of the L2 penalty that are tried; the best one on ``val`` is taken."""

Splits = Mapping[str, Sequence[Example]]


def majority(splits: Splits) -> float:
    """Accuracy on ``test`` of the class, or place of the answer, most frequent in ``train``."""
    labels = {name: np.array([example.label for example in of]) for name, of in splits.items()}
    return float((labels["test"] == np.bincount(labels["train"]).argmax()).mean())


def bag_of_words(splits: Splits, kind: str, classes: int, counts: Any) -> float:
    """A linear model of counts.

    For classes it is a logistic regression, whose score on ``test`` is its accuracy. For a choice,
    it predicts whether each answer is right. For regression, it is a ridge regression with its
    Pearson correlation. Pieces are counted separately; two texts without an order are represented
    by their sum and difference.

    Args:
        splits: ``train``, ``val`` and ``test``.
        kind: kind of the task, a key of ``layouts.LAYOUTS``.
        classes: number of classes; 0 for regression.
        counts: turns texts into a sparse matrix of counts, shape [texts, V].
    """
    of_split = {name: _features(of, kind, counts) for name, of in splits.items()}
    labels = {name: np.array([example.label for example in of]) for name, of in splits.items()}
    targets = labels["train"]
    if kind == "choice":
        targets = np.eye(classes, dtype=int)[targets].reshape(-1)

    def answers(name: str) -> np.ndarray:
        if kind == "choice":
            return model.decision_function(of_split[name]).reshape(-1, classes).argmax(axis=1)
        return model.predict(of_split[name])

    best = {"val": -np.inf}
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=1000) if classes else Ridge(1 / strength)
        model.fit(of_split["train"], targets)
        scores = {name: _score(answers(name), labels[name], classes) for name in ("val", "test")}
        best = scores if scores["val"] > best["val"] else best
    return best["test"]


def word_counts(train: Sequence[Example]) -> Any:
    """Counts of the words of ``train``, in lower case."""
    pieces = [piece for example in train for piece in example.pieces.values()]
    texts = [text for piece in pieces for text in ([piece] if isinstance(piece, str) else piece)]
    return CountVectorizer(token_pattern=r"\w+").fit(texts).transform


def token_counts(tokenizer: Any, rows: int) -> Any:
    """Counts of the tokens that the model reads, of whole texts.

    Args:
        tokenizer: of the model.
        rows: of its embedding.
    """

    def counts(texts: Sequence[str]) -> csr_matrix:
        ids = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
        ends = np.cumsum([0, *map(len, ids)])
        flat = np.concatenate([np.asarray(of, dtype=np.int64) for of in ids])
        return csr_matrix((np.ones(len(flat)), flat, ends), shape=(len(ids), rows))

    return counts


def _features(examples: Sequence[Example], kind: str, counts: Any) -> csr_matrix:
    """Features of each example, or of each answer of a choice."""
    if kind == "choice":  # all else is the same for every answer, and a linear model cannot use it
        return counts([answer for example in examples for answer in example.pieces["answers"]])
    names = list(examples[0].pieces)
    matrices = [counts([example.pieces[name] for example in examples]) for name in names]
    if kind == "similarity":
        one, other = matrices
        matrices = [one + other, abs(one - other)]
    return hstack(matrices, format="csr")


def _score(found: np.ndarray, labels: np.ndarray, classes: int) -> float:
    if classes:
        return float((found == labels).mean())
    correlation = float(np.corrcoef(found, labels)[0, 1])
    return correlation if np.isfinite(correlation) else 0.0
