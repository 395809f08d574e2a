"""Layouts of the token sequences of an example (Radford et al. 2018, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dept.errors import ConfigError

Pieces = Mapping[str, Any]
"""Token ids of an example's pieces by name; of ``answers`` a list of them."""


@dataclass(frozen=True)
class Special:
    """Ids of the tokens that a layout adds: three rows of the embedding after all others.

    Attributes:
        start: the first token of each sequence.
        delimiter: the token between two groups of pieces.
    """

    start: int
    delimiter: int
    extract: int
    """The last token of each sequence; the head reads its hidden state."""

    @classmethod
    def after(cls, rows: int) -> Special:
        """The ids after an embedding of ``rows`` rows."""
        return cls(rows, rows + 1, rows + 2)


def lay_out(groups: Sequence[Sequence[Sequence[int]]], special: Special, limit: int) -> list[int]:
    """One sequence: ``[start; group; delimiter; group; ...; extract]``.

    Args:
        groups: pieces of token ids; those of one group follow each other without a delimiter.
        special: tokens to add.
        limit: the most tokens of the sequence. Pieces are cut, the added tokens never are.

    Raises:
        ConfigError: the added tokens alone exceed the limit.
    """
    pieces = [list(piece) for group in groups for piece in group]
    room = limit - 1 - len(groups)
    if room < len(pieces):
        raise ConfigError(
            f"max_length is {limit}, and {len(pieces)} pieces with their delimiters need "
            f"{len(pieces) + len(groups) + 1}: set it higher"
        )
    lengths = iter(cut([len(piece) for piece in pieces], room))
    ids = [special.start]
    for place, group in enumerate(groups):
        ids += [special.delimiter] if place else []
        for piece in group:
            ids += list(piece)[: next(lengths)]
    return [*ids, special.extract]


def cut(lengths: Sequence[int], room: int) -> list[int]:
    """Shorten pieces to a total length: the longest is cut first, one token at a time.

    Args:
        lengths: lengths of the pieces, in tokens.
        room: their greatest total length.

    Returns:
        The new lengths. Short pieces stay whole as long as possible; of equally long ones the first
        is cut first.
    """
    left, level = room, max(lengths)
    for place, length in enumerate(sorted(lengths)):
        if length > (share := left // (len(lengths) - place)):
            level = share
            break
        left -= length
    kept = [min(length, level) for length in lengths]
    longer = [place for place, length in enumerate(lengths) if length > level]
    for place in longer[len(longer) - (room - sum(kept)) :]:
        kept[place] += 1
    return kept


def classification(pieces: Pieces, special: Special, limit: int) -> list[list[int]]:
    """``[start; text; extract]``.

    Args:
        pieces: token ids of ``text``.
        special: tokens to add.
        limit: the most tokens of the sequence.

    Returns:
        One sequence of token ids.

    Raises:
        ConfigError: the added tokens and one token of each piece exceed the limit.
    """
    return [lay_out([[pieces["text"]]], special, limit)]


def entailment(pieces: Pieces, special: Special, limit: int) -> list[list[int]]:
    """``[start; premise; delimiter; hypothesis; extract]``.

    Args:
        pieces: token ids of ``premise`` and ``hypothesis``.
        special: tokens to add.
        limit: the most tokens of the sequence.

    Returns:
        One sequence of token ids.

    Raises:
        ConfigError: the added tokens and one token of each piece exceed the limit.
    """
    return [lay_out([[pieces["premise"]], [pieces["hypothesis"]]], special, limit)]


def similarity(pieces: Pieces, special: Special, limit: int) -> list[list[int]]:
    """Two sequences, since there is no order: ``[start; first; delimiter; second; extract]`` and
    the same with the second one first.

    Args:
        pieces: token ids of ``first`` and ``second``.
        special: tokens to add.
        limit: the most tokens of a sequence.

    Returns:
        Two sequences of token ids.

    Raises:
        ConfigError: the added tokens and one token of each piece exceed the limit.
    """
    one, other = [pieces["first"]], [pieces["second"]]
    return [lay_out(groups, special, limit) for groups in ([one, other], [other, one])]


def choice(pieces: Pieces, special: Special, limit: int) -> list[list[int]]:
    """A sequence an answer: ``[start; context; question; delimiter; answer; extract]``.

    Args:
        pieces: token ids of ``context``, of each of the ``answers`` and, if there is one, of
            ``question``.
        special: tokens to add.
        limit: the most tokens of a sequence.

    Returns:
        A sequence of token ids for each answer.

    Raises:
        ConfigError: the added tokens and one token of each piece exceed the limit.
    """
    asked = [pieces["context"], *([pieces["question"]] if "question" in pieces else [])]
    return [lay_out([asked, [answer]], special, limit) for answer in pieces["answers"]]


@dataclass(frozen=True)
class Layout:
    """A kind of task: which pieces its examples have, and their sequences.

    Attributes:
        sequences: function from the pieces, the tokens to add and the most tokens of a sequence to
            the sequences of token ids.
    """

    pieces: tuple[str, ...]
    """Names of the pieces; examples with the same first one are in the same split."""

    sequences: Callable[[Pieces, Special, int], list[list[int]]]

    optional: tuple[str, ...] = ()
    """Optional pieces."""


LAYOUTS = {
    "classification": Layout(("text",), classification),
    "entailment": Layout(("premise", "hypothesis"), entailment),
    "similarity": Layout(("first", "second"), similarity),
    "choice": Layout(("context", "question", "answers"), choice, optional=("question",)),
}
