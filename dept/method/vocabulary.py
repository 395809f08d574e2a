"""The map between token ids in the shards and rows of a source's embedding matrix."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

IGNORED = -100  # no loss is computed for this label, as in torch and llm-foundry


@dataclass(frozen=True)
class VocabularyMap:
    """The rows of a source's embedding matrix, as a subset ``V_k`` of a tokenizer's ids.

    Attributes:
        token_ids: int64[rows]; row r of the local matrix is token ``token_ids[r]``.
        row_of_id: int64[vocab_size]; the row of each id, ``-1`` if the source has none.
        unknown_row: the row that replaces an input token without a row.
    """

    token_ids: Tensor
    row_of_id: Tensor
    unknown_row: int
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(cls, token_ids: Tensor, *, vocab_size: int, unknown_id: int) -> VocabularyMap:
        """Build the map from ``token_ids`` (sorted, distinct, each in ``[0, vocab_size)``).

        Args:
            token_ids: int64[rows], the tokens that the source holds.
            vocab_size: ``|V|`` of the tokenizer.
            unknown_id: the id whose row replaces tokens without a row; the source must hold it.

        Raises:
            ValueError: an id is outside the vocabulary, repeated, or ``unknown_id`` is not held.
        """
        token_ids = token_ids.to(torch.int64)
        if token_ids.numel() == 0 or token_ids[0] < 0 or token_ids[-1] >= vocab_size:
            raise ValueError(f"token ids must be in [0, {vocab_size})")
        if not bool((token_ids[1:] > token_ids[:-1]).all()):
            raise ValueError("token ids must be sorted and distinct")
        row_of_id = torch.full((vocab_size,), -1, dtype=torch.int64)
        row_of_id[token_ids] = torch.arange(token_ids.numel())
        unknown_row = int(row_of_id[unknown_id])
        if unknown_row < 0:
            raise ValueError(f"the unknown token {unknown_id} is not among the source's tokens")
        return cls(token_ids=token_ids, row_of_id=row_of_id, unknown_row=unknown_row)

    @property
    def rows(self) -> int:
        """``|V_k|``."""
        return self.token_ids.numel()

    @property
    def vocab_size(self) -> int:
        """``|V|``, of the tokenizer."""
        return self.row_of_id.numel()

    @property
    def is_identity(self) -> bool:
        """Whether rows equal ids, so that nothing is translated."""
        return self.rows == self.vocab_size

    def holds(self, device: torch.device | str = "cpu") -> Tensor:
        """bool[vocab_size], on ``device``: which ids have a row."""
        return self._rows_on(torch.device(device)) >= 0

    def _rows_on(self, device: torch.device) -> Tensor:
        """``row_of_id`` on a device; copied there once."""
        if device not in self._copies:
            self._copies[device] = self.row_of_id.to(device)
        return self._copies[device]

    def translate_batch(self, batch: dict[str, Tensor]) -> Tensor | None:
        """Replace ``input_ids`` and ``labels`` of a batch by rows, as :meth:`translate` does.

        Returns:
            The mask of unseen labels; ``None`` if the source holds every token.
        """
        if self.is_identity:
            return None
        batch["input_ids"], batch["labels"], unseen = self.translate(
            batch["input_ids"], batch["labels"]
        )
        return unseen

    def translate(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Translate ids of the tokenizer to rows of the local matrix.

        Args:
            input_ids: int64[batch, length].
            labels: int64[batch, length], ``IGNORED`` where there is nothing to predict.

        Returns:
            ``(input_rows, label_rows, unseen)``. An input or a label without a row becomes the
            unknown row, and ``unseen`` (bool, same shape) marks such labels. The training split of
            a source has none, since ``V_k`` is made from it; other text may have some.
        """
        row_of_id = self._rows_on(input_ids.device)
        input_rows = row_of_id[input_ids]
        input_rows = torch.where(input_rows < 0, self.unknown_row, input_rows)
        predicted = labels != IGNORED
        label_rows = torch.where(predicted, row_of_id[labels.clamp(min=0)], IGNORED)
        unseen = predicted & (label_rows < 0)
        return input_rows, torch.where(unseen, self.unknown_row, label_rows), unseen
