"""Values computed from counts of tokens: unigram cross-entropy, and the vocabulary of a source.

Data preparation writes them, and training and evaluation read them, with the same functions.
"""

import math
from collections.abc import Iterable

import numpy as np

from dept.errors import DataError


def count_tokens(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Count the occurrences of each id; negative ids (padding, ignored labels) are skipped.

    Args:
        tokens: ids of any integer dtype and shape.
        vocab_size: number of ids.

    Returns:
        int64[vocab_size].

    Raises:
        DataError: an id is not below `vocab_size`.
    """
    ids = np.asarray(tokens).reshape(-1)
    if ids.dtype.kind != "u":
        ids = ids[ids >= 0]
    if ids.size and int(ids.max()) >= vocab_size:
        raise DataError(
            f"Token id {int(ids.max())} is beyond the vocabulary of {vocab_size}: "
            "the tokens were made with another tokenizer."
        )
    return np.bincount(ids.astype(np.int64, copy=False), minlength=vocab_size)


def unigram_cross_entropy(val_counts: np.ndarray, train_counts: np.ndarray) -> float:
    """Cross-entropy of validation tokens under the unigram model of the train counts.

    -sum_v val_v / |val| * log((train_v + 1) / (|train| + V)): add-one smoothing over the whole
    vocabulary makes the cost of a token that training never saw large but finite.

    Args:
        val_counts: occurrences of each id in validation, shape [V].
        train_counts: the same in training, shape [V].

    Returns:
        Nats per token.

    Raises:
        DataError: shapes differ, or there are no validation tokens.
    """
    val, train = np.asarray(val_counts, np.float64), np.asarray(train_counts, np.float64)
    if val.ndim != 1 or val.shape != train.shape:
        raise DataError(f"Counts of shape {val.shape} and {train.shape} are not of one vocabulary.")
    if val.sum() == 0:
        raise DataError("There are no validation tokens to compute a cross-entropy from.")
    log_p = np.log(train + 1.0) - math.log(train.sum() + len(train))
    return float(-(val * log_p).sum() / val.sum())


def local_vocabulary(counts: np.ndarray, special_ids: Iterable[int]) -> np.ndarray:
    """V_k: the ids that occur in training and the special ids, ascending, as int64[|V_k|].

    Args:
        counts: integer[vocab_size], occurrences of each id in the training samples.
        special_ids: ids of special tokens.
    """
    specials = np.asarray(sorted(special_ids), dtype=np.int64)
    return np.union1d(np.flatnonzero(np.asarray(counts) > 0), specials).astype(np.int64)
