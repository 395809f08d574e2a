"""The embeddings of other sources, which a fine-tuned body reads other languages with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dept.errors import ConfigError
from dept.evaluation.finetuning.layouts import Special
from dept.evaluation.models.source_models import SourceModel, TrainedRun
from dept.method.live_model import parameter_roles
from dept.method.variants import Role


@dataclass(frozen=True)
class Reading:
    """How the text of a source becomes hidden states of a fine-tuned body."""

    tokenizer: PreTrainedTokenizerBase
    special: Special
    """Ids of the tokens of layouts, after all others."""

    embedding: Mapping[str, Tensor] | None = None
    """Parameters of the source by their names in the model, float[rows, d], without rows for the
    tokens of layouts; ``None`` where the fine-tuned embedding reads the text."""


def readings(
    names: Iterable[str], tuned: SourceModel, special: Special, checkpoint: str, root: str | None
) -> dict[str, Reading]:
    """How each source is read: with its own embedding, or with the global one if that is tuned.

    Args:
        names: of sources.
        tuned: the model that is fine-tuned, as it was loaded.
        special: ids of the tokens of layouts in that model.
        checkpoint: that the model was loaded from.
        root: of its corpus.

    Raises:
        ConfigError: the checkpoint has no embedding of a source.
        DataError: the corpus is missing.
    """
    if tuned.prepared is None:  # the embedding of all sources, or of a model without sources
        return {name: Reading(tuned.tokenizer, special) for name in names}
    found, run = {}, TrainedRun(checkpoint, root)
    for name in names:
        if name not in run.names:
            raise ConfigError(
                f"data.transfer names {name!r}, and {checkpoint} has embeddings of "
                f"{', '.join(run.names)}: correct data.transfer"
            )
        of_source = run.model(name)
        embedding = embeddings(of_source.model)
        rows = of_source.model.get_input_embeddings().weight.shape[0]
        found[name] = Reading(of_source.tokenizer, Special.after(rows), embedding)
    return found


def embeddings(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of tokens and positions, by name, detached.

    Args:
        model: model of transformers.
    """
    roles = parameter_roles(model)
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if roles[name] is not Role.BODY
    }
