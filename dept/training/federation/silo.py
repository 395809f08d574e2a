"""A silo of a federation: the server directs its rounds, and averages its local models."""

from __future__ import annotations

import signal
import sys
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from composer.core import State
from torch import Tensor

from dept.checkpoint.sigterm import StopOnSigterm
from dept.errors import ConfigError, NotSaved
from dept.log import log
from dept.method.variants import Sharing, Vocabulary
from dept.training import resume
from dept.training.federation.privacy_ledger import FOLDER, PrivacyLedger
from dept.training.federation.sharing import embeddings_of
from dept.training.run import Run
from dept.training.source_metrics import SourceMetrics
from dept.transport.flower.link import Announcement
from dept.transport.flower.link_of_ranks import LinkOfRanks
from dept.transport.flower.messages import Parcel, pairs
from dept.transport.flower.theta import hash_of


class Silo:
    """The part of a federation that a trainer has.

    A round begins with a message of the server: the global model, and the sources to train. The
    answer is sent at the end of the epoch, with the metrics of the evaluation at its beginning.
    Before an update is sent, the slot is in the file of its source. So a silo that dies afterwards
    continues from what the server has averaged. If the server did not average an update, the source
    returns to its state before the slot.

    Args:
        run: the run of this silo.
        link: the connection to its ClientApp.
    """

    def __init__(self, run: Run, link: LinkOfRanks) -> None:
        self.run, self.link = run, link
        options = run.options.federated
        assert options is not None and options.silo is not None
        self.options, self.name = options, options.silo
        self.privacy = options.noise() if run.workers.leads else None  # the others send nothing
        if self.privacy is not None:
            run.reductions.protect = lambda source, update: self.ledger.protect(
                source, run.totals["rounds"], update
            )
        self._message: Parcel  # of the round that is trained now
        self._came_early: Parcel | None = None  # the next one, before the loop of training runs

    @cached_property
    def ledger(self) -> PrivacyLedger:
        """What this silo has sent, with local differential privacy."""
        assert self.privacy is not None and self.run.held.files is not None
        return PrivacyLedger(self.privacy, self.run.held.files.folder.parent / FOLDER)

    # --- the start -------------------------------------------------------------------------------

    def enter(self, state: State) -> None:
        """Join the federation, and begin the round that the server is in.

        Args:
            state: the state of Composer, after a checkpoint of this silo was loaded, if any.

        Raises:
            ConfigError: the server is of another federation, or behind this silo.
        """
        before = self.run.totals["rounds"]
        if self.privacy is not None:
            self.ledger.refuse_without_ledger(sum(self.run.totals["rounds_trained"].values()))
        self.link.announce(self._announcement())
        if self.run.workers.leads:
            log.info(f"silo {self.name} is ready, and waits for the server")
        message = self.link.next_round(0, lambda: False)
        assert message is not None
        if int(message.fields["round"]) < before:
            raise ConfigError(
                f"the server is in round {int(message.fields['round']) + 1}, and this silo has "
                f"finished {before}: start the server from its newest checkpoint, or remove the "
                f"folder of this run"
            )
        if int(message.fields["round"]) > before or (before and self._has_left(message)):
            # An epoch without batches takes the model, evaluates it, and makes a checkpoint.
            self._came_early = message
            state.dataloader_len = 0
            state.timestamp = _clock(state, int(message.fields["round"]) - 1, 0)
            return
        self._message = message
        self._check_same_model(message)
        for source in set(self.run.records) - set(message.fields["drawn"]):  # type: ignore[arg-type]
            self._return(source, before)
        self._direct(state)
        self.run.start_pass(before)
        resume.set_rates(state)

    def _announcement(self) -> Announcement:
        run = self.run
        variant = run.slots.variant
        prepared = run.loader.prepared
        own = variant.vocabulary is Vocabulary.OWN
        model = {n: v.cpu().numpy().copy() for n, v in run.slots.start.items()}
        by_row = [n for n in run.slots.by_row_names if n in model]
        assert bool(by_row) == (variant.phi is Sharing.BY_TOKEN_ROW)
        rows = {s: run.slots.vocabularies[s].token_ids for s in prepared} if by_row else {}
        return Announcement(
            silo=self.name,
            sources=list(prepared),
            tokenizer="" if own else next(iter(prepared.values())).tokenizer_hash,
            theta=hash_of(model),
            leaving=list(self.options.leave),
            model=model,
            rows={source: ids.cpu().numpy().astype(np.int32) for source, ids in rows.items()},
            by_row=by_row,
        )

    def _check_same_model(self, message: Parcel) -> None:
        ours = {name: value.cpu().numpy() for name, value in self.run.slots.start.items()}
        if hash_of(ours) != hash_of(message.arrays):
            raise ConfigError(
                "the global model of the server differs from that of this silo in the same round: "
                "it is of another run; choose another run_name, or remove the folder of this run"
            )

    # --- a round ---------------------------------------------------------------------------------

    def start_round(self, state: State) -> None:
        """At the start of a round: train the sources that the server has drawn."""
        self.run.held.round_index = state.timestamp.epoch.value
        self.run.start_pass(state.timestamp.epoch.value)
        resume.set_rates(state)

    def exchange(self, state: State, left_out: Mapping[str, Any]) -> dict[str, Tensor]:
        """At the end of a round: send the local models, and wait for the new global model.

        Args:
            state: the state of Composer.
            left_out: faults of slots that are not to be averaged, by source.

        Returns:
            The new global parameters, by name.

        Raises:
            NotSaved: a slot cannot be written, so its update is not sent.
            SystemExit: this process has been asked to end.
        """
        run, before = self.run, self.run.totals["rounds"]
        message, self._came_early = self._came_early, None
        if message is None:
            self._save(before)
            sources = [source for source in run.records if source not in left_out]
            update = self._update(state, sources, left_out)
            run.workers.sent["model"] += update.nbytes
            self.link.answer(update)
            message = self.link.next_round(before + 1, lambda: _is_asked_to_end(state))
        if message is None:
            sys.exit(128 + signal.SIGTERM)
        self._message = message
        self._settle(message, before)
        run.reductions.close(run.reduction)
        return self._model_of(message)

    def end_round(self, state: State) -> None:
        """After the new global model was taken: the next round is the one of the message."""
        self.run.totals["rounds"] = int(self._message.fields["round"])
        self._direct(state)
        if self._has_left(self._message):
            log.info(
                f"silo {self.name} has left the federation after round {self.run.totals['rounds']}"
            )
            state.stop_training()

    def _has_left(self, message: Parcel) -> bool:
        """Whether all sources have left the federation, so that this silo ends."""
        own = set(self.run.schedule.sources)
        return own <= set(self.options.leave) and own <= set(message.fields["outside"])  # type: ignore[arg-type]

    def finish(self, state: State) -> None:
        """After training: report the last evaluation, and what this silo shares; then end."""
        update = self._update(state, [], {})
        shares = self.options.share_embedding and not self._has_left(self._message)
        self.link.answer(self._with_embeddings(update) if shares else update)
        self.link.close()

    def _with_embeddings(self, update: Parcel) -> Parcel:
        """The last answer, with the private embeddings of all sources that were trained."""
        outside: list[str] = self._message.fields["outside"]  # type: ignore[assignment]
        shared = embeddings_of(self.run, outside)
        arrays = {n: a for s, embedding in shared.items() for n, a in embedding.arrays(s).items()}
        fields = {name: update.fields[name] for name in ("round", "nonce", "silo")}
        return Parcel("embeddings", fields | {"sources": list(shared)}, update.metrics, arrays)

    def _direct(self, state: State) -> None:
        round_index = int(self._message.fields["round"])
        drawn = tuple(s for s in self.run.schedule.sources if s in self._message.fields["drawn"])  # type: ignore[operator]
        self.run.schedule.directed[round_index] = drawn  # type: ignore[attr-defined]
        state.dataloader_len = len(drawn) * self.run.options.local_steps
        state.timestamp = _clock(state, round_index, sum(self.run.steps.values()))

    def _settle(self, message: Parcel, round_index: int) -> None:
        """Return the sources whose slots of a round the server did not average."""
        averaged = pairs(message.fields["averaged"])  # type: ignore[arg-type]
        for source, record in list(self.run.records.items()):
            if record.fault is None and averaged.get(source) != str(round_index):
                log.warning(
                    f"the update of {source} in round {round_index + 1} did not reach the server "
                    f"in time: {source} is as before that round"
                )
                self._return(source, round_index)

    def _return(self, source: str, round_index: int) -> None:
        """Return a source to its state before its slot."""
        run, files = self.run, self.run.held.files
        assert files is not None
        found = files.read(source, round_index, 0)
        run.records.pop(source, None)
        run.local_models.pop(source, None)
        run.reduction.remove(source)  # type: ignore[attr-defined]
        run.forget(source)
        if found is not None:
            run.take(source, found)
        for state in files.states(source) if run.workers.leads else ():
            if state > (round_index, 0):
                files.remove(source, state)
        run.held.changed.add(source)

    def _save(self, round_index: int) -> None:
        """Write the finished slots, so that this silo has what the server may average."""
        run, files = self.run, self.run.held.files
        assert files is not None
        for source, record in run.records.items():
            if source not in run.held.changed:
                continue
            found = {"round": round_index, **run.state_of(source)}
            try:
                if run.workers.leads:
                    files.write(source, round_index, record.steps, found)
            except (OSError, RuntimeError) as error:  # torch raises its own for a failed write
                raise NotSaved(
                    f"{files.folder / source} could not be written "
                    f"({str(error).splitlines()[0]}), so its update was not sent: make room on "
                    f"that disk; the same command resumes"
                ) from error
            run.held.in_file[source] = (round_index, record.steps)
            run.held.changed.discard(source)

    def _update(
        self, state: State, sources: Collection[str], left_out: Mapping[str, Any]
    ) -> Parcel:
        fields = {
            "round": self._message.fields["round"],
            "nonce": self._message.fields["nonce"],
            "refusal": "",
            "silo": self.name,
            "sources": list(sources),
            "left_out": [f"{source} {self._reason(fault)}" for source, fault in left_out.items()],
        }
        arrays = self.run.reduction.arrays(list(sources))  # type: ignore[attr-defined]
        if self.privacy is not None and sources:
            self.ledger.enter(int(fields["round"]), list(sources), arrays)
            for source in sources:
                log.info(
                    f"{source}: epsilon of all updates so far {self.ledger.epsilon(source):.4g}"
                )
        return Parcel("update", fields, self._agreed_metrics(state, sources), arrays)

    def _reason(self, fault: Mapping[str, Any]) -> str:
        """Why a source is left out; with noise nothing is said about its text."""
        return "it is left out" if self.privacy is not None else str(fault["why"])

    def epsilons(self) -> dict[str, float]:
        """The epsilon of each source so far, as metrics; empty without local privacy."""
        if self.privacy is None:
            return {}
        return {f"dept/{s}/epsilon": self.ledger.epsilon(s) for s in self.ledger.sent}

    def _agreed_metrics(self, state: State, sources: Collection[str]) -> dict[str, float]:
        """What this silo agrees to report."""
        found: dict[str, float] = {}
        for source in sources:
            record = self.run.records[source]
            found[f"{source}/train_loss"] = sum(record.losses) / record.steps
            found[f"{source}/update_norm"] = float(record.norm or 0.0)
        outside: list[str] = self._message.fields["outside"]  # type: ignore[assignment]
        metrics = next((c for c in state.callbacks if isinstance(c, SourceMetrics)), None)
        for source, result in metrics.latest.items() if metrics is not None else ():
            if source in self.run.schedule.sources and source not in outside:
                found[f"{source}/loss"] = result.loss
                found[f"{source}/bits_per_byte"] = result.bits_per_byte
        return {k: v for k, v in found.items() if k.split("/")[-1] in self.options.metrics}

    def _model_of(self, message: Parcel) -> dict[str, Tensor]:
        start = self.run.slots.start
        return {
            name: torch.from_numpy(message.arrays[name]).to(value.device, copy=True)
            for name, value in start.items()
        }


def _is_asked_to_end(state: State) -> bool:
    stop = next((c for c in state.callbacks if isinstance(c, StopOnSigterm)), None)
    return stop is not None and stop.received


def _clock(state: State, round_index: int, done: int) -> Any:
    """Composer's clock in a round that the server directs, ``done`` batches after its start."""
    now = state.timestamp
    more = done - now.batch_in_epoch.value
    each = now.sample.value // max(now.batch.value, 1), now.token.value // max(now.batch.value, 1)
    return now.copy(
        epoch=round_index,
        epoch_in_iteration=round_index,
        batch=now.batch.value + more,
        batch_in_epoch=done,
        sample=now.sample.value + more * each[0],
        sample_in_epoch=done * each[0],
        token=now.token.value + more * each[1],
        token_in_epoch=done * each[1],
        token_in_iteration=now.token.value + more * each[1],
    )
