"""DEPT as a Composer algorithm: it decides when each part of the method runs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from dept.config.options import DeptOptions, parse
from dept.data.loader import SourceLoader
from dept.method import updates
from dept.method.outer_optimizer import OuterOptimizer
from dept.method.streams import seed_of
from dept.training import live, moves, resume, round_metrics, slot_faults
from dept.training.evaluation import Evaluation
from dept.training.federation.silo import Silo
from dept.training.registered import outer_optimizers
from dept.training.run import Held, Run
from dept.transport import process_group
from dept.transport.flower import link
from dept.transport.flower.link_of_ranks import LinkOfRanks


class Dept(Algorithm):
    """Decoupled embeddings for pre-training (Algorithm 1 of the paper).

    A round is an epoch of the loader over sources: the slots of this worker, of ``local_steps``
    batches each. Each slot trains one source from the global model of the round. At the end of the
    epoch workers synchronise, and the outer optimizer takes the average of all local models.
    Evaluators and checkpoints that follow see the new global model.

    Example:
        In a yaml of llm-foundry, beside ``train_loader: {name: sources, corpus: multilingual}``::

            algorithms:
              dept: {variant: spec, local_steps: 500, outer_optimizer: {name: nesterov, lr: 0.7}}

    Args:
        variant: ``glob``, ``trim``, ``spec`` or ``spec_opt``.
        local_steps: ``N_local``, steps of the inner optimizer in a slot.

    :class:`dept.config.options.DeptOptions` documents the other options.

    Raises:
        ConfigError: the value of an option is not allowed.
    """

    def __init__(
        self,
        variant: str,
        local_steps: int,
        sources_per_round: int | None = None,
        sampling: str = "uniform",
        outer_optimizer: Mapping[str, Any] = MappingProxyType({"name": "fedavg"}),
        compression: Mapping[str, Any] = MappingProxyType({"name": "none"}),
        average: Mapping[str, Any] = MappingProxyType({"name": "mean"}),
        clip_update_norm: float | None = None,
        privacy: Mapping[str, Any] | None = None,
        inner_state: str = "reset",
        inner_state_interval: Mapping[str, Any] | None = None,
        weighting: str = "uniform",
        ranks_per_worker: int = 1,
        worker_timeout: float = 3600.0,
        icl_source: str | None = None,
        upload_sources: bool = True,
        faults: str = "leave_out",
        outlier_multiple: float | None = 10.0,
        allow_source_changes: bool = False,
        federation: Mapping[str, Any] | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        self.options = parse(DeptOptions, "algorithms.dept", given)
        outer = self.options.outer_optimizer
        self.outer_optimizer = OuterOptimizer(**outer, classes=outer_optimizers(outer["name"]))
        self.outer_optimizer.check_step()
        if self.options.sharing.averages_by_row:
            self.outer_optimizer.check_by_row()
        self.workers = process_group.current()
        self.totals = round_metrics.none_yet(self.workers.count)
        self.held = Held()
        self.run: Run  # set when the model and the loader exist
        self.silo: Silo | None = None  # if a server of a federation directs this run
        self.losses: dict[str, list[float]] = {}  # of all sources in the last finished round
        self._rate = 0.0  # learning rate of the current step
        self._loaded: Mapping[str, Any] | None = None  # from a checkpoint, until workers agree
        self._handlers = {
            Event.INIT: lambda state, logger: live.prepare(state),
            Event.BEFORE_LOAD: self._bind,
            Event.AFTER_LOAD: self._agree,
            Event.FIT_START: lambda state, logger: self._set_synchronised(state, False),
            Event.EPOCH_START: self._start_round,
            Event.AFTER_DATALOADER: self._enter_slot,
            Event.AFTER_TRAIN_BATCH: lambda state, logger: self.run.slots.live.average_gradients(),
            Event.BATCH_END: self._after_step,
            Event.EPOCH_END: self._end_round,
        }

    def match(self, event: Event, state: State) -> bool:
        return event in self._handlers

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        self._handlers[event](state, logger)

    # --- once -----------------------------------------------------------------------------------

    def _bind(self, state: State, logger: Logger) -> None:
        """Bind the model and the loader, and build all state that a checkpoint may replace."""
        loader = state.train_dataloader
        if not isinstance(loader, SourceLoader):
            raise ValueError("algorithms.dept needs train_loader.name: sources")
        self.run = Run.build(
            options=self.options,
            workers=self.workers,
            loader=loader,
            live=live.live_model(state),
            tokenizer=state.model.tokenizer,
            seed=state.rank_zero_seed,
            outer_optimizer=self.outer_optimizer,
            totals=self.totals,
            held=self.held,
        )
        state.dataloader_len = self.run.schedule.batches_per_round
        if self.options.federation is not None:
            own = link.joined() if self.workers.leads else None
            self.silo = Silo(self.run, LinkOfRanks(own, self.workers))
            self._handlers[Event.FIT_END] = lambda state, logger: self.silo.finish(state)
        evaluation = Evaluation(self.run)
        state.evaluators = evaluation.own(state.evaluators)
        self._handlers |= evaluation.handlers(self.park)

    def _agree(self, state: State, logger: Logger) -> None:
        """Let all workers start from the checkpoint that the first worker may have loaded."""
        self.run.slots.take_start()
        is_resumed = resume.agree(self.run, state, self._loaded)
        self._loaded = None
        if self.silo is not None:
            self.silo.enter(state)
        elif is_resumed:
            resume.enter_round(self.run, state)

    # --- a round --------------------------------------------------------------------------------

    def _start_round(self, state: State, logger: Logger) -> None:
        round_index = state.timestamp.epoch.value
        if self.silo is not None:
            self.silo.start_round(state)
            return
        moves.follow(self.run, round_index)
        self.run.start_pass(round_index)
        state.dataloader_len = self.run.schedule.batches_of(round_index)

    def _enter_slot(self, state: State, logger: Logger) -> None:
        """Before a batch: load its source into the model, and translate its ids to rows."""
        source, step = state.batch.pop("source"), state.batch.pop("step")
        self.run.begun += 1
        slots, round_index = self.run.slots, state.timestamp.epoch.value
        if slots.active != source:
            with round_metrics.timed(self.totals, "swap_seconds"):
                self._set_synchronised(state, False)
                slots.begin(source)
                self._set_synchronised(state, True)
        self._rate = max(group["lr"] for group in state.optimizers[0].param_groups)
        # Dropout must depend neither on earlier slots of this worker nor on where a run resumed.
        rank = self.workers.place.rank
        live.seed_dropout(seed_of(slots.seed, "dropout", source, round_index, step, rank))
        slots.vocabularies[source].translate_batch(state.batch)

    def _after_step(self, state: State, logger: Logger) -> None:
        """After a batch: record it, and end the slot if it was the last batch of the slot."""
        source, ranks = self.run.slots.active, self.workers.place.ranks
        loss = state.total_loss_dict["loss/train/total"]
        samples, length = state.batch["input_ids"].shape
        self.run.take_step(
            source,
            loss=loss,
            rate=self._rate,
            samples=samples * ranks,
            tokens=samples * length * ranks,
        )
        slot_faults.look_at_loss(self.run, source, loss)
        logger.log_metrics({f"loss/train/{source}": loss})
        if self.run.records[source].steps == self.options.local_steps:
            with round_metrics.timed(self.totals, "swap_seconds"):
                if slot_faults.judge(self.run, source):
                    self.run.finish_slot(source)
                else:
                    self.run.slots.abandon()

    def _end_round(self, state: State, logger: Logger) -> None:
        with round_metrics.timed(self.totals, "outer_step_seconds"):
            metrics = self._outer_step(state)
        logger.log_metrics(metrics)

    def _outer_step(self, state: State) -> dict[str, float]:
        """After the last slot: take the outer step, and exchange the records of all workers."""
        run, stage = self.run, f"the outer step of round {self.totals['rounds'] + 1}"
        self.workers.wait_for_all(stage)
        run.drop_after_slots()
        left_out = slot_faults.left_out(run, stage)
        if self.silo is None:
            stepped = run.outer_step(left_out, stage=stage)
        else:
            stepped = self.silo.exchange(state, left_out)
        moved = updates.norm(run.slots.update(stepped)) if stepped else 0.0
        self.park(state)
        run.slots.close_round(stepped)
        every = run.exchange_records(stage=stage)
        if self.silo is not None:
            self.silo.end_round(state)
        self.losses = {source: record.losses for source, record in every.items()}
        of_round = {"sent_bytes": run.sent_bytes, "update_norm": moved, "left_out": len(left_out)}
        if run.epsilon is not None:
            of_round["privacy/epsilon"] = run.epsilon
        found = round_metrics.metrics(every, of_round) | run.passes(every)
        return found if self.silo is None else found | self.silo.epsilons()

    def _set_synchronised(self, state: State, on: bool) -> None:
        """Let the ranks of this worker average their gradients while a source is trained."""
        ranks = self.workers.place.ranks if on else 1
        state.model = self.run.slots.live.wrapped(state.model, ranks)

    def park(self, state: State) -> None:
        """Load the global parameters into the model; a running slot is suspended.

        A callback that writes a checkpoint within a round calls this first.
        """
        self._set_synchronised(state, False)
        self.run.slots.park()

    # --- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state that all workers share, except global parameters and files of sources.

        Raises:
            RuntimeError: a slot is running, so the model holds a source: call :meth:`park` first.
        """
        return resume.state_of(self.run)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a ``state_dict``, once the global parameters are in the model too.

        Raises:
            ValueError: the checkpoint is of another variant, set of sources or rule of sampling.
        """
        resume.refuse_another(self.run, state)
        self.outer_optimizer.load_state_dict(state["outer_optimizer"])
        self._loaded = state


def dept_of(state: State) -> Dept | None:
    """The algorithm of a run, if it is one of DEPT."""
    return next((a for a in state.algorithms if isinstance(a, Dept)), None)
