"""The options of ``callbacks.start_from``, with which a run starts from another one."""

from __future__ import annotations

from dataclasses import dataclass

from dept.config.schema import integer, one_of


@dataclass(frozen=True)
class StartFromOptions:
    """``callbacks.start_from``: start from a body that another run has trained, for continued
    pre-training on a mixture, or for new sources of SPEC and SPEC-OPT."""

    checkpoint: str
    """A Composer checkpoint, or a folder of them such as ``runs/<run_name>/checkpoints``, of which
    the newest is used."""

    embedding: str = "random"
    """``random``: drawn from a separate stream, the same for every method; ``pretrained``: the
    global one of the checkpoint (STD, GLOB, TRIM); ``merged``: made from the private ones of its
    sources (SPEC, SPEC-OPT), as ``combination`` says. A new source has no pretrained one."""

    embedding_seed: int = 0
    """Number of the draw of the random embedding: 0, 1, 2, ... are independent of one another, and
    of all draws of pre-training."""

    combination: str = "mean"
    """How ``merged`` makes a row (``embeddings/combinations.py``). A token that several sources
    hold is the mean of its rows. One that a single source holds is, with ``mean``, its row there;
    with ``subwords`` the mean of the shared tokens that spell it; with ``sparse`` a sparse
    combination of shared tokens, by orthogonal matching pursuit. One that none holds is made of
    what spells it."""

    weighting: str = "counts"
    """Weights of sources that hold the same token: by ``counts`` of it, or ``uniform``."""

    def __post_init__(self) -> None:
        where = "callbacks.start_from"
        one_of("random", "pretrained", "merged").check(f"{where}.embedding", self.embedding)
        one_of("mean", "subwords", "sparse").check(f"{where}.combination", self.combination)
        one_of("counts", "uniform").check(f"{where}.weighting", self.weighting)
        integer().check(f"{where}.embedding_seed", self.embedding_seed)
