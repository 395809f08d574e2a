"""A pre-trained body with a head for a task, as Composer trains it (Radford et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef
from transformers import PreTrainedModel

from dept.evaluation.finetuning.layouts import Special

Batch = Mapping[str, Tensor]


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The hidden state of the last token that is not padding, with padding on either side.

    Args:
        hidden: shape [N, T, d].
        mask: 1 for a token, 0 for padding, shape [N, T].

    Returns:
        Shape [N, d].
    """
    places = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * places).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def language_model_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of each token after those before it, in nats; the mean over tokens that are no
    padding and have one before them.

    Args:
        logits: shape [N, T, V].
        ids: shape [N, T].
        mask: 1 for a token, 0 for padding, shape [N, T].
    """
    counts = (mask[:, :-1] * mask[:, 1:]).bool()
    return F.cross_entropy(logits[:, :-1][counts].float(), ids[:, 1:][counts])


def add_rows(model: PreTrainedModel, generator: torch.Generator) -> Special:
    """Add the three tokens of layouts to a model: new rows of its token matrices.

    They are drawn from a normal distribution with the standard deviation of the existing rows. (The
    rows of ``<s>`` and ``</s>`` are not used: a source may not have trained them, and another model
    may not have them.)

    Args:
        model: model to extend, in place. Its token matrices are float tensors of shape [rows, d];
            afterwards they have three rows more.
        generator: random generator of the new rows.

    Returns:
        Their ids.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows + 3, mean_resizing=False)
    matrices = {id(head.weight): head.weight for head in _token_modules(model)}
    with torch.no_grad():
        for weight in matrices.values():  # one if they are tied
            drawn = torch.randn(3, weight.shape[1], generator=generator) * weight[:rows].std()
            weight[rows:] = drawn
    return Special.after(rows)


class FineTuned(ComposerModel):
    """A body and a linear head on the last token of each sequence.

    The loss is ``L_task + lm_coef * L_lm`` (Radford et al. 2018, equation 5): cross-entropy over
    the classes, or over the answers of a choice, or the squared error; and the language model's
    over the sequences themselves.

    Args:
        model: model with rows for the tokens of layouts.
        kind: kind of the task, a key of ``layouts.LAYOUTS``.
        classes: number of classes; 0 for regression.
        lm_coef: weight of the auxiliary loss, 0.5 in Radford et al.
        dropout: dropout of the head's input.
        embedding_dropout: dropout of the embedding's output.
        token_dropout: fraction of the text's tokens whose embedding is set to zero.
        mean: mean of the regression targets, the initial estimate.
        generator: random generator of the head.
        others: parameters of the embeddings of other sources, by source and by name in ``model``,
            without rows for the tokens of layouts. A batch whose ``source`` is one of them is read
            with these, and with the tokens of layouts as they are.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        kind: str,
        classes: int,
        lm_coef: float,
        dropout: float,
        embedding_dropout: float,
        token_dropout: float,
        generator: torch.Generator,
        mean: float = 0.0,
        others: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.others = dict(others or {})  # no buffers: checkpoints need not hold them
        self.model = model
        self.kind, self.classes, self.lm_coef = kind, classes, lm_coef
        self.embedding_dropout, self.token_dropout = embedding_dropout, token_dropout
        rows, width = model.get_input_embeddings().weight.shape
        self.of_text = rows - 3
        model.get_input_embeddings().register_forward_hook(self._drop)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes if classes and kind != "choice" else 1)
        with torch.no_grad():
            drawn = torch.randn(self.head.weight.shape, generator=generator)
            self.head.weight.copy_(0.02 * drawn)
            self.head.bias.fill_(0.0 if classes else mean)
        if not lm_coef and not model.config.tie_word_embeddings:
            model.get_output_embeddings().requires_grad_(False)  # nothing reads it
        self.metrics = nn.ModuleDict(_metrics(classes))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores and, in training, the loss of the language model.

        Args:
            batch: ``input_ids`` and ``attention_mask`` of shape [B, S, T], S sequences an example;
                ``source`` if they are in the tokens of another one.

        Returns:
            Scores of the classes [B, classes], of the answers [B, S], or the estimates [B]; and a
            scalar.
        """
        shape = batch["input_ids"].shape
        ids, mask = (batch[key].flatten(0, 1) for key in ("input_ids", "attention_mask"))
        hidden, language_model = self._read(ids, mask, batch.get("source"))
        read = last_token(hidden, mask).view(*shape[:2], -1)
        if self.kind != "choice":
            read = read.sum(dim=1)  # of both orders, where there are two sequences
        scores = self.head(self.dropout(read.float()))
        if self.kind == "choice" or not self.classes:
            scores = scores.squeeze(-1)
        return scores, language_model

    def _read(self, ids: Tensor, mask: Tensor, source: str | None) -> tuple[Tensor, Tensor]:
        """Hidden states [N, T, d], and the loss of the language model if it is needed."""
        given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        own = self._embedding_of(source) if source in self.others else {}
        asked, body = self.training and self.lm_coef > 0, self.model.base_model
        if not asked and body is not self.model:  # llm-foundry's MPT names no body
            prefix = f"{self.model.base_model_prefix}."
            own = {n.removeprefix(prefix): v for n, v in own.items() if n.startswith(prefix)}
            hidden = functional_call(body, own, kwargs=given).last_hidden_state
            return hidden, hidden.new_zeros(())
        given["output_hidden_states"] = True
        out = functional_call(self.model, own, kwargs=given)
        loss = language_model_loss(out.logits, ids, mask) if asked else out.logits.new_zeros(())
        return out.hidden_states[-1], loss

    def _embedding_of(self, source: str) -> dict[str, Tensor]:
        now, found = dict(self.model.named_parameters()), {}
        by_token = {id(head.weight) for head in _token_modules(self.model)}
        held = {name: value.to(now[name].device) for name, value in self.others[source].items()}
        self.others[source] = held  # copied to a GPU once
        for name, value in held.items():
            of_layouts = now[name][-3:] if id(now[name]) in by_token else now[name][:0]
            found[name] = torch.cat([value, of_layouts])
        return found

    def _drop(self, _: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        ids = given[0]
        if not self.training or ids.is_floating_point():
            return None  # llm-foundry's tied head calls the same module, with hidden states
        if self.token_dropout:
            dropped = torch.rand(ids.shape, device=ids.device) < self.token_dropout
            out = out.masked_fill((dropped & (ids < self.of_text))[..., None], 0.0)
        return F.dropout(out, self.embedding_dropout)

    def loss(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """The loss of a batch.

        Args:
            outputs: result of :meth:`forward`.
            batch: a batch with ``labels``: classes, numbers of the answers, or targets, of shape
                [B].

        Returns:
            The loss in nats for classes, or the squared error, plus ``lm_coef`` times the language
            model's loss in nats per token; a scalar.
        """
        scores, language_model = outputs
        if self.classes:
            task = F.cross_entropy(scores, batch["labels"])
        else:
            task = F.mse_loss(scores, batch["labels"])
        return task + self.lm_coef * language_model

    def eval_forward(self, batch: Batch, outputs: Any = None) -> Tensor:
        """The scores of a batch, without the language model's loss.

        Args:
            batch: as for :meth:`forward`.
            outputs: result of :meth:`forward`, if it is known already.

        Returns:
            Scores of the classes [B, classes], of the answers [B, S], or the estimates [B].
        """
        return outputs[0] if outputs is not None else self(batch)[0]

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        return {} if is_train else dict(self.metrics.items())

    def update_metric(self, batch: Batch, outputs: Tensor, metric: Metric) -> None:
        """Add a batch to a metric.

        Args:
            batch: a batch with ``labels`` of shape [B].
            outputs: result of :meth:`eval_forward`.
            metric: metric to update.
        """
        metric.update(outputs, batch["labels"])


def _token_modules(model: PreTrainedModel) -> list[nn.Module]:
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [module for module in modules if module is not None]


def _metrics(classes: int) -> dict[str, Metric]:
    """The first one is what epochs, and methods, are compared by."""
    if classes:
        return {"accuracy": MulticlassAccuracy(num_classes=classes, average="micro")}
    return {"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef()}
