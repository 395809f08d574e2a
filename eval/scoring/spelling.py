"""Text as token ids, and the bytes that they do not spell, which scores must include."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from dept.errors import ConfigError


@dataclass(frozen=True)
class Spelled:
    """A text in the tokens of one vocabulary.

    Attributes:
        ids: token ids.
    """

    ids: list[int]

    bytes: int
    """Bytes of the text as UTF-8."""

    unknown_bytes: int
    """Bytes among them of characters that no token spells, so that ``ids`` lack them."""


class Speller:
    """Tokenizes text as shards are made: without special tokens, ``</s>`` in a text being text.

    A character is unknown if a token over it is the unknown token or an untrained one, or if there
    is none over it at all: some tokenizers drop what they cannot spell. What a tokenizer replaces
    (capitals, say) counts as spelled.

    Args:
        tokenizer: a fast one.
        untrained_ids: ids that stand for nothing, see ``SourceModel``.

    Raises:
        ConfigError: the tokenizer is slow, and does not say which characters its tokens are of.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, untrained_ids: Sequence[int] = ()
    ) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(
                f"{tokenizer.name_or_path or type(tokenizer).__name__} is a slow tokenizer: save "
                f"its fast form (tokenizer.json) beside the model"
            )
        self._encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._encoder.encode_special_tokens = True
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self._encoder.post_processor = None  # that of GPT-2 takes spaces out of offsets
        unknown = [] if tokenizer.unk_token_id is None else [tokenizer.unk_token_id]
        self._unknown = np.asarray([*unknown, *untrained_ids], np.int64)

    def spell(self, texts: Sequence[str]) -> list[Spelled]:
        """Each text by itself."""
        encodings = self._encoder.encode_batch(list(texts), add_special_tokens=False)
        return [
            Spelled(encoding.ids, len(text.encode()), self._unknown_bytes(text, encoding))
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _unknown_bytes(self, text: str, encoding) -> int:
        spans = np.asarray(encoding.offsets, np.int64).reshape(-1, 2)
        bad = np.isin(encoding.ids, self._unknown)
        unknown = ~_covered(spans, len(text)) | _covered(spans[bad], len(text))
        return sum(len(text[i].encode()) for i in np.flatnonzero(unknown))


def _covered(spans: np.ndarray, length: int) -> np.ndarray:
    """bool[length]: characters inside at least one of the spans, int64[n, 2]."""
    edges = np.zeros(length + 1, np.int64)
    np.add.at(edges, spans[:, 0], 1)
    np.add.at(edges, spans[:, 1], -1)
    return np.cumsum(edges)[:length] > 0
