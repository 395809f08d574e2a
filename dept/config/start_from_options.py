"""``callbacks.start_from``: what a run takes from another one."""

from __future__ import annotations

from dataclasses import dataclass

from dept.config.schema import integer, one_of


@dataclass(frozen=True)
class StartFromOptions:
    """``callbacks.start_from``: a body that another run has trained, for continued pre-training on
    a mixture, or for new sources of SPEC and SPEC-OPT."""

    checkpoint: str
    """A Composer checkpoint, or a folder of them, of which the newest is taken:
    ``runs/<run_name>/checkpoints``."""

    embedding: str = "random"
    """``random``: drawn from a stream of its own, the same for every method; ``pretrained``: the
    global one of the checkpoint (STD, GLOB, TRIM); ``merged``: made from the private ones of its
    sources (SPEC, SPEC-OPT), by token string (``embeddings/merged.py``). A new source has no
    pretrained one."""

    embedding_seed: int = 0
    """Names a draw of the random embedding: 0, 1, 2, ... are independent of one another, and of all
    that pre-training drew."""

    weighting: str = "counts"
    """Of sources that hold the same token: by ``counts`` of it, or ``uniform``."""

    def __post_init__(self) -> None:
        where = "callbacks.start_from"
        one_of("random", "pretrained", "merged").check(f"{where}.embedding", self.embedding)
        one_of("counts", "uniform").check(f"{where}.weighting", self.weighting)
        integer().check(f"{where}.embedding_seed", self.embedding_seed)
