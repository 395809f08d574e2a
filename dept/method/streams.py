"""Random draws: each has a stream of its own, named by its purpose.

No two purposes share a stream, so a draw depends on nothing but what names it: not on what else a
run does, on how many workers it has, or on where it was resumed.

| purpose | of | what is drawn |
|---|---|---|
| `sampling` | round | the sources of a round, S_t |
| `order` | stage, source, pass, block | the order of samples within a source |
| `mixture` | stage, batch | the source of each sequence of a mixed batch |
| `private_embedding` | source | phi_k and psi_k of a source that is trained for the first time |
| `start_from` | draw, and the source if it has its own | the embedding given to a trained body |
| `forgetting` | cycle | the embedding of active forgetting (ACT) after a reset |
| `dropout` | source, round, step, rank | what dropout leaves out in a local step |

The model as built is drawn by llm-foundry, which seeds torch with ``seed`` itself.
"""

from __future__ import annotations

import hashlib
import json


def seed_of(seed: int, purpose: str, *of: str | int) -> int:
    """The seed of a stream, for torch or numpy; the same on every machine.

    Args:
        seed: of the run.
        purpose: one of the table above.
        of: what else names the draw.

    Returns:
        The first 63 bits of the SHA-256 of ``[seed, purpose, *of]`` as JSON.
    """
    name = json.dumps([seed, purpose, *of])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
