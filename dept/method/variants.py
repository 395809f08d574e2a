"""The variants of DEPT as a table: how each kind of parameter is shared between sources."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Sharing(str, Enum):
    """How the outer step treats a parameter of the local models."""

    AVERAGED = "averaged"
    """The updates of all sources are averaged into one global value."""

    BY_TOKEN_ROW = "averaged by token row"
    """Row v is averaged over the sources that hold token v; a row without a holder is unchanged."""

    PRIVATE = "private"
    """Each source has its own value, which is never communicated."""


class Vocabulary(str, Enum):
    """Which tokens the embedding of source k has rows for."""

    GLOBAL = "all tokens of the global tokenizer"
    TRIMMED = "the tokens of the global tokenizer that occur in source k"
    OWN = "all tokens of the tokenizer trained on source k alone"

    @property
    def is_global(self) -> bool:
        """Whether its tokens are those of the global tokenizer."""
        return self is not Vocabulary.OWN


class Role(str, Enum):
    """The role of a parameter: body theta, token embedding phi or positional embedding psi."""

    BODY = "theta"
    TOKENS = "phi"
    POSITIONS = "psi"


@dataclass(frozen=True)
class Variant:
    """One row of the table. ``phi`` includes an untied head, which has the same rows.

    Attributes:
        theta: how the body is shared (Section 3, Algorithm 1).
        phi: how the token embeddings are shared.
        psi: how the positional embeddings are shared.
        vocabulary: which tokens a source has rows for.
    """

    theta: Sharing
    phi: Sharing
    psi: Sharing
    vocabulary: Vocabulary

    def sharing(self, role: Role) -> Sharing:
        """How a parameter of that role is shared."""
        return {Role.BODY: self.theta, Role.TOKENS: self.phi, Role.POSITIONS: self.psi}[role]

    @property
    def has_global_embedding(self) -> bool:
        """Whether one global phi has a row for every token of the global tokenizer."""
        return self.phi is not Sharing.PRIVATE

    @property
    def averages_by_row(self) -> bool:
        """Whether some parameter is averaged by token row."""
        return Sharing.BY_TOKEN_ROW in (self.theta, self.phi, self.psi)


_AVERAGED, _BY_ROW, _PRIVATE = Sharing.AVERAGED, Sharing.BY_TOKEN_ROW, Sharing.PRIVATE

# Section 3 of the paper, Algorithm 1. A new variant is a new row.
VARIANTS = {
    #                   theta      phi       psi
    "glob": Variant(_AVERAGED, _AVERAGED, _AVERAGED, Vocabulary.GLOBAL),
    "trim": Variant(_AVERAGED, _BY_ROW, _AVERAGED, Vocabulary.TRIMMED),
    "spec": Variant(_AVERAGED, _PRIVATE, _PRIVATE, Vocabulary.TRIMMED),
    "spec_opt": Variant(_AVERAGED, _PRIVATE, _PRIVATE, Vocabulary.OWN),
}
