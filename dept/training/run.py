"""The state of a run of DEPT on one worker, independent of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dept.checkpoint.source_files import SourceFiles
from dept.config.options import DeptOptions
from dept.data.loader import SourceLoader
from dept.method import faults, updates
from dept.method.averaging import Share
from dept.method.compression import Compression
from dept.method.host_memory import to_host
from dept.method.live_model import LiveModel
from dept.method.moment_schedule import due
from dept.method.moments import MomentAverages, limit_of
from dept.method.outer_optimizer import OuterOptimizer
from dept.method.schedule import DirectedSchedule, RoundSchedule
from dept.method.slot_record import SlotRecord
from dept.method.source_state import Slots
from dept.method.streams import seed_of
from dept.training import round_metrics
from dept.training.vocabularies import vocabularies
from dept.transport.moment_exchange import average_moments
from dept.transport.reductions import Reduction, Reductions
from dept.transport.workers import Workers


@dataclass
class Held:
    """The sources whose state a worker holds, and the files of that state.

    Attributes:
        sources: their names.
        round_index: the round in which the worker holds them.
        in_file: round and step of the file with the current state of a source.
        changed: sources that have changed since they were written.
        files: the files of sources of the run; ``None`` if it saves nothing.
        fetch: fetches from a remote folder the files of a source that a checkpoint may read.
        keeps_local_models: whether a checkpoint in mid-round may need those of finished slots.
    """

    sources: tuple[str, ...] = ()
    round_index: int = 0
    in_file: dict[str, tuple[int, int]] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    files: SourceFiles | None = None
    fetch: Callable[[str, int], bool] | None = None
    keeps_local_models: bool = False


@dataclass
class Run:
    """A worker's part of a run, and the state that all workers share.

    Attributes:
        options: options of ``algorithms.dept``.
        workers: the workers of the job.
        loader: the loader over sources; its batches have their source and step.
        schedule: rounds, slots and local steps.
        slots: the state of all sources around the one model in memory.
        outer_optimizer: takes the outer step.
        reductions: averages local models.
        tokenizer: the global tokenizer.
        totals: totals over rounds (:func:`dept.training.round_metrics.none_yet`).
        positions: number of samples of each source that were trained on.
        held: the sources of this worker.
        records: records of the slots of the running round on this worker, by source.
        local_models: shared parameters of the local models of finished slots, on the CPU.
        reduction: the reduction of the running round.
        plan: source and local step of each remaining batch of the round.
        begun: how many batches of the plan were begun.
        sent_bytes: bytes of models that all workers sent in the last round.
    """

    options: DeptOptions
    workers: Workers
    loader: SourceLoader
    schedule: RoundSchedule
    slots: Slots
    outer_optimizer: OuterOptimizer
    reductions: Reductions
    tokenizer: Any
    totals: dict[str, Any]
    held: Held
    positions: dict[str, int] = field(init=False)
    records: dict[str, SlotRecord] = field(default_factory=dict)
    local_models: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    reduction: Reduction = field(init=False)
    plan: list[tuple[str, int]] = field(default_factory=list)
    begun: int = 0
    sent_bytes: int = 0

    def __post_init__(self) -> None:
        self.positions = dict.fromkeys(self.schedule.sources, 0)

    @classmethod
    def build(
        cls,
        *,
        options: DeptOptions,
        workers: Workers,
        loader: SourceLoader,
        live: LiveModel,
        tokenizer: Any,
        seed: int,
        **others: Any,
    ) -> Run:
        """Build a run from the model and the loader of the trainer.

        Args:
            options: options of ``algorithms.dept``.
            workers: the workers of the job.
            loader: the loader over sources; it opens those that this worker may train.
            live: the model in memory, and its inner optimizer.
            tokenizer: the global tokenizer.
            seed: seed of the run.
            others: other attributes, passed on unchanged.

        Raises:
            DataError: a shard is missing.
            ConfigError: moments are averaged, and the inner optimizer is not one of Adam's kind.
            ValueError: sources, workers and sources per round do not fit together.
        """
        moments = None
        if options.inner_state == "average":
            moments = MomentAverages(options.moment_interval, limit_of(live.optimizer))
        names, is_silo = tuple(loader.prepared), options.federation is not None
        kind = DirectedSchedule if is_silo else RoundSchedule
        schedule = kind(
            sources=names,
            sources_per_round=len(names) if is_silo else options.sources_per_round or len(names),
            local_steps=options.local_steps,
            seed=seed,
            workers=workers.count,
            sampling=options.sampling,
        )
        loader.bind(schedule)
        rows = vocabularies(loader.prepared, options.sharing, tokenizer)
        slots = Slots(
            live,
            options.sharing,
            rows,
            inner_state=options.inner_state,
            seed=seed,
            moments=moments,
        )
        compression, aggregation = Compression.of(options.compression), options.aggregation()
        if not is_silo:
            aggregation.rule.check(schedule.sources_per_round)
        reductions = Reductions(compression, aggregation, sends=is_silo)
        parts = {"options": options, "workers": workers, "loader": loader, "schedule": schedule}
        return cls(**parts, slots=slots, reductions=reductions, tokenizer=tokenizer, **others)

    def open_round(self) -> None:
        """Begin a round from the global model, with no slot yet.

        In TRIM, a row without a holder keeps its value from the start of the round.
        """
        round_index = self.totals["rounds"]
        self.reduction = self.reductions.open(
            self.slots.start,
            self.schedule.drawn(round_index),
            seed_of(self.slots.seed, "privacy", round_index),
        )
        self.records, self.local_models = {}, {}

    def start_pass(self, round_index: int) -> None:
        """Let the loader read the remaining batches of a round."""
        self.plan = self.loader.start(round_index, self.steps, self.positions)
        self.begun = 0

    @property
    def coming_step(self) -> int:
        """The sequential step, (t - 1) N + i from 0, of the next batch."""
        steps = self.schedule.local_steps
        step = self.plan[self.begun][1] if self.begun < len(self.plan) else steps
        return self.loader.round_index * steps + step

    @property
    def steps(self) -> dict[str, int]:
        """Local steps taken in the running round, by source."""
        return {source: record.steps for source, record in self.records.items()}

    def share(self, source: str) -> Share:
        """The weight of a source in the average, and the rows it holds."""
        train = self.loader.prepared[source].splits["train"]
        weight = 1.0 if self.options.weighting == "uniform" else float(train.tokens)
        return Share(weight, self.slots.rows(source))

    def message_bytes(self, source: str) -> int:
        """Bytes that a source contributes to the average."""
        return self.reductions.message_bytes(self.slots.start, self.share(source))

    def outer_step(self, left_out: Collection[str], *, stage: str) -> dict[str, Tensor]:
        """theta[t] = OuterOpt(theta[t-1], theta[t-1] - mean of theta_k[t] over k in S_t).

        Algorithm 1, lines 8 and 9; phi and psi likewise, as far as the variant shares them. Moments
        of the inner optimizer that are due are averaged too, without the outer optimizer.

        Args:
            left_out: sources of the round whose local models are left out of the mean.
            stage: name of this point in errors.

        Returns:
            The new global parameters by name; empty if all sources are left out. (With
            differential privacy they have the noise of the round.)

        Raises:
            NumericalFault: a value would not be finite.
            WorkerLost: another worker did not arrive.
        """
        round_number = self.totals["rounds"] + 1
        drawn = [self.schedule.slots_of(w, round_number - 1) for w in range(self.workers.count)]
        shares = [{s: self.share(s) for s in sources if s not in left_out} for sources in drawn]
        if not any(shares) and self.reductions.aggregation.privacy is None:
            return {}
        means = self.reduction.averages(self.workers, shares, stage=stage)
        moments, step = average_moments(
            self.slots, self.reductions, self.workers, shares, round_number, stage=stage
        )
        stepped = self.outer_optimizer.step(self.slots.start, means)
        self.reductions.close(self.reduction)
        if moments:
            self.slots.moments.take(moments, step, round_number)
        return stepped

    def take_step(
        self, source: str, *, loss: float, rate: float, samples: int, tokens: int
    ) -> None:
        """Record a local step.

        Args:
            source: the source that was trained.
            loss: loss in nats per token.
            rate: the learning rate of the step.
            samples: samples of the batch, on all ranks of the worker.
            tokens: tokens of the batch, on all ranks of the worker.
        """
        record = self.records.setdefault(source, SlotRecord())
        record.losses.append(loss)
        record.rates.append(rate)
        record.tokens += tokens
        self.positions[source] += samples
        self.held.changed.add(source)

    def finish_slot(self, source: str) -> None:
        """End the active slot, and add its local model to the average."""
        local = self.slots.finish(self.totals["rounds"] + 1)
        self.records[source].sketch = updates.sketch(self.slots.update(local))
        self.reduction.add(source, local, self.share(source))
        if self.held.keeps_local_models:
            self.local_models[source] = to_host(local)

    def drop_after_slots(self) -> None:
        """Free what only the slots of the round needed, since the outer step needs the memory."""
        self.slots.live.drop_gradients()
        self.local_models = {}  # for checkpoints in mid-round

    def exchange_records(self, *, stage: str) -> dict[str, SlotRecord]:
        """End the round: exchange the records of all slots, and add them to the totals.

        Args:
            stage: name of this point in errors.

        Returns:
            The records of all slots of the round, by source.

        Raises:
            WorkerLost: another worker did not arrive.
        """
        slots = {source: record.state_dict() for source, record in self.records.items()}
        here = {"slots": slots, "sent": dict(self.workers.sent), "waited": self.workers.waited}
        self.workers.sent.clear()
        self.workers.waited = 0.0
        every = self.workers.gather(here, stage=stage)
        found = [given["slots"].items() for given in every]
        records = {source: SlotRecord.of(state) for of in found for source, state in of}
        sent, waits = [given["sent"] for given in every], [given["waited"] for given in every]
        moments = len(due(self.options.moment_interval, self.totals["rounds"] + 1))
        self.sent_bytes = round_metrics.add(self.totals, records, sent, waits)
        for source, record in records.items():
            exchanges = 1 if record.fault is not None else 1 + moments
            self.totals["communicated"] += exchanges * self.slots.communicated(source)
            self.totals["message_bytes"] += exchanges * self.message_bytes(source)
        self.held.changed |= self.records.keys()  # they are between rounds now
        self.open_round()
        return records

    @property
    def epsilon(self) -> float | None:
        """The epsilon of the source that was drawn most often; ``None`` without privacy."""
        privacy = self.reductions.aggregation.privacy
        most = max(self.totals["rounds_trained"].values(), default=0)
        return None if privacy is None else privacy.epsilon(most)

    def passes(self, sources: Iterable[str]) -> dict[str, float]:
        """How often the text of each source was read, as metrics."""
        tokens, prepared = self.totals["tokens"], self.loader.prepared
        return {f"dept/{s}/passes": tokens[s] / prepared[s].splits["train"].tokens for s in sources}

    def fault(self, source: str, why: str, step: int | None = None) -> faults.Fault:
        """Describe a fault with the samples read: the batch of ``step``, or the whole slot.

        Args:
            source: name of the source, whose slot has ended or has just taken ``step``.
            why: what is wrong, as the middle of a sentence.
            step: the local step of the batch, from 1; ``None`` for the whole slot.

        Returns:
            The fault: source, round from 1, ``why``, step, numbers of the samples of the batch
            (none for a whole slot), and first and last position in samples.
        """
        batches = self.options.local_steps if step is None else 1
        last = self.positions[source]
        first = last - batches * self.loader.batch_size * self.workers.place.ranks
        return {
            "source": source,
            "round": self.totals["rounds"] + 1,
            "why": why,
            "step": step,
            "samples": [] if step is None else self.loader.samples_at(source, first, last),
            "positions": [first, last - 1],
        }

    # --- the state of a source, as its file has it ------------------------------------------------

    def state_of(self, source: str) -> dict[str, Any]:
        """All state of a source except the global parameters.

        The running slot must be suspended (:meth:`dept.method.source_state.Slots.park`).
        """
        record = self.records.get(source)
        return {
            "last_round": self.totals["last_round"].get(source, 0),
            "tokenizer": self.loader.prepared[source].tokenizer_hash,
            "position": self.positions[source],
            "slots": self.slots.state_of(source),
            "coding_error": self.reductions.errors.get(source),
            "slot": None if record is None else record.state_dict(),
            "local_model": self.local_models.get(source),
        }

    def take(self, source: str, found: Mapping[str, Any]) -> None:
        """Restore a source from a ``state_of`` that was taken between rounds.

        Args:
            source: name of the source.
            found: what :meth:`state_of` returned, in this or another process.
        """
        self.slots.load_state_of(source, found["slots"])
        if found["coding_error"] is not None:
            self.reductions.errors[source] = found["coding_error"]
        self.positions[source] = found["position"]

    def take_slot(self, source: str, found: Mapping[str, Any]) -> None:
        """Restore the slot of a source from a ``state_of`` of the running round.

        Args:
            source: name of the source.
            found: what :meth:`state_of` returned, with a record of the slot. If the slot had ended,
                its local model is added to the average.
        """
        self.records[source] = SlotRecord.of(found["slot"])
        if found["local_model"] is None:
            return
        if source in self.held.changed and self.held.keeps_local_models:
            self.local_models[source] = found["local_model"]
        start = self.slots.start
        local = {name: value.to(start[name].device) for name, value in found["local_model"].items()}
        self.reduction.add(source, local, self.share(source))

    def forget(self, source: str) -> None:
        """Drop the state of a source, which another worker holds now."""
        self.slots.forget(source)
        self.reductions.errors.pop(source, None)
        self.positions[source] = 0
        self.held.changed.discard(source)
        self.held.in_file.pop(source, None)
