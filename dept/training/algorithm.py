"""DEPT as a Composer algorithm: when each part of the method happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dept.checkpoint.source_files import SourceFiles
from dept.config import icl
from dept.config.options import DeptOptions, parse
from dept.data.loader import SourceLoader
from dept.method import updates
from dept.method.averaging import Share
from dept.method.live_model import LiveModel
from dept.method.outer_optimizer import OuterOptimizer
from dept.method.schedule import RoundSchedule
from dept.method.source_state import Slots
from dept.method.streams import seed_of
from dept.method.variants import Vocabulary
from dept.method.vocabulary import VocabularyMap
from dept.training import moves, resume, round_metrics, watch
from dept.training.evaluation import Evaluation, own_evaluators, source_of, wait_until_held
from dept.training.registered import outer_optimizers
from dept.transport import process_group
from dept.transport.exchange import Reduction


class Dept(Algorithm):
    """Decoupled embeddings for pre-training (Algorithm 1 of the paper).

    A round is an epoch of the loader over sources: the slots of this worker, of ``local_steps``
    batches each. Each slot trains one source from the global model of the round; at the end of
    the epoch workers meet, and the outer optimizer takes the average of all local models.
    Evaluators and checkpoints that follow see the new global model.

    Args:
        options: see :class:`dept.config.options.DeptOptions`.

    Raises:
        ValueError: an option is unknown or has no such value.
    """

    def __init__(self, **options: Any) -> None:
        self.options = parse(DeptOptions, "algorithms.dept", options)
        self.variant = self.options.sharing
        outer = self.options.outer_optimizer
        self.outer_optimizer = OuterOptimizer(**outer, classes=outer_optimizers(outer["name"]))
        self.outer_optimizer.check_step()
        if self.variant.averages_by_row:
            self.outer_optimizer.check_by_row()
        self.workers = process_group.current()
        self.loader: SourceLoader
        self.schedule: RoundSchedule
        self.slots: Slots
        self.reduction: Reduction
        self.round: dict[str, dict[str, Any]] = {}  # of the sources this worker draws
        self.losses: dict[str, list[float]] = {}  # of the last finished round, of all sources
        self.totals = round_metrics.none_yet(self.workers.count)
        # For SourceCheckpoints, which sets the first three if the run saves anything.
        self.files: SourceFiles | None = None
        self.fetch_source: Callable[[str, int], bool] | None = None  # where it saves remotely
        self.is_saving: Callable[[State, Event], bool] = lambda state, event: False
        self.keep_local_models = False
        self.local_models: dict[str, dict[str, Tensor]] = {}
        self.changed: set[str] = set()
        # What this worker holds, in which round, and the file of the run that has it as it is now,
        # unless it has changed since.
        self.held: tuple[str, ...] = ()
        self.held_in = 0
        self.in_file: dict[str, tuple[int, int]] = {}
        self.evaluators: list[Any] = []  # all, while those of some sources are evaluated
        self.rate = 0.0  # of the step being taken
        self.loaded: dict[str, Any] | None = None  # what the checkpoint gave, until all agree
        self._handlers = {
            Event.BEFORE_LOAD: self._bind,
            Event.AFTER_LOAD: self._agree,
            Event.FIT_START: self._unwrap,
            Event.EPOCH_START: self._start_round,
            Event.AFTER_DATALOADER: self._enter_slot,
            Event.BATCH_END: self._after_step,
            Event.BATCH_CHECKPOINT: self._before_checkpoint,
            Event.EPOCH_END: self._end_round,
            Event.EVAL_STANDALONE_START: self._choose_evaluators,
            Event.EVAL_STANDALONE_END: self._restore_evaluators,
            Event.EVAL_START: self._enter_evaluation,
            Event.EVAL_BATCH_START: lambda state, logger: self.evaluation.translate(state.batch),
            Event.EVAL_AFTER_FORWARD: lambda state, logger: self.evaluation.score(state.outputs),
            Event.EVAL_END: self._leave_evaluation,
            Event.EPOCH_CHECKPOINT: self._tell_evaluation,
        }

    def match(self, event: Event, state: State) -> bool:
        if event == Event.BATCH_CHECKPOINT:
            return self.is_saving(state, event)
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
            workers=self.workers.count,
            sampling=self.options.sampling,
        )
        self.loader.bind(self.schedule)
        state.dataloader_len = self.schedule.batches_per_round
        self.slots = Slots(
            LiveModel(state.model, state.optimizers[0]),
            self.variant,
            {name: self._vocabulary(name, state) for name in names},
            inner_state=self.options.inner_state,
            seed=state.rank_zero_seed,
        )
        self.evaluation = Evaluation(self.slots, self.options.icl_source)
        place = self.workers.place
        mine = self.schedule.sources_of(place.worker)
        state.evaluators = own_evaluators(
            state.evaluators, names, mine, place, self.options.icl_source
        )
        if self.schedule.moves:
            wait_until_held(state.evaluators, self._is_held)

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

    def _agree(self, state: State, logger: Logger) -> None:
        self.slots.take_start()
        if self.schedule.moves:
            moves.check_folder(self)
        # Rows without a holder stay what the round started from, not what the model was built with.
        self.reduction = Reduction(self.slots.start)
        resume.agree(self, state)

    # --- a round --------------------------------------------------------------------------------

    def _unwrap(self, state: State, logger: Logger) -> None:
        """Take the model out of what Composer wrapped it in for gradients of fixed shape."""
        self._set_synchronised(state, False)

    def _start_round(self, state: State, logger: Logger) -> None:
        moves.follow(self, state.timestamp.epoch.value)
        self.loader.start(state.timestamp.epoch.value, {})

    def _enter_slot(self, state: State, logger: Logger) -> None:
        """Before a batch: let the model be its source's, and the ids its rows."""
        source, step = self.loader.current
        if self.slots.active != source:
            with self._timed("swap_seconds"):
                self._set_synchronised(state, False)
                self.slots.begin(source)
                self._set_synchronised(state, True)
        self.rate = max(group["lr"] for group in state.optimizers[0].param_groups)
        # Dropout must not depend on who trained what before, nor on where a run was resumed.
        torch.manual_seed(
            seed_of(
                self.slots.seed,
                "dropout",
                source,
                state.timestamp.epoch.value,
                step,
                self.workers.place.rank,
            )
        )
        self.slots.vocabularies[source].translate_batch(state.batch)

    def _set_synchronised(self, state: State, on: bool) -> None:
        """Ranks of one worker average their gradients while the model is one source's.

        Anew for each slot, since DDP remembers the parameters that it was built with.
        """
        if isinstance(state.model, DistributedDataParallel):
            state.model._remove_autograd_hooks()
        state.model = self.slots.live.model
        if on and self.workers.place.ranks > 1:
            state.model = DistributedDataParallel(self.slots.live.model)

    def _park(self, state: State) -> None:
        self._set_synchronised(state, False)
        self.slots.park()

    def _after_step(self, state: State, logger: Logger) -> None:
        """After a batch: account for it, and end the slot if it was its last."""
        source = self.slots.active
        assert source is not None
        loss = state.total_loss_dict["loss/train/total"]
        slot = self.round.setdefault(source, {"losses": [], "rates": [], "tokens": 0})
        slot["losses"].append(loss)
        slot["tokens"] += state.batch["input_ids"].numel() * self.workers.place.ranks
        watch.take_step(self, state, source, loss)
        self.changed.add(source)
        logger.log_metrics({f"loss/train/{source}": loss})
        if len(slot["losses"]) == self.options.local_steps:
            with self._timed("swap_seconds"):
                self._finish_slot(source, state)

    def _finish_slot(self, source: str, state: State) -> None:
        if not watch.judge(self, state, source):
            self.slots.abandon()
            return
        local = self.slots.finish()
        self.reduction.add(local, self.share(source))
        update = self.slots.update(local)
        self.round[source] |= {"norm": updates.norm(update), "sketch": updates.sketch(update)}
        if self.keep_local_models:
            self.local_models[source] = {n: v.to("cpu", copy=True) for n, v in local.items()}

    def share(self, source: str) -> Share:
        """How a source weighs in the average, and which rows it holds."""
        train = self.loader.prepared[source].splits["train"]
        weight = 1.0 if self.options.weighting == "uniform" else float(train.tokens)
        return Share(weight, self.slots.rows(source))

    def _end_round(self, state: State, logger: Logger) -> None:
        """At the end of an epoch; or before, if an evaluation falls on the last batch of a round.

        Composer evaluates before it ends the epoch. (Checkpoints wait: dept/checkpoint/saver.py.)
        """
        taken = sum(len(slot["losses"]) for slot in self.round.values())
        if taken == self.schedule.batches_per_round:
            self._outer_step(state, logger)

    def _outer_step(self, state: State, logger: Logger) -> None:
        """After the last slot: theta[t] = OuterOpt(theta[t-1], average of the local models)."""
        round_index = self.loader.round_index
        stage = f"the outer step of round {round_index + 1}"
        with self._timed("outer_step_seconds"):
            waited = self.workers.wait_for_all(stage)
            left_out = watch.left_out(self, stage)
            shares = [
                [
                    self.share(s)
                    for s in self.schedule.slots_of(worker, round_index)
                    if s not in left_out
                ]
                for worker in range(self.workers.count)
            ]
            moved, stepped = 0.0, {}
            if any(shares):
                averages = self.reduction.averages(self.workers, shares, stage=stage)
                stepped = self.outer_optimizer.step(self.slots.start, averages)
                moved = updates.norm(self.slots.update(stepped))
            self._park(state)
            self.slots.close_round(stepped)
            here = {"slots": self.round, "sent": dict(self.workers.sent), "waited": waited}
            self.workers.sent.clear()
            every = self.workers.gather(here, stage=stage)
        slots = round_metrics.slots_of(every)
        of_round = {
            "sent_bytes": round_metrics.add(self.totals, every),
            "update_norm": moved,
            "left_out": len(left_out),
        }
        read = {
            f"dept/{source}/passes": self.totals["tokens"][source]
            / self.loader.prepared[source].splits["train"].tokens
            for source in slots
        }
        logger.log_metrics(round_metrics.metrics(slots, of_round) | read)
        self.losses = {source: slot["losses"] for source, slot in slots.items()}
        self.changed |= self.round.keys()  # they are between rounds now
        self.reduction, self.round, self.local_models = Reduction(self.slots.start), {}, {}

    # --- evaluation and checkpoints ---------------------------------------------------------------

    def _is_held(self, label: str) -> bool:
        source = source_of(label, self.schedule.sources, self.options.icl_source)
        return source is None or source in self.held

    def _choose_evaluators(self, state: State, logger: Logger) -> None:
        """An evaluation outside training asks no interval whether it is due here."""
        self.evaluators = list(state.evaluators)
        state.evaluators = [e for e in self.evaluators if self._is_held(e.label)]

    def _restore_evaluators(self, state: State, logger: Logger) -> None:
        state.evaluators = self.evaluators

    def _enter_evaluation(self, state: State, logger: Logger) -> None:
        self._end_round(state, logger)
        self._park(state)
        self.evaluation.enter(state.dataloader_label or "eval")

    def _leave_evaluation(self, state: State, logger: Logger) -> None:
        self.evaluation.leave()
        self._park(state)

    def _tell_evaluation(self, state: State, logger: Logger) -> None:
        """Log what all workers' evaluations gave since they last met, beside figures of text."""
        counted, self.evaluation.unseen_tokens = self.evaluation.unseen_tokens, {}
        here = {"unseen": counted, "tasks": icl.results(state) if self.evaluation.has_tasks else {}}
        self.evaluation.has_tasks = False
        stage = f"the evaluation of round {state.timestamp.epoch.value}"
        for worker, given in enumerate(self.workers.gather(here, stage=stage)):
            unseen = {f"eval/{name}/unseen_tokens": n for name, n in given["unseen"].items()}
            # Of its own tasks, Composer has told already.
            tasks = given["tasks"] if worker != self.workers.place.worker else {}
            logger.log_metrics(unseen | tasks)

    def _before_checkpoint(self, state: State, logger: Logger) -> None:
        """A checkpoint in mid-round holds the global model; slots are in files of their own."""
        self._park(state)

    # --- state -----------------------------------------------------------------------------------

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.totals[name] += time.perf_counter() - began

    def state_of(self, source: str) -> dict[str, Any]:
        """All there is of a source beside the global parameters, for its file.

        The running slot must be suspended (:meth:`dept.method.source_state.Slots.park`).
        """
        return {
            "last_round": self.totals["last_round"].get(source, 0),
            "tokenizer": self.loader.prepared[source].tokenizer_hash,
            "position": self.loader.positions[source],
            "slots": self.slots.state_of(source),
            "slot": self.round.get(source),
            "local_model": self.local_models.get(source),
        }

    def state_dict(self) -> dict[str, Any]:
        """What all workers know: global parameters are the model's, sources have their files."""
        if not self.slots.parked:
            raise RuntimeError("a checkpoint in mid-round must be taken through save_interval")
        return {
            "identity": self._identity(),
            # Of the global parameters, and of the file of each source that belongs to them.
            "round": self.totals["rounds"],
            "last_round": self.totals["last_round"],
            "outer_optimizer": self.outer_optimizer.state_dict(),
            "totals": self.totals,
            # Of a source of this worker without a slot, too: its file may be newer than this.
            "steps": dict.fromkeys(self.held, 0)
            | {source: len(slot["losses"]) for source, slot in self.round.items()},
        }

    def load_state_dict(self, state: Any) -> None:
        """Restore what ``state_dict`` gave, once the global parameters are in the model too.

        Raises:
            ValueError: the checkpoint is of another variant, set of sources or round.
        """
        for key, value in self._identity().items():
            before = state["identity"][key]
            if before != value and key == "groups":
                raise ValueError(
                    f"the checkpoint's sources were drawn from {before} groups of neighbours, and "
                    f"would now be drawn from {value}: set algorithms.dept.sampling to what it "
                    f"was, and where that is stratified, start as many workers"
                )
            if before != value:
                raise ValueError(
                    f"the checkpoint was made with {key} = {before}, the yaml says {value}: set it "
                    f"to the same, or choose another run_name"
                )
        self.outer_optimizer.load_state_dict(state["outer_optimizer"])
        self.loaded = state

    def _identity(self) -> dict[str, Any]:
        return {
            "variant": self.options.variant,
            "sources": list(self.schedule.sources),
            "sources_per_round": self.schedule.sources_per_round,
            "groups": self.schedule.groups,
            "local_steps": self.options.local_steps,
            "inner_state": self.options.inner_state,
            "block_shards": self.loader.block_shards,
            "tokenizers": {n: p.tokenizer_hash for n, p in self.loader.prepared.items()},
        }
