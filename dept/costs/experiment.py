"""The costs of an experiment, from its yaml: parameters, memory, communication per step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dept.config.options import DeptOptions, options_of
from dept.costs.memory import WORD, Memory, dept_memory, training_memory
from dept.costs.parameters import Parameters, mpt_parameters
from dept.costs.vocabulary import VocabularySizes, vocabulary_sizes
from dept.errors import ConfigError
from dept.method.moment_schedule import exchanges
from dept.method.variants import Role, Sharing, Vocabulary


@dataclass(frozen=True)
class Costs:
    """The costs of an experiment, for a worker whose source has a vocabulary of mean size.

    Attributes:
        method: the variant, or the name of a baseline.
        parameters: parameters of its model, for any vocabulary.
        vocabulary: tokens of the global tokenizer, and of a worker's model.
        local_steps: local steps between two exchanges; 1 if gradients are averaged at every step.
        communicated: parameters that a worker communicates at each exchange. A moment of the inner
            optimizer counts as many; this is the mean over rounds with and without moments.
        message: bytes of those, coded if the yaml has compression.
        memory: memory of a worker.
    """

    method: str
    parameters: Parameters
    vocabulary: VocabularySizes
    local_steps: int
    communicated: float
    message: float
    memory: Memory

    @property
    def embedding(self) -> float:
        """Parameters of phi and psi of a worker's model."""
        return self.parameters.embedding(self.vocabulary.held)

    @property
    def total(self) -> float:
        """Parameters of a worker's model."""
        return self.parameters.total(self.vocabulary.held)

    @property
    def per_step(self) -> float:
        """Parameters that a worker communicates per local step, as the paper counts them."""
        return self.communicated / self.local_steps

    @property
    def reduction(self) -> float:
        """Size of the model for all tokens, whose gradients STD exchanges, divided by that."""
        return self.parameters.total(self.vocabulary.everyone) / self.per_step

    @property
    def byte_reduction(self) -> float:
        """The same in bytes, with gradients in float32; it is larger if updates are coded."""
        return (
            WORD * self.parameters.total(self.vocabulary.everyone) * self.local_steps / self.message
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON: parameters as numbers, memory in bytes."""
        memory = {**vars(self.memory), "training": self.memory.training, "dept": self.memory.dept}
        return {
            "method": self.method,
            "vocabulary": dict(vars(self.vocabulary)),
            "parameters": {
                "body": self.parameters.body,
                "embedding": round(self.embedding),
                "total": round(self.total),
            },
            "memory_bytes": memory,
            "communication": {
                "local_steps": self.local_steps,
                "parameters_per_exchange": self.communicated,
                "parameters_per_step": self.per_step,
                "reduction": self.reduction,
                "bytes_per_exchange": self.message,
                "byte_reduction": self.byte_reduction,
            },
        }


def costs_of(
    config: Mapping[str, Any], *, slots: int = 1, build: bool = False, measured: bool = True
) -> Costs:
    """The costs of a yaml.

    With M parameters of the model for all tokens, N local steps and L positions of width d, a
    worker communicates M parameters per step in STD, M / N in GLOB, (M - (|V| - |V_k|) d) / N in
    TRIM, and (M - (|V| + L) d) / N in SPEC (section on costs of the paper).

    Args:
        config: a resolved yaml, as plain containers.
        slots: sources that a worker trains in a round, one after another.
        build: count the parameters of the model that llm-foundry builds, on the meta device.
        measured: take sizes of vocabularies from the corpus if it is prepared here.

    Raises:
        ConfigError: the yaml has a wrong value, or lacks one that is needed.
        DataError: the prepared corpus is half-written.
    """
    for section in ("model", "optimizer"):
        if section not in config:
            raise ConfigError(
                f"there is no section {section}: name an experiment, not a part of one"
            )
    dept, loader = options_of(config)
    kind = Vocabulary.GLOBAL if dept is None else dept.sharing.vocabulary
    vocabulary = vocabulary_sizes(config, kind, loader, measured=measured)
    parameters = _count(config["model"], vocabulary, build=build)
    local = parameters.total(vocabulary.held)
    if dept is None:
        method = (config.get("variables") or {}).get("method", "std")
        memory = training_memory(local, config["optimizer"])
        return Costs(method, parameters, vocabulary, 1, local, WORD * local, memory)
    shared = parameters.body + _shared(parameters, dept, vocabulary.held)
    tensors = 1 + exchanges(dept.moment_interval, _rounds(config))
    message = tensors * _message(parameters, dept, vocabulary.held, config["model"])
    memory = training_memory(
        local,
        config["optimizer"],
        **dept_memory(
            shared=parameters.body + _shared(parameters, dept, vocabulary.everyone),
            private=local - shared,
            local=local,
            slots=slots,
            optimizer=config["optimizer"],
            outer_optimizer=dept.outer_optimizer,
            inner_state=dept.inner_state,
        ),
    )
    if dept.compression["name"] != "none" and dept.compression.get("error_feedback", True):
        memory = replace(memory, kept_per_source=memory.kept_per_source + round(WORD * shared))
    if dept.gathers:  # as messages, and decoded
        memory = replace(memory, sums=round(2 * slots * message))
    steps = dept.local_steps
    return Costs(dept.variant, parameters, vocabulary, steps, tensors * shared, message, memory)


def _rounds(config: Mapping[str, Any]) -> int | None:
    """Rounds of the run, if its duration is in rounds."""
    duration = str(config.get("max_duration", ""))
    return int(duration[:-2]) if duration.endswith("ep") else None


def _count(model: Mapping[str, Any], vocabulary: VocabularySizes, *, build: bool) -> Parameters:
    if not build:
        return mpt_parameters(model)
    from dept.costs.meta_device import built_parameters

    return built_parameters(model, vocabulary.everyone)


def _message(
    parameters: Parameters, dept: DeptOptions, rows: float, model: Mapping[str, Any]
) -> float:
    """Bytes that a source communicates at each exchange."""
    shared = parameters.body + _shared(parameters, dept, rows)
    if dept.compression["name"] == "none" and not dept.gathers:
        return WORD * shared
    from dept.method.compression import LOSSLESS, Compression  # torch is slow to import

    compression = Compression.of(dept.compression) or LOSSLESS
    by_row = rows if dept.sharing.phi is Sharing.BY_TOKEN_ROW else 0.0
    matrices = 1 if model.get("tie_word_embeddings", True) else 2
    return compression.bytes_of(
        round(shared - by_row * parameters.per_token),
        matrices * by_row,
        parameters.per_token // matrices,
    )


def _shared(parameters: Parameters, dept: DeptOptions, rows: float) -> float:
    """Shared parameters of phi, with ``rows`` rows, and psi."""
    numbers = {Role.TOKENS: rows * parameters.per_token, Role.POSITIONS: parameters.positions}
    shared = {r: n for r, n in numbers.items() if dept.sharing.sharing(r) is not Sharing.PRIVATE}
    return sum(shared.values())
