"""Evaluating a source's text: who does it, with which embedding, and tokens that have no row."""

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
    """Makes the global model that of the source whose text is evaluated.

    Args:
        run: of this worker.

    Attributes:
        unseen_tokens: of each source evaluated, how many of its tokens had no row.
        has_tasks: whether in-context-learning tasks were evaluated since they were last reported.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.slots = run, run.slots
        self.icl_source = run.options.icl_source
        self._evaluators: list[Any] = []  # all, while those of some sources are evaluated
        self.unseen_tokens: dict[str, int] = {}
        self.has_tasks = False
        self._is_task = False
        self._source: str | None = None
        self._unseen: Tensor | None = None

    def handlers(
        self, park: Callable[[State], None]
    ) -> dict[Event, Callable[[State, Logger], None]]:
        """What is done at each event of an evaluation.

        Args:
            park: lets the model be the global one.
        """

        def enter(state: State, logger: Logger) -> None:
            park(state)
            self.enter(state.dataloader_label or "eval")

        def leave(state: State, logger: Logger) -> None:
            self.leave()
            park(state)

        return {
            Event.EVAL_STANDALONE_START: lambda state, logger: self.choose(state),
            Event.EVAL_STANDALONE_END: lambda state, logger: self.restore(state),
            Event.EVAL_START: enter,
            Event.EVAL_BATCH_START: lambda state, logger: self.translate(state.batch),
            Event.EVAL_AFTER_FORWARD: lambda state, logger: self.score(state.outputs),
            Event.EVAL_END: leave,
            Event.EPOCH_CHECKPOINT: self.report,
        }

    def enter(self, label: str) -> None:
        """Begin with the text, or the task, of the evaluator ``label``; the model must be parked.

        Raises:
            ValueError: it is no source's, and there is no embedding but those of sources.
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
            self.unseen_tokens[self._source] = 0

    def translate(self, batch: dict[str, Tensor]) -> None:
        """Before a batch: its ids become rows, if the source has its own."""
        if self._source is not None and self.slots.variant.phi is Sharing.PRIVATE:
            self._unseen = self.slots.vocabularies[self._source].translate_batch(batch)

    def score(self, logits: Tensor) -> None:
        """After the forward pass of a batch: let tokens without a row cost what they should."""
        variant = self.slots.variant
        if self._source is None or variant.vocabulary is not Vocabulary.TRIMMED:
            return
        vocabulary = self.slots.vocabularies[self._source]
        targets = self.slots.live.model.labels
        if vocabulary.is_identity:
            return
        if variant.phi is Sharing.PRIVATE:
            assert self._unseen is not None
            # Labels are those of the next token here; what was marked must move along.
            unseen = torch.nn.functional.pad(self._unseen[:, 1:], (0, 1))
            unseen = unseen[: len(targets)]  # Composer takes away what pads the last batch of ranks
            score_unseen_uniformly(logits, targets, unseen, vocabulary.vocab_size)
        else:
            holds = vocabulary.holds().to(targets.device)
            unseen = (targets >= 0) & ~holds[targets.clamp(min=0)]
            restrict_to_vocabulary(logits, targets, holds)
        if not self._is_task:
            self.unseen_tokens[self._source] += int(unseen.sum())

    def leave(self) -> None:
        """The text is evaluated."""
        self._source = self._unseen = None

    def own(self, evaluators: Sequence[Any]) -> list[Any]:
        """The evaluators that this worker runs, each where and when its source is held."""
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
        """Before an evaluation outside training, which asks no interval whether it is due here."""
        self._evaluators = list(state.evaluators)
        state.evaluators = [e for e in self._evaluators if self._is_held(e.label)]

    def restore(self, state: State) -> None:
        """After it."""
        state.evaluators = self._evaluators

    def report(self, state: State, logger: Logger) -> None:
        """Log what the evaluations of all workers gave since the last round.

        Raises:
            WorkerLost: another worker did not arrive.
        """
        tasks = icl.results(state) if self.has_tasks else {}
        here = {"unseen": self.unseen_tokens, "tasks": tasks}
        self.unseen_tokens, self.has_tasks = {}, False
        stage = f"the evaluation of round {state.timestamp.epoch.value}"
        for worker, given in enumerate(self.run.workers.gather(here, stage=stage)):
            unseen = {f"eval/{name}/unseen_tokens": n for name, n in given["unseen"].items()}
            # Composer has logged this worker's own tasks.
            others = given["tasks"] if worker != self.run.workers.place.worker else {}
            logger.log_metrics(unseen | others)

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
    """The evaluators that a worker runs: of its own sources, and a share of all other text.

    In-context-learning tasks stay together, since the Gauntlet sums them up: with the worker of
    ``icl_source``, or with the first.

    Args:
        evaluators: of Composer.
        sources: names of all sources.
        mine: those that the worker may ever hold.
        place: of the worker.
        icl_source: whose embedding reads tasks, if there is no global one.
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
    """Whose private state the evaluator ``label`` may need; ``None`` if no source's."""
    source = icl_source if is_task(label) else label.removeprefix("eval/")
    return source if source in sources else None


def wait_until_held(evaluators: Sequence[Any], is_held: Callable[[str], bool]) -> None:
    """Let each evaluator be due only where, and as long as, its source is held.

    Args:
        evaluators: of Composer; changed.
        is_held: whether this worker holds what the evaluator of a label needs now.
    """
    for evaluator in evaluators:
        evaluator.eval_interval = _where_held(evaluator, is_held)


def _where_held(evaluator: Any, is_held: Callable[[str], bool]) -> Callable[[Any, Any], bool]:
    interval = evaluator.eval_interval

    def due(state: Any, event: Any) -> bool:
        is_due = interval(state, event)  # asked everywhere, since Composer's intervals remember
        return is_due and is_held(evaluator.label)

    return due


@torch.no_grad()
def restrict_to_vocabulary(logits: Tensor, targets: Tensor, holds: Tensor) -> Tensor:
    """Score tokens of ``V_k`` by a softmax over ``V_k``, others by one over all of ``V``.

    For a trimmed model with a global matrix (TRIM): its loss never compared a token of the source
    with one outside, so neither does its evaluation; the full matrix scores the rest.

    Args:
        logits: float[batch, length, V], of the full matrix; changed in place.
        targets: int64[batch, length], ids predicted at each position, negative where none is.
        holds: bool[V], the tokens of the source.

    Returns:
        The logits.
    """
    inside = torch.zeros_like(targets, dtype=torch.bool)
    predicted = targets >= 0
    inside[predicted] = holds.to(targets.device)[targets[predicted]]
    outside_tokens = ~holds.to(logits.device)
    return logits.masked_fill_(inside.unsqueeze(-1) & outside_tokens, -math.inf)


@torch.no_grad()
def score_unseen_uniformly(
    logits: Tensor, targets: Tensor, unseen: Tensor, vocab_size: int
) -> Tensor:
    """Make a token that has no row cost ``ln V`` nats: one in ``V``, as if nothing were known.

    For a model with private embeddings only (SPEC), which cannot tell such tokens apart. Leaving
    them out would make a small vocabulary look better than it is.

    Args:
        logits: float[batch, length, rows]; changed in place.
        targets: int64[batch, length], the row predicted at each position.
        unseen: bool[batch, length], the positions whose true token has no row.
        vocab_size: ``V``, of the tokenizer.

    Returns:
        The logits.
    """
    if bool(unseen.any()):
        others = max(logits.shape[-1] - 1, 1)
        # softmax then gives the target 1 / V, and the other rows share the rest
        logits[unseen] = math.log((vocab_size - 1) / others)
        logits[unseen, targets[unseen]] = 0.0
    return logits
