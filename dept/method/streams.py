"""Random draws: each purpose has its own stream.

No two purposes share a stream, so a draw depends only on the key of its stream. It does not depend
on what else a run does, on the number of workers, or on where the run was resumed.

| purpose | of | what is drawn |
|---|---|---|
| `sampling` | round | the sources of a round, S_t |
| `order` | stage, source, pass, block | the order of samples within a source |
| `mixture` | stage, batch | the source of each sequence of a mixed batch |
| `private_embedding` | source | phi_k and psi_k of a source that is trained for the first time |
| `start_from` | draw, and source of a private embedding | the embedding given to a trained body |
| `forgetting` | cycle | the embedding of active forgetting (ACT) after a reset |
| `privacy` | round | the noise of differential privacy |
| `dropout` | source, round, step, rank | the dropout masks of a local step |

The noise of local differential privacy has no seed: it comes from a secret of the silo
(``dept/method/local_privacy.py``).

llm-foundry draws the initial model itself, after it seeds torch with ``seed``.
"""

from __future__ import annotations

import hashlib
import json


def seed_of(seed: int, purpose: str, *of: str | int) -> int:
    """The seed of a stream, for torch or numpy; the same on every machine.

    Args:
        seed: seed of the run.
        purpose: one of the table above.
        of: the rest of the key, as in the table above.

    Returns:
        The first 63 bits of the SHA-256 of ``[seed, purpose, *of]`` as JSON.
    """
    name = json.dumps([seed, purpose, *of])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
