"""Two rules for which source a text is of: unigram counts of its tokens, or the trained models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dept.data.corpus import GLOBAL, PreparedCorpus, PreparedSource
from dept.errors import ConfigError

if TYPE_CHECKING:
    from dept.evaluation.models.source_models import TrainedRun

RULES = ("unigram", "model")


def unigram_log_probabilities(counts: np.ndarray) -> np.ndarray:
    """Log of ``(count_v + a) / (n + a V)``, where ``a = n_1 / V``, and ``n_1`` tokens occur once.

    The probability of unseen tokens is then ``n_1 / (n + n_1)``, the estimate of Good and Turing
    (Good 1953). With ``a = 1`` (``dept/data/corpus.py``, for the cross-entropy of one source), a
    source with little text would give unseen tokens more probability the larger the vocabulary is,
    and would be chosen for text that no source knows.

    Args:
        counts: int64[V], counts of training tokens.

    Returns:
        float64[V], in nats.
    """
    counts = np.asarray(counts, np.float64)
    once = max(float((counts == 1).sum()), 1.0)
    return np.log((counts + once / len(counts)) / (counts.sum() + once))


def rank(values: Mapping[str, float]) -> list[tuple[str, float]]:
    """Sources by ascending bits per byte, equal ones in the given order."""
    return sorted(values.items(), key=lambda item: item[1])


class Router(Protocol):
    """One of the two rules, for a set of sources."""

    names: list[str]

    def bits_per_byte(self, texts: Sequence[str]) -> np.ndarray:
        """float64[len(names), len(texts)]; the lowest of a column is the one to pick."""


class UnigramRouter:
    """The paper's rule (section 3): the lowest unigram cross-entropy, here per byte.

    Args:
        corpus: of the sources, for its tokenizers.
        sources: to choose among, each in the tokens of its tokenizer.
    """

    def __init__(self, corpus: PreparedCorpus, sources: Sequence[PreparedSource]) -> None:
        from transformers import AutoTokenizer

        from dept.evaluation.scoring.spelling import Speller

        self.names = [source.name for source in sources]
        self._tokenizers = [source.tokenizer for source in sources]
        self._spellers = {
            name: Speller(
                AutoTokenizer.from_pretrained(corpus.tokenizers[name].path, trust_remote_code=False)
            )
            for name in dict.fromkeys(self._tokenizers)
        }
        self._log_p = [unigram_log_probabilities(source.counts()) for source in sources]

    def bits_per_byte(self, texts: Sequence[str]) -> np.ndarray:
        """See :class:`Router`."""
        from dept.evaluation.scoring.scorer import UNKNOWN_BYTE

        spelled = {name: speller.spell(texts) for name, speller in self._spellers.items()}
        return np.array(
            [
                [
                    (s.unknown_bytes * UNKNOWN_BYTE - log_p[s.ids].sum()) / s.bytes / math.log(2)
                    for s in spelled[tokenizer]
                ]
                for log_p, tokenizer in zip(self._log_p, self._tokenizers, strict=True)
            ]
        )


class ModelRouter:
    """The lowest bits per byte of the models themselves; one is in memory at a time.

    Args:
        run: with embeddings of sources.
        device: of torch.
    """

    def __init__(self, run: TrainedRun, device: str = "cpu") -> None:
        self.names = candidates(run)
        self._run, self._device = run, device

    def bits_per_byte(self, texts: Sequence[str]) -> np.ndarray:
        """See :class:`Router`."""
        from dept.evaluation.scoring.scorer import Scorer

        rows = []
        for name in self.names:
            source = self._run.model(name)
            source.model.to(self._device)
            rows.append([score.bits_per_byte for score in Scorer(source).texts(texts)])
        return np.array(rows)


def candidates(run: TrainedRun) -> list[str]:
    """The sources that a run has embeddings for; the global embedding is none to choose.

    Raises:
        ConfigError: it has no other.
    """
    names = [name for name in run.names if name != GLOBAL]
    if not names:
        raise ConfigError(
            f"{run.trained.path} has one embedding for all text: there is nothing to choose"
        )
    return names


def router_of(run: TrainedRun, rule: str, device: str = "cpu") -> Router:
    """The rule of that name for the sources of a run.

    Args:
        run: the trained run.
        rule: one of ``RULES``.
        device: device of torch; only the rule ``model`` uses it.
    """
    if rule == "model":
        return ModelRouter(run, device)
    return UnigramRouter(run.corpus, [run.prepared(name) for name in candidates(run)])
