"""The state of the sources: which parameters a slot trains, and which the source keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dept.method.host_memory import states_to_host, to_host
from dept.method.live_model import LiveModel, random_embedding
from dept.method.moments import MomentAverages, States
from dept.method.streams import seed_of
from dept.method.variants import Role, Sharing, Variant
from dept.method.vocabulary import VocabularyMap


class Slots:
    """The state of all sources around the one model in memory (Algorithm 1, lines 2 to 7).

    While no slot is running and :meth:`park` was called, the model holds the global parameters,
    in the shape it was built with; private matrices are then placeholders (token matrices of one
    row), which hold nothing and cost nothing in a checkpoint.

    Args:
        live: the model and its inner optimizer.
        variant: how each parameter is shared.
        vocabularies: the rows of each source's token matrices, by source.
        inner_state: ``reset``, ``keep`` or ``average``, for the inner optimizer's state of the
            shared parameters between the slots of a source. That of private parameters is always
            kept.
        seed: seed of the run, for private embeddings.
        moments: averages of the inner state, with ``average``.

    Attributes:
        start: the global parameters at the start of this round, by name; only shared ones.
        private: private parameters at the start of this round, by source and name, on the CPU.
        finished: private parameters of sources whose slot of this round has ended. They become
            ``private`` with the outer step, so that all parts of a model that is read in mid-round
            are of the same round.
        inner: inner optimizer state kept between slots, by source and name, on the CPU.
        inner_rounds: the round, from 1, that this state is of, by source.
        active: the source whose slot is running; ``None`` between slots.
        suspended: local models of interrupted slots, with their optimizer's state, by source.
        stream: purpose of the random stream of private embeddings.
        parked: whether the model holds the global parameters.
        built_parameters: size of the model as built, with all tokens of the global tokenizer.
    """

    def __init__(
        self,
        live: LiveModel,
        variant: Variant,
        vocabularies: Mapping[str, VocabularyMap],
        *,
        inner_state: str,
        seed: int,
        moments: MomentAverages | None = None,
    ) -> None:
        self.live = live
        self.variant = variant
        self.vocabularies = dict(vocabularies)
        self.inner_state = inner_state
        self.seed = seed
        self.moments = moments
        self.stream: tuple[str | int, ...] = ("private_embedding",)
        self.active: str | None = None
        self.parked = True
        self._evaluating = False
        self.private: dict[str, dict[str, Tensor]] = {}
        self.finished: dict[str, dict[str, Tensor]] = {}
        self.inner: dict[str, States] = {}
        self.inner_rounds: dict[str, int] = {}
        self.suspended: dict[str, dict[str, Any]] = {}
        sharing = {name: variant.sharing(role) for name, role in live.roles.items()}
        self.shared_names = [n for n, s in sharing.items() if s is not Sharing.PRIVATE]
        self.private_names = [n for n, s in sharing.items() if s is Sharing.PRIVATE]
        self.by_row_names = [n for n, s in sharing.items() if s is Sharing.BY_TOKEN_ROW]
        self.body_names = live.names(Role.BODY)
        as_built = live.values()
        self.built_parameters = sum(value.numel() for value in as_built.values())
        self._placeholders = {
            name: torch.zeros_like(as_built[name][:1])
            if live.roles[name] is Role.TOKENS
            else as_built[name].clone()
            for name in self.private_names
        }
        live.load(self._placeholders, {})
        self.start: dict[str, Tensor] = {}
        self.take_start()

    def take_start(self) -> None:
        """Take the current values of the model, as built or as loaded, as global parameters."""
        values = self.live.values()
        self.start = {name: values[name].clone() for name in self.shared_names}

    def begin(self, source: str) -> None:
        """Load ``source`` into the model, at the start of its slot or where it was suspended."""
        resumes = source in self.suspended
        if resumes:
            left = self.suspended.pop(source)
            values, states = left["values"], left["states"]
        else:
            rows = self.rows(source)
            values = {
                name: value[rows[name].to(value.device)] if name in rows else value
                for name, value in self.start.items()
            }
            states = self.inner.get(source, {})
            if self.moments is not None:
                states = self.moments.begin(states, self.inner_rounds.get(source, 0), values, rows)
            values |= self.private_of(source)
        # The state kept from earlier slots is copied, since `abandon` returns to it.
        self.live.load(values, states, copy_states=not resumes)
        self.active, self.parked, self._evaluating = source, False, False

    def finish(self, round_number: int) -> dict[str, Tensor]:
        """End the slot, and keep the private state of the source.

        Args:
            round_number: number of the running round, from 1.

        Returns:
            The shared parameters of the local model, by name, not copied: valid until other values
            are loaded into the model.
        """
        source = self._leave()
        values, states = self.live.values(), self.live.take_states()
        kept = {
            name: state
            for name, state in states.items()
            if self.inner_state != "reset" or name in self.private_names
        }
        self.inner[source] = states_to_host(kept)
        self.inner_rounds[source] = round_number
        if self.private_names:
            self.finished[source] = to_host({name: values[name] for name in self.private_names})
        return {name: values[name] for name in self.shared_names}

    def close_round(self, stepped: Mapping[str, Tensor]) -> None:
        """End the round: take the result of the outer step as the global model.

        Args:
            stepped: global parameters after the outer step, by name; others are unchanged.
        """
        self.start |= stepped
        self.private |= self.finished
        self.finished = {}
        self._reload()

    def moments_of(self, source: str, moment: str) -> dict[str, Tensor]:
        """A moment of the inner state that a source keeps, on the device of ``start``.

        Args:
            source: name of the source, whose slot of the running round has ended.
            moment: ``exp_avg`` or ``exp_avg_sq``.

        Returns:
            The moment of every shared parameter, by name; of its token rows, if it is averaged by
            row. It is zero where a parameter got no gradient.
        """
        rows, found = self.rows(source), {}
        for name, value in self.start.items():
            shape = (len(rows[name]), *value.shape[1:]) if name in rows else value.shape
            kept = self.inner[source].get(name)
            found[name] = value.new_zeros(shape) if kept is None else kept[moment].to(value.device)
        return found

    def abandon(self) -> None:
        """Discard the slot: the private state of the source is what it was before the slot."""
        self._leave()
        self.live.take_states()

    def park(self) -> None:
        """Load the global parameters into the model; a running slot is suspended until later."""
        if self.active is not None:
            source = self._leave()
            values = {name: value.clone() for name, value in self.live.values().items()}
            states = self.live.take_states()
            self.suspended[source] = {"values": values, "states": states}
        if not self.parked:
            self._reload(body=not self._evaluating)

    def _reload(self, *, body: bool = True) -> None:
        """Load the global parameters and the placeholders into the model."""
        self.live.load({**(self.start if body else {}), **self._placeholders}, {})
        self.parked, self._evaluating = True, False

    def evaluate_as(self, source: str) -> None:
        """Load the private embedding of ``source`` into the parked model, if it has any."""
        self.park()
        if self.private_names:
            self.live.load(self.private_of(source), {})
            self.parked, self._evaluating = False, True

    def private_of(self, source: str) -> dict[str, Tensor]:
        """The private embedding of ``source``, drawn at random at its first use."""
        if self.private_names and source not in self.private:
            self.private[source] = {
                name: value.cpu()
                for name, value in random_embedding(
                    self.live.model,
                    self.private_names,
                    rows=self.vocabularies[source].rows,
                    seed=seed_of(self.seed, *self.stream, source),
                ).items()
            }
        return self.private.get(source, {})

    def rows(self, source: str) -> dict[str, Tensor]:
        """For each parameter averaged by token row, the global rows that ``source`` holds."""
        return {name: self.vocabularies[source].token_ids for name in self.by_row_names}

    def communicated(self, source: str) -> int:
        """Number of parameters of the local model of ``source`` that enter the average."""
        rows = {name: len(self.vocabularies[source].token_ids) for name in self.by_row_names}
        return sum(
            rows[name] * value[0].numel() if name in rows else value.numel()
            for name, value in self.start.items()
        )

    def update(self, local: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How far a slot moved the body, local - start, by name."""
        return {name: local[name] - self.start[name] for name in self.body_names}

    def update_norms(self, source: str, local: Mapping[str, Tensor]) -> dict[str, float]:
        """L2 norms of the pseudo-gradient by name, of all shared parameters, embeddings too.

        Args:
            source: its name.
            local: shared parameters of its local model, by name (see :meth:`finish`).
        """
        rows, norms = self.rows(source), []
        for name, value in local.items():
            start = self.start[name]
            start = start[rows[name].to(start.device)] if name in rows else start
            norms.append(torch.linalg.vector_norm((value - start).float()))
        return dict(zip(local, torch.stack(norms).tolist(), strict=True))  # one wait for a GPU

    def state_of(self, source: str) -> dict[str, Any]:
        """All state of one source except the global parameters; its slot must not be running."""
        return {name: kept.get(source) for name, kept in self._by_source().items()}

    def load_state_of(self, source: str, state: Mapping[str, Any]) -> None:
        """Restore what ``state_of`` returned.

        Args:
            source: name of the source.
            state: its private parameters ``phi_k`` and ``psi_k`` (SPEC, Algorithm 1, lines 2 to 7)
                as ``private`` and ``finished``, its optimizer's state as ``inner`` with its round
                as ``inner_round``, and an interrupted slot as ``suspended``. An entry of ``None``
                removes what the source had. Tensors are kept by reference.
        """
        for name, kept in self._by_source().items():
            kept.pop(source, None)
            if state[name] is not None:
                kept[source] = state[name]

    def forget(self, source: str) -> None:
        """Drop all state of a source, which another worker holds from now on."""
        for kept in self._by_source().values():
            kept.pop(source, None)

    def _by_source(self) -> dict[str, dict[str, Any]]:
        return {
            "private": self.private,
            "finished": self.finished,
            "inner": self.inner,
            "inner_round": self.inner_rounds,
            "suspended": self.suspended,
        }

    def _leave(self) -> str:
        if self.active is None:
            raise RuntimeError("no slot is running")
        source, self.active = self.active, None
        return source
