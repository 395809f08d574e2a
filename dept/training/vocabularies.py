"""The rows of each source's token matrices, by the variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dept.data.corpus import PreparedSource
from dept.method.variants import Variant, Vocabulary
from dept.method.vocabulary import VocabularyMap


def vocabularies(
    prepared: Mapping[str, PreparedSource], variant: Variant, tokenizer: Any
) -> dict[str, VocabularyMap]:
    """The map between token ids and rows of each source.

    Args:
        prepared: the sources by name.
        variant: a trimmed one has rows for the tokens that occur in the source; others have rows
            for all tokens of the tokenizer.
        tokenizer: the global tokenizer; its unknown token, or else its end of text, replaces
            tokens without a row.
    """
    if variant.vocabulary is not Vocabulary.TRIMMED:
        return {
            name: VocabularyMap.build(
                torch.arange(source.vocab_size), vocab_size=source.vocab_size, unknown_id=0
            )
            for name, source in prepared.items()
        }
    unknown = tokenizer.unk_token_id
    return {
        name: VocabularyMap.build(
            torch.from_numpy(source.local_vocabulary()),
            vocab_size=source.vocab_size,
            unknown_id=tokenizer.eos_token_id if unknown is None else unknown,
        )
        for name, source in prepared.items()
    }
