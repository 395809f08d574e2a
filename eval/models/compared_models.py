"""Models to be compared: checkpoints with all their embeddings, and models from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dept.errors import ConfigError
from dept.evaluation.models.source_models import SourceModel, TrainedRun, is_checkpoint, load
from dept.training.summary import read_summary


@dataclass(frozen=True)
class Compared:
    """A model by the name it has in tables.

    Attributes:
        name: name in tables.
        path: path or hub name, as it was given.
    """

    name: str
    path: str
    run: TrainedRun | None
    """``None`` if the model is from elsewhere."""

    tokens: float | None
    """Tokens trained on, if known."""

    @property
    def embeddings(self) -> list[str]:
        """Names of the embeddings that :meth:`model` accepts."""
        return [self.name] if self.run is None else self.run.names

    def model(self, embedding: str) -> SourceModel:
        """The model with one of its embeddings, read from its file."""
        return load(self.path) if self.run is None else self.run.model(embedding)


def compared(
    paths: Sequence[str], tokens: Mapping[str, float], root: str | Path | None = None
) -> list[Compared]:
    """Models by their paths.

    Args:
        paths: of checkpoints, or what transformers takes for a model.
        tokens: trained on, by name or path, for models that do not state it.
        root: of the corpora of checkpoints.

    Raises:
        ConfigError: one cannot be read, is named twice, or ``tokens`` names none of them.
    """
    runs = {path: TrainedRun(path, root) if is_checkpoint(path) else None for path in paths}
    names = {path: _name(path, run) for path, run in runs.items()}
    if len(runs) < len(paths):
        raise ConfigError("a model is named twice: name each once")
    for path, name in dict(names).items():
        if list(names.values()).count(name) > 1:
            names[path] = path
    unknown = set(tokens) - {*names, *names.values()}
    if unknown:
        raise ConfigError(
            f"--tokens names {', '.join(sorted(unknown))}, and the models are "
            f"{', '.join(names.values())}"
        )
    found = []
    for path, run in runs.items():
        given = tokens.get(names[path], tokens.get(path))
        known = tokens_trained(run) if given is None and run is not None else given
        found.append(Compared(names[path], path, run, known))
    return found


def _name(path: str, run: TrainedRun | None) -> str:
    if run is not None:
        return run.folder.name
    return Path(path).resolve().name if Path(path).is_dir() else path


def tokens_trained(run: TrainedRun) -> int | None:
    """Tokens of a run and of the run that its body is from; ``None`` if unknown."""
    summary = read_summary(run.folder / "summary.json")
    by_source = sum(run.trained.tokens_trained.values())
    here = by_source or (summary and summary["tokens"])
    start = (run.config.get("callbacks") or {}).get("start_from")
    if not here or not start:
        return here or None
    try:
        before = tokens_trained(TrainedRun(start["checkpoint"]))
    except ConfigError:  # it may be gone since
        return None
    return before and before + here
