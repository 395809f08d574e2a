"""What a silo keeps of its noise: the secret that it is drawn from, and what it has sent.

Both are in ``checkpoints/privacy`` of the silo, and never leave it. The ledger has every message
that may have left, whether the server averaged it or not: a source that returns to its state before
a round has still shown its update.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dept.checkpoint import durable
from dept.errors import ConfigError, NotSaved
from dept.method.local_privacy import LocalPrivacy, epsilon_of, noisy

FOLDER = "privacy"


class PrivacyLedger:
    """Adds noise to the updates of a silo, and keeps account of what it has sent.

    Args:
        privacy: the options.
        folder: ``runs/<run_name>/checkpoints/privacy``.
    """

    def __init__(self, privacy: LocalPrivacy, folder: Path) -> None:
        self.privacy, self.folder = privacy, folder
        self._path = folder / "ledger.json"
        self.sent: dict[str, list[dict[str, Any]]] = (
            json.loads(self._path.read_text()) if self._path.is_file() else {}
        )

    @cached_property
    def _secret(self) -> bytes:
        """32 random bytes of the operating system, drawn once for a run."""
        path = self.folder / "noise.key"
        if not path.is_file():
            with durable.replacing(path) as temporary:
                temporary.touch(0o600)
                temporary.write_bytes(secrets.token_bytes(32))
        return path.read_bytes()

    def refuse_without_ledger(self, rounds: int) -> None:
        """Refuse to continue a run whose ledger is gone, since its epsilon is not known.

        Args:
            rounds: how many rounds this silo has behind it.

        Raises:
            ConfigError: there are some, and no ledger.
        """
        if rounds and not self._path.is_file():
            raise ConfigError(
                f"{self._path} is missing, and this silo has sent updates in {rounds} rounds: copy "
                f"it back, or choose another run_name"
            )

    def protect(
        self, source: str, round_index: int, update: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The update of a source with noise; the same for the same update.

        Args:
            source: name of the source.
            round_index: round, from 0.
            update: its pseudo-gradient by name.
        """
        return noisy(update, self.privacy, self._secret, source, round_index)

    def enter(
        self, round_index: int, sources: Sequence[str], arrays: Mapping[str, np.ndarray]
    ) -> None:
        """Write what is going to be sent, unless the same was sent before.

        Args:
            round_index: round, from 0.
            sources: sources of the message.
            arrays: its arrays, ``<source>`` or ``<source>/<parameter>``.

        Raises:
            NotSaved: the disk does not take it, so nothing may be sent.
        """
        for source in sources:
            found = hashlib.sha256()
            for name in sorted(n for n in arrays if n == source or n.startswith(f"{source}/")):
                found.update(f"{name}\n".encode())
                found.update(np.ascontiguousarray(arrays[name]).tobytes())
            multiplier, digest = self.privacy.noise_multiplier, found.hexdigest()
            entry = {"round": round_index, "noise_multiplier": multiplier, "sha256": digest}
            entries = self.sent.setdefault(source, [])
            if digest not in (known["sha256"] for known in entries):
                entries.append(entry)
        try:
            durable.write(self._path, json.dumps(self.sent, indent=1) + "\n")
        except OSError as error:
            raise NotSaved(
                f"{self._path} could not be written ({error.strerror}), so no update was sent: "
                f"make room on that disk; the same command resumes"
            ) from error

    def epsilon(self, source: str) -> float:
        """The epsilon of all that was sent of a source."""
        multipliers = [entry["noise_multiplier"] for entry in self.sent.get(source, ())]
        return epsilon_of(multipliers, self.privacy.delta)

    def summary(self) -> dict[str, Any]:
        """The guarantee so far, for ``summary.json``."""
        found = {s: {"updates": len(e), "epsilon": self.epsilon(s)} for s, e in self.sent.items()}
        return {**vars(self.privacy), "sources": found}
