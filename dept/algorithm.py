"""DEPT as a Composer algorithm: when each part of the method happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from composer.callbacks import CheckpointSaver
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import Tensor

from dept import updates
from dept.evaluation import restrict_to_vocabulary, score_unseen_uniformly
from dept.loader import SourceLoader
from dept.options import DeptOptions, parse
from dept.outer_optimizer import OuterOptimizer
from dept.reduction import Reduction
from dept.schedule import RoundSchedule
from dept.slots import Slots
from dept.swap import LiveModel
from dept.variants import Sharing, Vocabulary
from dept.vocabulary import VocabularyMap


class Dept(Algorithm):
    """Decoupled embeddings for pre-training (Algorithm 1 of the paper).

    A round is an epoch of the loader over sources: ``sources_per_round`` slots of ``local_steps``
    batches. Each slot trains one source from the global model of the round; at the end of the
    epoch the outer optimizer takes the average of the local models. Evaluators and checkpoints
    that follow see the new global model.

    Args:
        options: see :class:`dept.options.DeptOptions`.

    Raises:
        ValueError: an option is unknown or has no such value.
    """

    def __init__(self, **options: Any) -> None:
        self.options = parse(DeptOptions, "algorithms.dept", options)
        self.variant = self.options.sharing
        self.outer_optimizer = OuterOptimizer(**self.options.outer_optimizer)
        self.loader: SourceLoader
        self.schedule: RoundSchedule
        self.slots: Slots
        self.reduction: Reduction | None = None
        self.round: dict[str, dict[str, Any]] = {}
        self.totals: dict[str, Any] = {
            "rounds_trained": {},
            "tokens": {},
            "sent_bytes": 0,
            "swap_seconds": 0.0,
            "outer_step_seconds": 0.0,
        }
        self.evaluating: str | None = None
        self.unseen: Tensor | None = None
        self.unseen_tokens = 0
        self._handlers = {
            Event.BEFORE_LOAD: self._bind,
            Event.AFTER_LOAD: self._take_global_model,
            Event.FIT_START: self._start_loader,
            Event.EPOCH_START: self._start_loader,
            Event.AFTER_DATALOADER: self._enter_slot,
            Event.BATCH_END: self._after_step,
            Event.BATCH_CHECKPOINT: self._before_checkpoint,
            Event.EPOCH_END: self._outer_step,
            Event.EVAL_START: self._enter_evaluation,
            Event.EVAL_BATCH_START: self._translate_evaluation,
            Event.EVAL_AFTER_FORWARD: self._score,
            Event.EVAL_END: self._leave_evaluation,
        }

    def match(self, event: Event, state: State) -> bool:
        if event == Event.BATCH_CHECKPOINT:
            savers = [c for c in state.callbacks if isinstance(c, CheckpointSaver)]
            return any(saver.save_interval(state, event) for saver in savers)
        return event in self._handlers

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        self._handlers[event](state, logger)

    # --- once -----------------------------------------------------------------------------------

    def _bind(self, state: State, logger: Logger) -> None:
        """Meet the model and the loader; what a checkpoint may replace is made here."""
        if not isinstance(state.train_dataloader, SourceLoader):
            raise ValueError("algorithms.dept needs train_loader.name: sources")
        self.loader = state.train_dataloader
        names = tuple(self.loader.prepared)
        self.schedule = RoundSchedule(
            sources=names,
            sources_per_round=self.options.sources_per_round or len(names),
            local_steps=self.options.local_steps,
            seed=state.rank_zero_seed,
        )
        self.loader.schedule = self.schedule
        state.dataloader_len = self.schedule.batches_per_round
        self.slots = Slots(
            LiveModel(state.model, state.optimizers[0]),
            self.variant,
            {name: self._vocabulary(name, state) for name in names},
            inner_state=self.options.inner_state,
            seed=state.rank_zero_seed,
        )

    def _vocabulary(self, source: str, state: State) -> VocabularyMap:
        prepared = self.loader.prepared[source]
        if self.variant.vocabulary is Vocabulary.TRIMMED:
            tokenizer = state.model.tokenizer
            unknown = tokenizer.unk_token_id
            return VocabularyMap.build(
                torch.from_numpy(prepared.local_vocabulary()),
                vocab_size=prepared.vocab_size,
                unknown_id=tokenizer.eos_token_id if unknown is None else unknown,
            )
        every_id = torch.arange(prepared.vocab_size)
        return VocabularyMap.build(every_id, vocab_size=prepared.vocab_size, unknown_id=0)

    def _take_global_model(self, state: State, logger: Logger) -> None:
        self.slots.take_start()
        for optimizer, scheduler in zip(state.optimizers, state.schedulers, strict=True):
            # The optimizer's own state is not in the checkpoint, so neither is the learning rate.
            for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
                group["lr"] = rate

    # --- a round --------------------------------------------------------------------------------

    def _start_loader(self, state: State, logger: Logger) -> None:
        self.loader.start(state.timestamp.epoch.value, state.timestamp.batch_in_epoch.value)

    def _enter_slot(self, state: State, logger: Logger) -> None:
        """Before a batch: let the model be its source's, and the ids its rows."""
        slot = self.schedule.slot_of_batch(state.timestamp.batch_in_epoch.value)
        source = self.schedule.drawn(state.timestamp.epoch.value)[slot]
        if self.slots.active != source:
            with self._timed("swap_seconds"):
                self.slots.begin(source)
        self._translate(state, source)

    def _after_step(self, state: State, logger: Logger) -> None:
        """After a batch: account for it, and end the slot if it was its last."""
        source = self.slots.active
        assert source is not None
        slot = self.round.setdefault(source, {"losses": []})
        slot["losses"].append(state.total_loss_dict["loss/train/total"])
        tokens = self.totals["tokens"]
        tokens[source] = tokens.get(source, 0) + state.batch["input_ids"].numel()
        if state.timestamp.batch_in_epoch.value % self.options.local_steps == 0:
            with self._timed("swap_seconds"):
                self._finish_slot(source)

    def _finish_slot(self, source: str) -> None:
        local = self.slots.finish()
        if self.reduction is None:
            self.reduction = Reduction(self.slots.start)
        train = self.loader.prepared[source].splits["train"]
        weight = 1.0 if self.options.weighting == "uniform" else float(train.tokens)
        self.reduction.add(local, weight, self.slots.rows(source))
        update = self.slots.update(local)
        self.round[source] |= {"norm": updates.norm(update), "sketch": updates.sketch(update)}
        rounds = self.totals["rounds_trained"]
        rounds[source] = rounds.get(source, 0) + 1

    def _outer_step(self, state: State, logger: Logger) -> None:
        """After the last slot: theta[t] = OuterOpt(theta[t-1], average of the local models)."""
        assert self.reduction is not None
        with self._timed("outer_step_seconds"):
            averages = self.reduction.averages()
            stepped = self.outer_optimizer.step(self.slots.start, averages)
            moved = updates.norm(self.slots.update(stepped))
            self.slots.start |= stepped
            self.slots.park()
        self.totals["sent_bytes"] += self.reduction.sent_bytes
        self._log_round(logger, {"sent_bytes": self.reduction.sent_bytes, "update_norm": moved})
        self.reduction, self.round = None, {}

    def _log_round(self, logger: Logger, figures: dict[str, float]) -> None:
        metrics = {f"dept/{name}": value for name, value in figures.items()}
        for source, slot in self.round.items():
            metrics[f"dept/{source}/train_loss"] = sum(slot["losses"]) / len(slot["losses"])
            metrics[f"dept/{source}/update_norm"] = slot["norm"]
        pairs = updates.cosines({source: slot["sketch"] for source, slot in self.round.items()})
        for (first, second), cosine in pairs.items():
            metrics[f"dept/cosine/{first}-{second}"] = cosine
        logger.log_metrics(metrics)

    # --- evaluation and checkpoints ---------------------------------------------------------------

    def _enter_evaluation(self, state: State, logger: Logger) -> None:
        """Evaluate the global model, with the embedding of the source that the text is from."""
        self.slots.park()
        self.unseen_tokens = 0
        label = (state.dataloader_label or "").removeprefix("eval/")
        self.evaluating = label if label in self.slots.vocabularies else None
        if self.evaluating is not None:
            self.slots.evaluate_as(self.evaluating)
        elif not self.variant.has_global_embedding:
            raise ValueError(
                f"evaluator {label!r} is not a source, and variant {self.options.variant} has an "
                f"embedding for its sources only: remove it"
            )

    def _translate_evaluation(self, state: State, logger: Logger) -> None:
        if self.evaluating is not None and self.variant.phi is Sharing.PRIVATE:
            self._translate(state, self.evaluating)

    def _score(self, state: State, logger: Logger) -> None:
        if self.evaluating is None or self.variant.vocabulary is not Vocabulary.TRIMMED:
            return
        vocabulary, targets = self.slots.vocabularies[self.evaluating], state.model.labels
        if vocabulary.is_identity:
            return
        if self.variant.phi is Sharing.PRIVATE:
            assert self.unseen is not None
            # Labels are those of the next token here; what was marked must move along.
            unseen = torch.nn.functional.pad(self.unseen[:, 1:], (0, 1))
            score_unseen_uniformly(state.outputs, targets, unseen, vocabulary.vocab_size)
        else:
            holds = vocabulary.holds().to(targets.device)
            unseen = (targets >= 0) & ~holds[targets.clamp(min=0)]
            restrict_to_vocabulary(state.outputs, targets, holds)
        self.unseen_tokens += int(unseen.sum())

    def _leave_evaluation(self, state: State, logger: Logger) -> None:
        if self.evaluating is not None and self.variant.vocabulary is Vocabulary.TRIMMED:
            logger.log_metrics({f"eval/{self.evaluating}/unseen_tokens": self.unseen_tokens})
        self.evaluating = None
        self.slots.park()

    def _before_checkpoint(self, state: State, logger: Logger) -> None:
        """A checkpoint in mid-round holds the global model, and the running slot beside it."""
        self.slots.park()

    # --- shared -----------------------------------------------------------------------------------

    def _translate(self, state: State, source: str) -> None:
        vocabulary = self.slots.vocabularies[source]
        if not vocabulary.is_identity:
            batch = state.batch
            batch["input_ids"], batch["labels"], self.unseen = vocabulary.translate(
                batch["input_ids"], batch["labels"]
            )

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.totals[name] += time.perf_counter() - began

    def state_dict(self) -> dict[str, Any]:
        """Everything but the global parameters: those are the model's in the same checkpoint."""
        if not self.slots.parked:
            raise RuntimeError("a checkpoint in mid-round must be taken through save_interval")
        return {
            "identity": self._identity(),
            "slots": self.slots.state_dict(),
            "reduction": self.reduction and self.reduction.state_dict(),
            "outer_optimizer": self.outer_optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "round": self.round,
            "totals": self.totals,
        }

    def load_state_dict(self, state: Any) -> None:
        """Restore what ``state_dict`` gave.

        Raises:
            ValueError: the checkpoint is of another variant, set of sources or round.
        """
        for key, value in self._identity().items():
            if state["identity"][key] != value:
                raise ValueError(
                    f"the checkpoint was made with {key} = {state['identity'][key]}, the yaml says "
                    f"{value}: set it to the same, or choose another run_name"
                )
        self.slots.take_start()
        self.slots.load_state_dict(state["slots"])
        if state["reduction"] is not None:
            self.reduction = Reduction(self.slots.start)
            self.reduction.load_state_dict(state["reduction"])
        self.outer_optimizer.load_state_dict(state["outer_optimizer"])
        self.loader.load_state_dict(state["loader"])
        self.round = state["round"]
        self.totals |= state["totals"]

    def _identity(self) -> dict[str, Any]:
        return {
            "variant": self.options.variant,
            "sources": list(self.schedule.sources),
            "sources_per_round": self.schedule.sources_per_round,
            "local_steps": self.options.local_steps,
            "inner_state": self.options.inner_state,
            "tokenizers": {n: p.tokenizer_hash for n, p in self.loader.prepared.items()},
        }
