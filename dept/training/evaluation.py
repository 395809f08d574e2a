"""Evaluation of a source's text: by which worker, with which embedding, and of unseen tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from composer.core import Event, State
from composer.loggers import Logger
from torch import Tensor

from dept.checkpoint.epoch_end import after_the_epoch
from dept.config import icl
from dept.config.icl import is_task
from dept.method.variants import Sharing, Vocabulary
from dept.training.run import Run
from dept.transport.topology import Place


class Evaluation:
    """Evaluates the text of each source with the embedding of that source.

    Args:
        run: the run of this worker.

    Attributes:
        unseen_tokens: for each evaluated source, how many of its tokens had no row.
        has_tasks: whether in-context-learning tasks were evaluated since the last report.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.slots = run, run.slots
        self.icl_source = run.options.icl_source
        self._evaluators: list[Any] = []  # all evaluators, while only some of them run
        self.unseen_tokens: dict[str, int] = {}
        self.has_tasks = False
        self._is_task = False
        self._source: str | None = None
        self._unseen: Tensor | None = None
        self._count: Tensor | int = 0  # unseen tokens so far, on the device until the text ends

    def handlers(
        self, park: Callable[[State], None]
    ) -> dict[Event, Callable[[State, Logger], None]]:
        """The handler of each event of an evaluation.

        Args:
            park: loads the global parameters into the model.
        """

        def enter(state: State, logger: Logger) -> None:
            park(state)
            self.enter(state.dataloader_label or "eval")

        def leave(state: State, logger: Logger) -> None:
            self.leave()
            park(state)

        return {
            Event.EVAL_STANDALONE_START: lambda state, logger: self.choose(state),
            Event.EVAL_STANDALONE_END: self.restore,
            Event.EVAL_START: enter,
            Event.EVAL_BATCH_START: lambda state, logger: self.translate(state.batch),
            Event.EVAL_AFTER_FORWARD: lambda state, logger: self.score(state.outputs),
            Event.EVAL_END: leave,
            Event.EPOCH_CHECKPOINT: self.report,
        }

    def enter(self, label: str) -> None:
        """Begin the text, or the task, of the evaluator ``label``; the model must be parked.

        Raises:
            ValueError: the label is not a source, and only sources have embeddings.
        """
        variant, self._is_task = self.slots.variant, is_task(label)
        self.has_tasks |= self._is_task
        label = label.removeprefix("eval/")
        if self._is_task:
            self._source = self.icl_source
        else:
            self._source = label if label in self.slots.vocabularies else None
        if self._source is None:
            if not variant.has_global_embedding:
                raise ValueError(
                    f"evaluator {label!r} is not a source, and this variant has an embedding for "
                    f"its sources only: remove it"
                )
            return
        self.slots.evaluate_as(self._source)
        if variant.vocabulary is Vocabulary.TRIMMED and not self._is_task:
            self.unseen_tokens[self._source] = self._count = 0

    def translate(self, batch: dict[str, Tensor]) -> None:
        """Before a batch: translate its ids to rows, if the source has its own rows."""
        if self._source is not None and self.slots.variant.phi is Sharing.PRIVATE:
            self._unseen = self.slots.vocabularies[self._source].translate_batch(batch)

    def score(self, logits: Tensor) -> None:
        """After the forward pass of a batch: score tokens without a row, or outside ``V_k``."""
        variant = self.slots.variant
        if self._source is None or variant.vocabulary is not Vocabulary.TRIMMED:
            return
        vocabulary = self.slots.vocabularies[self._source]
        targets = self.slots.live.model.labels
        if vocabulary.is_identity:
            return
        if variant.phi is Sharing.PRIVATE:
            assert self._unseen is not None
            # Labels are shifted to the next token here, and the mask must be shifted too.
            unseen = torch.nn.functional.pad(self._unseen[:, 1:], (0, 1))
            unseen = unseen[: len(targets)]  # Composer removes the padding of the last batch
            score_unseen_uniformly(logits, targets, unseen, vocabulary.vocab_size)
        else:
            holds = vocabulary.holds(targets.device)
            unseen = (targets >= 0) & ~holds[targets.clamp(min=0)]
            restrict_to_vocabulary(logits, targets, holds)
        if not self._is_task:
            self._count = unseen.sum() + self._count

    def leave(self) -> None:
        """End the text of the current evaluator."""
        if self._source in self.unseen_tokens and not self._is_task:
            self.unseen_tokens[self._source] = int(self._count)
        self._source = self._unseen = None

    def own(self, evaluators: Sequence[Any]) -> list[Any]:
        """The evaluators that this worker runs, each only while it holds the source."""
        schedule, place = self.run.schedule, self.run.workers.place
        mine = schedule.sources_of(place.worker)
        chosen = own_evaluators(evaluators, schedule.sources, mine, place, self.icl_source)
        for evaluator in chosen:
            evaluator.eval_interval = after_the_epoch(
                evaluator.eval_interval, Event.BATCH_END, Event.EPOCH_END
            )
        if schedule.moves:
            wait_until_held(chosen, self._is_held)
        return chosen

    def choose(self, state: State) -> None:
        """Choose the evaluators of an evaluation outside training, which checks no intervals."""
        self._evaluators = list(state.evaluators)
        state.evaluators = [e for e in self._evaluators if self._is_held(e.label)]

    def restore(self, state: State, logger: Logger) -> None:
        """After it: no epoch ends that would report it, nor does Composer run the Gauntlet."""
        state.evaluators = self._evaluators
        self.report(state, logger, own=True)

    def report(self, state: State, logger: Logger, own: bool = False) -> None:
        """Log the results of the evaluations of all workers since the last round.

        Args:
            state: the state of Composer's trainer.
            logger: Composer's logger, which gets the results.
            own: whether to log this worker's own tasks, which Composer logs in training.

        Raises:
            WorkerLost: another worker did not arrive.
        """
        tasks = icl.results(state) if self.has_tasks else {}
        here = {"unseen": self.unseen_tokens, "tasks": tasks}
        self.unseen_tokens, self.has_tasks = {}, False
        stage = f"the evaluation of round {state.timestamp.epoch.value}"
        for worker, given in enumerate(self.run.workers.gather(here, stage=stage)):
            unseen = {f"eval/{name}/unseen_tokens": n for name, n in given["unseen"].items()}
            is_logged = worker == self.run.workers.place.worker and not own
            logger.log_metrics(unseen | ({} if is_logged else given["tasks"]))

    def _is_held(self, label: str) -> bool:
        source = source_of(label, self.run.schedule.sources, self.icl_source)
        return source is None or source in self.run.held.sources


def own_evaluators(
    evaluators: Sequence[Any],
    sources: Sequence[str],
    mine: Sequence[str],
    place: Place,
    icl_source: str | None = None,
) -> list[Any]:
    """The evaluators that a worker runs: those of its own sources, and a share of all other text.

    In-context-learning tasks stay together, since the Gauntlet aggregates them: on the worker of
    ``icl_source``, or on the first one.

    Args:
        evaluators: all evaluators of Composer.
        sources: names of all sources.
        mine: the sources that the worker may hold in any round.
        place: place of the worker.
        icl_source: the source whose embedding reads tasks, if there is no global embedding.
    """
    labels = [e.label for e in evaluators]
    has_tasks = place.worker == 0 if icl_source is None else icl_source in mine
    tasks = [label for label in labels if is_task(label)]
    own = [f"eval/{name}" for name in mine]
    others = {*labels} - {*tasks, *(f"eval/{name}" for name in sources)}
    shared = sorted(others, key=labels.index)[place.worker :: place.workers]
    chosen = {*own, *shared, *(tasks if has_tasks else ())}
    return [evaluator for evaluator in evaluators if evaluator.label in chosen]


def source_of(label: str, sources: Collection[str], icl_source: str | None = None) -> str | None:
    """The source whose private state the evaluator ``label`` may need; ``None`` if none.

    Args:
        label: label of the evaluator: ``eval/<source>``, or that of a task.
        sources: names of the sources to train.
        icl_source: the source whose embedding reads tasks; ``None`` with a global embedding.
    """
    source = icl_source if is_task(label) else label.removeprefix("eval/")
    return source if source in sources else None


def wait_until_held(evaluators: Sequence[Any], is_held: Callable[[str], bool]) -> None:
    """Make each evaluator due only while this worker holds its source.

    Args:
        evaluators: evaluators of Composer; their intervals are replaced.
        is_held: returns whether this worker now holds what the evaluator of a label needs.
    """
    for evaluator in evaluators:
        evaluator.eval_interval = _where_held(evaluator, is_held)


def _where_held(evaluator: Any, is_held: Callable[[str], bool]) -> Callable[[Any, Any], bool]:
    interval = evaluator.eval_interval

    def due(state: Any, event: Any) -> bool:
        is_due = interval(state, event)  # called on every worker, since intervals have state
        return is_due and is_held(evaluator.label)

    return due


@torch.no_grad()
def restrict_to_vocabulary(logits: Tensor, targets: Tensor, holds: Tensor) -> Tensor:
    """Score tokens of ``V_k`` by a softmax over ``V_k``, others by a softmax over all of ``V``.

    This is for a trimmed model with a global matrix (TRIM). Its training loss never compares a
    token of the source with one outside ``V_k``, so its evaluation does not either. The full matrix
    scores the other tokens.

    Args:
        logits: float[batch, length, V], of the full matrix; changed in place.
        targets: int64[batch, length], the id to predict at each position, negative if none.
        holds: bool[V], the tokens of the source.

    Returns:
        The logits.
    """
    inside = (targets >= 0) & holds.to(targets.device)[targets.clamp(min=0)]
    outside_tokens = ~holds.to(logits.device)
    return logits.masked_fill_(inside.unsqueeze(-1) & outside_tokens, -math.inf)


@torch.no_grad()
def score_unseen_uniformly(
    logits: Tensor, targets: Tensor, unseen: Tensor, vocab_size: int
) -> Tensor:
    """Make a token without a row cost ``ln V`` nats, that of a uniform prediction over ``V``.

    This is for a model with private embeddings only (SPEC), which cannot distinguish such tokens.
    Leaving them out would make a small vocabulary look better than it is.

    Args:
        logits: float[batch, length, rows]; changed in place.
        targets: int64[batch, length], the row to predict at each position.
        unseen: bool[batch, length], the positions whose true token has no row.
        vocab_size: ``V`` of the tokenizer.

    Returns:
        The logits.
    """
    others = max(logits.shape[-1] - 1, 1)
    # The softmax then gives the target 1 / V, and the other rows share the rest. Nothing here waits
    # for a GPU, as an index of unknown length would.
    logits.masked_fill_(unseen.unsqueeze(-1), math.log((vocab_size - 1) / others))
    at = targets.clamp(min=0).unsqueeze(-1)
    own = logits.gather(-1, at)
    return logits.scatter_(-1, at, own.masked_fill_(unseen.unsqueeze(-1), 0.0))
