"""Models of clusters of documents: directions of tf-idf vectors, and unigram models of tokens.

They are fitted to a sample, are saved without code, and score any text afterwards, so that new
documents and prompts are routed by them. Beside them stands a model that knows nothing of the text,
for a control: parts at random.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dept.checkpoint import durable
from dept.data_prep.clusters.hard_em import Division, hard_em
from dept.data_prep.files import write_json

# A word, or a single character of a script that writes no spaces.
ALONE = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = rf"[{ALONE}]|[^\W{ALONE}]+"
WORDS, DIRECTIONS, PIECES = 1 << 16, 100, 8192
STARTS = 4  # of the alternation; the best end counts


class ClusterModel(Protocol):
    """Models of k clusters, with the prices at which their training text is divided evenly."""

    prices: np.ndarray

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """float[len(texts), k]: how well each text fits each cluster; the largest is its own."""

    def save(self, folder: Path) -> None:
        """Write the model into a folder, for :func:`load`."""


@dataclass(frozen=True)
class TfIdf:
    """Cosine between the tf-idf vector of a text, in a few directions, and a centre (c-BTM, 2023).

    Args:
        words: the words that are counted, in the order of the columns.
        idf: float[V], weight of each word.
        directions: float[d, V], right singular vectors of the sample.
        centres: float[k, d], of length 1.
        prices: float[k].
    """

    words: list[str]
    idf: np.ndarray
    directions: np.ndarray
    centres: np.ndarray
    prices: np.ndarray

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """See :class:`ClusterModel`."""
        vectors = self._words_of.transform(texts)
        return _of_length_one(vectors @ self.directions.T) @ self.centres.T

    @cached_property
    def _words_of(self) -> Any:
        vectorizer = _vectorizer(vocabulary=self.words)
        vectorizer.idf_ = self.idf
        return vectorizer

    def save(self, folder: Path) -> None:
        """See :class:`ClusterModel`."""
        write_json(folder / "words.json", self.words)
        _write_arrays(
            folder,
            idf=self.idf,
            directions=self.directions,
            centres=self.centres,
            prices=self.prices,
        )
        write_json(folder / "model.json", {"method": "tfidf"})


@dataclass(frozen=True)
class Unigram:
    """Mean log-likelihood of the tokens of a text under a unigram model of each cluster.

    Args:
        tokenizer: a `tokenizers` tokenizer as JSON.
        log_p: float[k, V], log-probabilities of tokens in nats.
        prices: float[k].
    """

    tokenizer: str
    log_p: np.ndarray
    prices: np.ndarray

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """See :class:`ClusterModel`."""
        counts = _token_counts(self._encoder, texts)
        return _mean_log_likelihood(counts, self.log_p)

    @cached_property
    def _encoder(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.tokenizer)

    def save(self, folder: Path) -> None:
        """See :class:`ClusterModel`."""
        durable.write(folder / "tokenizer.json", self.tokenizer)
        _write_arrays(folder, log_p=self.log_p, prices=self.prices)
        write_json(folder / "model.json", {"method": "unigram"})


@dataclass(frozen=True)
class Random:
    """Parts that are drawn by the hash of a text: equal texts are in one part.

    Args:
        k: number of parts.
        seed: another one gives another division.
    """

    k: int
    seed: int

    @property
    def prices(self) -> np.ndarray:
        """Zeros: parts are even by chance."""
        return np.zeros(self.k)

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """See :class:`ClusterModel`: 1 for the part of a text, 0 for others."""
        # A salt of its own: splits and samples are drawn by other hashes of the same text.
        salt = self.seed.to_bytes(8, "big")
        digests = (hashlib.blake2b(t.encode(), digest_size=8, salt=salt).digest() for t in texts)
        parts = [int.from_bytes(digest, "big") % self.k for digest in digests]
        return np.eye(self.k)[parts]

    def save(self, folder: Path) -> None:
        """See :class:`ClusterModel`."""
        write_json(folder / "model.json", {"method": "random", "k": self.k, "seed": self.seed})


def load(folder: Path) -> ClusterModel:
    """Read the model that ``save`` wrote into a folder; no code in it is run."""
    saved = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    method = saved["method"]
    if method == "random":
        return Random(saved["k"], saved["seed"])
    arrays: Any = np.load(folder / "arrays.npz", allow_pickle=False)
    if method == "tfidf":
        words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        return TfIdf(words, *(arrays[k] for k in ("idf", "directions", "centres", "prices")))
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return Unigram(tokenizer, arrays["log_p"], arrays["prices"])


def fit_tfidf(texts: Sequence[str], k: int, seed: int, *, balanced: bool) -> TfIdf:
    """Balanced k-means of tf-idf vectors, reduced to a few directions (c-BTM, 2023).

    Args:
        texts: the sample.
        k: number of clusters.
        seed: seed of directions and first centres.
        balanced: whether clusters get equal bytes of the sample.
    """
    from sklearn.cluster import kmeans_plusplus
    from sklearn.decomposition import TruncatedSVD

    vectorizer = _vectorizer(min_df=2 if len(texts) > 100 else 1, max_features=WORDS)
    vectors = vectorizer.fit_transform(texts)
    reduced = TruncatedSVD(min(DIRECTIONS, min(vectors.shape) - 1), random_state=seed)
    points = _of_length_one(reduced.fit(vectors).transform(vectors))
    sizes = _bytes(texts)

    def centres_of(chosen: np.ndarray) -> np.ndarray:
        members = np.eye(k)[chosen] * sizes[:, None]
        return _of_length_one(members.T @ points)

    ends = []
    for start in range(STARTS):
        first = kmeans_plusplus(points, k, random_state=seed + start)[0]
        ends.append(hard_em(first, lambda c: points @ c.T, centres_of, sizes, balanced=balanced))
    centres, division = _best(ends)
    words = vectorizer.get_feature_names_out().tolist()
    return TfIdf(
        words,
        vectorizer.idf_.astype(np.float32),
        reduced.components_.astype(np.float32),
        centres.astype(np.float32),
        division.prices,
    )


def fit_unigram(texts: Sequence[str], k: int, seed: int, *, balanced: bool) -> Unigram:
    """Hard EM of unigram models of tokens.

    Args:
        texts: the sample; a byte-level tokenizer is trained on it.
        k: number of clusters.
        seed: seed of the first documents of the clusters.
        balanced: whether clusters get equal bytes of the sample.
    """
    from sklearn.cluster import kmeans_plusplus
    from sklearn.preprocessing import normalize
    from tokenizers import ByteLevelBPETokenizer, Tokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=PIECES, min_frequency=2, show_progress=False)
    tokenizer = trained.to_str()
    counts = _token_counts(Tokenizer.from_str(tokenizer), texts)
    sizes = _bytes(texts)
    of_all = (counts.sum(axis=0) + 1.0) / (counts.sum() + counts.shape[1])

    def log_p_of(chosen: np.ndarray) -> np.ndarray:
        members = np.eye(k)[chosen]
        of_clusters = (counts.T @ members).T  # [k, V]
        # Smoothed by the tokens of all clusters, as if each had a thousand more.
        total = of_clusters.sum(axis=1, keepdims=True)
        return np.log((of_clusters + 1000 * of_all) / (total + 1000))

    roots = normalize(counts.astype(np.float64), norm="l1").sqrt()  # Hellinger distance
    ends = []
    for start in range(STARTS):
        first = kmeans_plusplus(roots, k, random_state=seed + start)[1]
        alone = counts[first].toarray().astype(np.float64)
        models = np.log((alone + 1000 * of_all) / (alone.sum(axis=1, keepdims=True) + 1000))
        ends.append(
            hard_em(
                models,
                lambda log_p: _mean_log_likelihood(counts, log_p),
                log_p_of,
                sizes,
                balanced=balanced,
            )
        )
    log_p, division = _best(ends)
    return Unigram(tokenizer, log_p.astype(np.float32), division.prices)


def fit_random(texts: Sequence[str], k: int, seed: int, *, balanced: bool) -> Random:
    """Parts at random, whatever the sample.

    Args:
        texts: the sample.
        k: number of parts.
        seed: seed of the parts.
        balanced: has no effect.
    """
    return Random(k, seed)


FITS = {"tfidf": fit_tfidf, "unigram": fit_unigram, "random": fit_random}
"""How clusters are fitted, by the ``method`` of the corpus yaml."""


def _best(ends: list[tuple[Any, Division]]) -> tuple[Any, Division]:
    return max(ends, key=lambda end: end[1].objective)


def _bytes(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.encode()) for text in texts], np.float64)


def _vectorizer(**options: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(token_pattern=WORD, sublinear_tf=True, dtype=np.float32, **options)


def _of_length_one(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _token_counts(encoder: Any, texts: Sequence[str]) -> Any:
    """int64[n, V], sparse: how often each token is in each text."""
    from scipy.sparse import csr_array

    ids = [encoding.ids for encoding in encoder.encode_batch_fast(list(texts))]
    ends = np.cumsum([0, *map(len, ids)])
    flat = np.concatenate([np.array(i, np.int64) for i in ids]) if ids else np.empty(0, np.int64)
    shape = (len(ids), encoder.get_vocab_size())
    counts = csr_array((np.ones(len(flat), np.int64), flat, ends), shape)
    counts.sum_duplicates()
    return counts


def _mean_log_likelihood(counts: Any, log_p: np.ndarray) -> np.ndarray:
    return (counts @ log_p.T) / np.maximum(counts.sum(axis=1), 1)[:, None]


def _write_arrays(folder: Path, **arrays: np.ndarray) -> None:
    with durable.replacing(folder / "arrays.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
