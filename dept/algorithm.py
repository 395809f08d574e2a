"""DEPT as a Composer algorithm: when each part of the method happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from composer.core import Algorithm, Event, State, Timestamp
from composer.loggers import Logger
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dept import updates, workers
from dept.evaluation import restrict_to_vocabulary, score_unseen_uniformly
from dept.loader import SourceLoader
from dept.options import DeptOptions, parse
from dept.outer_optimizer import OuterOptimizer
from dept.reduction import Reduction, Share
from dept.schedule import RoundSchedule
from dept.slots import Slots
from dept.source_files import FOLDER, SourceFiles
from dept.swap import LiveModel, seed_of
from dept.variants import Sharing, Vocabulary
from dept.vocabulary import VocabularyMap


class Dept(Algorithm):
    """Decoupled embeddings for pre-training (Algorithm 1 of the paper).

    A round is an epoch of the loader over sources: the slots of this worker, of ``local_steps``
    batches each. Each slot trains one source from the global model of the round; at the end of
    the epoch workers meet, and the outer optimizer takes the average of all local models.
    Evaluators and checkpoints that follow see the new global model.

    Args:
        options: see :class:`dept.options.DeptOptions`.

    Raises:
        ValueError: an option is unknown or has no such value.
    """

    def __init__(self, **options: Any) -> None:
        self.options = parse(DeptOptions, "algorithms.dept", options)
        self.variant = self.options.sharing
        self.outer_optimizer = OuterOptimizer(**self.options.outer_optimizer)
        self.workers = workers.current()
        self.loader: SourceLoader
        self.schedule: RoundSchedule
        self.slots: Slots
        self.reduction: Reduction
        self.round: dict[str, dict[str, Any]] = {}  # of the sources this worker draws
        self.losses: dict[str, list[float]] = {}  # of the last finished round, of all sources
        self.totals: dict[str, Any] = {
            "rounds_trained": {},
            "tokens": {},
            "sent_bytes": 0,
            "other_bytes": 0,
            "swap_seconds": 0.0,
            "outer_step_seconds": 0.0,
            "wait_seconds": [0.0] * self.workers.count,
        }
        # For SourceCheckpoints, which sets the first three if the run saves anything.
        self.files: SourceFiles | None = None
        self.is_saving: Callable[[State, Event], bool] = lambda state, event: False
        self.keep_local_models = False
        self.local_models: dict[str, dict[str, Tensor]] = {}
        self.changed: set[str] = set()
        self._loaded: dict[str, Any] | None = None
        self.evaluating: str | None = None
        self.unseen: Tensor | None = None
        self.unseen_tokens = 0
        self._handlers = {
            Event.BEFORE_LOAD: self._bind,
            Event.AFTER_LOAD: self._agree,
            Event.FIT_START: self._unwrap,
            Event.EPOCH_START: self._start_round,
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
        self.reduction = Reduction(self.slots.start)
        self._keep_own_evaluators(state)

    def _keep_own_evaluators(self, state: State) -> None:
        """Each worker evaluates its own sources; text of no source is spread over all."""
        mine = self.schedule.sources_of(self.workers.place.worker)
        others = 0
        evaluators = []
        for evaluator in state.evaluators:
            if evaluator.label.removeprefix("eval/") in self.schedule.sources:
                keep = evaluator.label.removeprefix("eval/") in mine
            else:
                keep = others % self.workers.count == self.workers.place.worker
                others += 1
            if keep:
                evaluators.append(evaluator)
        state.evaluators = evaluators

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
        """Let all workers stand where the first does, which alone loads a checkpoint."""
        self.slots.take_start()
        here = {"round": state.timestamp.epoch.value, "from": state.load_path}
        first = self.workers.value_of_first(here | {"loaded": self._loaded}, stage="the start")
        start = [self.slots.start[name] for name in sorted(self.slots.start)]
        self.workers.from_first(start, kind="start", stage="the start")
        if first["loaded"] is None:
            return
        loaded, round_index = first["loaded"], first["round"]
        self.outer_optimizer.load_state_dict(loaded["outer_optimizer"], device=state.device._device)
        self.totals |= loaded["totals"]
        self.totals["wait_seconds"] = [0.0] * self.workers.count
        remote = "://" in first["from"]
        files = self.files if remote else SourceFiles(Path(first["from"]).parent / FOLDER)
        for source in self.schedule.sources_of(self.workers.place.worker):
            self._restore(source, files, round_index, loaded["steps"].get(source))
        done = {source: len(slot["losses"]) for source, slot in self.round.items()}
        self.loader.start(round_index, done)
        state.timestamp = self._timestamp(state, round_index, sum(done.values()))
        for optimizer, scheduler in zip(state.optimizers, state.schedulers, strict=True):
            # The optimizer's own state is not in the checkpoint, so neither is the learning rate.
            rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            for group, (base, factor) in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = base * factor(scheduler.last_epoch)

    def _restore(self, source: str, files: SourceFiles, round_index: int, step: int | None) -> None:
        """Take what is left of a source from its file, for a checkpoint in ``round_index``."""
        trained = self.totals["rounds_trained"].get(source, 0)
        state = files.read(source, round_index, step)
        if state is None and trained == 0:
            return
        where = files.folder / source
        if state is None or state["rounds_trained"] != trained:
            raise ValueError(
                f"{where} lacks the state of {source} that the checkpoint of round {round_index} "
                f"belongs to: bring the folder to where the checkpoint is"
            )
        if state["tokenizer"] != self.loader.prepared[source].tokenizer_hash:
            raise ValueError(f"{where} is of another tokenizer than corpus: prepare it as it was")
        self.slots.load_state_of(source, state["slots"])
        self.loader.positions[source] = state["position"]
        if state["round"] != round_index or state["slot"] is None:
            return
        self.round[source] = state["slot"]
        if state["local_model"] is not None:
            self.reduction.add(
                {n: v.to(self.slots.start[n].device) for n, v in state["local_model"].items()},
                self._share(source),
            )

    def _timestamp(self, state: State, round_index: int, batch_in_round: int) -> Timestamp:
        """Composer's clock of this worker, who may have had no part in the checkpoint."""
        batch = round_index * self.schedule.batches_per_round + batch_in_round
        samples = self.loader.batch_size * self.workers.place.ranks
        tokens = samples * next(iter(self.loader.prepared.values())).sequence_length
        return state.timestamp.copy(
            epoch=round_index,
            epoch_in_iteration=round_index,
            batch=batch,
            batch_in_epoch=batch_in_round,
            sample=batch * samples,
            sample_in_epoch=batch_in_round * samples,
            token=batch * tokens,
            token_in_iteration=batch * tokens,
            token_in_epoch=batch_in_round * tokens,
        )

    # --- a round --------------------------------------------------------------------------------

    def _unwrap(self, state: State, logger: Logger) -> None:
        """Take the model out of what Composer wrapped it in for gradients of fixed shape."""
        self._set_synchronised(state, False)

    def _start_round(self, state: State, logger: Logger) -> None:
        self.loader.start(state.timestamp.epoch.value, {})

    def _enter_slot(self, state: State, logger: Logger) -> None:
        """Before a batch: let the model be its source's, and the ids its rows."""
        source, step = self.loader.current
        if self.slots.active != source:
            with self._timed("swap_seconds"):
                self._set_synchronised(state, False)
                self.slots.begin(source)
                self._set_synchronised(state, True)
        # Dropout must not depend on who trained what before, nor on where a run was resumed.
        torch.manual_seed(
            seed_of(
                f"{self.slots.seed}/{source}/{state.timestamp.epoch.value}/{step}"
                f"/{self.workers.place.rank}"
            )
        )
        self._translate(state, source)

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
        slot = self.round.setdefault(source, {"losses": [], "tokens": 0})
        slot["losses"].append(loss)
        slot["tokens"] += state.batch["input_ids"].numel() * self.workers.place.ranks
        self.changed.add(source)
        logger.log_metrics({f"loss/train/{source}": loss})
        if len(slot["losses"]) == self.options.local_steps:
            with self._timed("swap_seconds"):
                self._finish_slot(source)

    def _finish_slot(self, source: str) -> None:
        local = self.slots.finish()
        self.reduction.add(local, self._share(source))
        update = self.slots.update(local)
        self.round[source] |= {"norm": updates.norm(update), "sketch": updates.sketch(update)}
        if self.keep_local_models:
            self.local_models[source] = {n: v.to("cpu", copy=True) for n, v in local.items()}

    def _share(self, source: str) -> Share:
        train = self.loader.prepared[source].splits["train"]
        weight = 1.0 if self.options.weighting == "uniform" else float(train.tokens)
        return Share(weight, self.slots.rows(source))

    def _outer_step(self, state: State, logger: Logger) -> None:
        """After the last slot: theta[t] = OuterOpt(theta[t-1], average of the local models)."""
        round_index = state.timestamp.epoch.value - 1  # Composer has counted it already
        stage = f"the outer step of round {round_index + 1}"
        shares = [
            [self._share(source) for source in self.schedule.slots_of(worker, round_index)]
            for worker in range(self.workers.count)
        ]
        with self._timed("outer_step_seconds"):
            waited = self.workers.wait_for_all(stage)
            averages = self.reduction.averages(self.workers, shares, stage=stage)
            stepped = self.outer_optimizer.step(self.slots.start, averages)
            moved = updates.norm(self.slots.update(stepped))
            self.slots.start |= stepped
            self._park(state)
            here = {"slots": self.round, "sent": dict(self.workers.sent), "waited": waited}
            self.workers.sent.clear()
            every = self.workers.gather(here, stage=stage)
        slots = {source: slot for given in every for source, slot in given["slots"].items()}
        for source, slot in slots.items():
            for total, new in (("rounds_trained", 1), ("tokens", slot["tokens"])):
                self.totals[total][source] = self.totals[total].get(source, 0) + new
        sent = sum(given["sent"].get("model", 0) for given in every)
        self.totals["sent_bytes"] += sent
        self.totals["other_bytes"] += sum(sum(given["sent"].values()) for given in every) - sent
        for worker, given in enumerate(every):
            self.totals["wait_seconds"][worker] += given["waited"]
        self._log_round(logger, slots, {"sent_bytes": sent, "update_norm": moved})
        self.losses = {source: slot["losses"] for source, slot in slots.items()}
        self.changed |= self.round.keys()  # they are between rounds now
        self.reduction, self.round, self.local_models = Reduction(self.slots.start), {}, {}

    def _log_round(
        self, logger: Logger, slots: dict[str, dict[str, Any]], figures: dict[str, float]
    ) -> None:
        metrics = {f"dept/{name}": value for name, value in figures.items()}
        for source, slot in slots.items():
            metrics[f"dept/{source}/train_loss"] = sum(slot["losses"]) / len(slot["losses"])
            metrics[f"dept/{source}/update_norm"] = slot["norm"]
        pairs = updates.cosines({source: slot["sketch"] for source, slot in slots.items()})
        for (first, second), cosine in pairs.items():
            metrics[f"dept/cosine/{first}-{second}"] = cosine
        logger.log_metrics(metrics)

    # --- evaluation and checkpoints ---------------------------------------------------------------

    def _enter_evaluation(self, state: State, logger: Logger) -> None:
        """Evaluate the global model, with the embedding of the source that the text is from."""
        self._park(state)
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
        vocabulary, targets = self.slots.vocabularies[self.evaluating], self.slots.live.model.labels
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
        self._park(state)

    def _before_checkpoint(self, state: State, logger: Logger) -> None:
        """A checkpoint in mid-round holds the global model; slots are in files of their own."""
        self._park(state)

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

    def state_of(self, source: str) -> dict[str, Any]:
        """All there is of a source beside the global parameters, for its file.

        The running slot must be suspended (:meth:`dept.slots.Slots.park`).
        """
        return {
            "rounds_trained": self.totals["rounds_trained"].get(source, 0),
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
            "outer_optimizer": self.outer_optimizer.state_dict(),
            "totals": self.totals,
            "steps": {source: len(slot["losses"]) for source, slot in self.round.items()},
        }

    def load_state_dict(self, state: Any) -> None:
        """Restore what ``state_dict`` gave, once the global parameters are in the model too.

        Raises:
            ValueError: the checkpoint is of another variant, set of sources or round.
        """
        for key, value in self._identity().items():
            if state["identity"][key] != value:
                mend = "set it to the same, or choose another run_name"
                if key == "groups":
                    mend = "sources are drawn otherwise for this number of workers, start another"
                raise ValueError(
                    f"the checkpoint was made with {key} = {state['identity'][key]}, the yaml says "
                    f"{value}: {mend}"
                )
        self.outer_optimizer.load_state_dict(state["outer_optimizer"])
        self._loaded = state

    def _identity(self) -> dict[str, Any]:
        return {
            "variant": self.options.variant,
            "sources": list(self.schedule.sources),
            "sources_per_round": self.schedule.sources_per_round,
            "groups": self.schedule.groups,
            "local_steps": self.options.local_steps,
            "inner_state": self.options.inner_state,
            "tokenizers": {n: p.tokenizer_hash for n, p in self.loader.prepared.items()},
        }
