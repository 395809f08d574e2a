"""DEPT written down once more, from the paper, in plain torch: what runs are compared with.

It shares no code with what it checks. Algorithm 1, the baselines and the evaluation are here, the
decoder and the inner optimizer in ``oracle_model``, samples and their order in ``oracle_data``.
Where the paper leaves something open, the rule is that of our documents, and a comment says so.
Numbers are of the type of the parameters given: what differs in float64 too is not rounding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from oracle_data import Reader, Source, drawn_sources, mixed_batches
from oracle_model import (
    EMBEDDINGS,
    TOKENS,
    Moments,
    Parameters,
    Recipe,
    cross_entropies,
    factor,
    logits,
    take_step,
)
from torch import Tensor


@dataclass
class Trained:
    """What a run has learned.

    Attributes:
        parameters: all that is not private.
        private: phi_k and psi_k by source.
        losses: of each step, by source in the order of their steps; of a mixture under "mixture".
        norms: of each step's gradient before it was clipped.
        moved: how far each slot moved the body, by source: an L2 norm.
        pool: the averages of moments, where they are averaged.
    """

    parameters: Parameters
    private: dict[str, Parameters] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)
    moved: dict[str, list[float]] = field(default_factory=dict)
    pool: "Pool | None" = None


# --- Algorithm 1 ---------------------------------------------------------------------------------


def train_dept(
    recipe: Recipe,
    variant: str,
    sources: Sequence[Source],
    start: Parameters,
    private: Mapping[str, Parameters],
    *,
    rounds: int,
    local_steps: int,
    per_round: int | None = None,
    outer: Mapping[str, float] | None = None,
    inner_state: str = "keep",
    interval: tuple[int, int] = (3, 6),
) -> Trained:
    """Rounds of local steps from the same start, each followed by an outer step.

    Args:
        recipe: of the inner optimizer, with the batch of one source.
        variant: ``glob``, ``trim``, ``spec`` or ``spec_opt``.
        sources: in the order of the corpus.
        start: the global parameters of the first round.
        private: phi_k and psi_k that each source begins with, in SPEC and SPEC-OPT.
        rounds: T.
        local_steps: N_local.
        per_round: |S_t|; all sources if not given.
        outer: ``lr`` and ``momentum`` of Nesterov's SGD; the average itself if not given.
        inner_state: ``keep``, ``reset`` or ``average``, of shared parameters between two slots of a
            source.
        interval: with ``average``, rounds between averages of the first and the second moment.
    """
    is_private = variant in ("spec", "spec_opt")
    shared = [n for n in start if not (is_private and n in EMBEDDINGS)]
    trained = Trained({n: start[n] for n in shared}, {s: dict(p) for s, p in private.items()})
    readers = {source.name: Reader(source, recipe.seed, recipe.stage) for source in sources}
    kept: dict[str, Moments] = {source.name: {} for source in sources}
    momenta: Parameters = {}
    pool, kept_in = Pool(), dict.fromkeys(kept, 0)
    trained.pool = pool if inner_state == "average" else None
    for t in range(rounds):
        locals_: list[tuple[Source, Parameters]] = []
        for source in drawn_sources(recipe.seed, t, sources, per_round or len(sources)):
            parameters = trained.parameters | trained.private.get(source.name, {})
            if variant == "trim":
                held = source.vocabulary
                parameters |= {n: parameters[n][held] for n in TOKENS if n in parameters}
            moments = kept[source.name]
            if inner_state == "average":
                own = {n: parameters[n] for n in shared}
                pool.give(moments, kept_in[source.name], own, source, variant, recipe.betas)
                kept_in[source.name] = t + 1
            for i in range(local_steps):
                step = t * local_steps + i
                rate = recipe.lr * factor(step, rounds * local_steps, recipe.warmup, recipe.floor)
                rows = rows_of(source, variant)[readers[source.name].take(recipe.batch)]
                rates = dict.fromkeys(parameters, rate)
                loss, norm = take_step(parameters, moments, rows, rates, recipe)
                trained.losses.setdefault(source.name, []).append(loss)
                trained.norms.append(norm)
            if is_private:
                trained.private[source.name] = {n: parameters[n] for n in private[source.name]}
            if inner_state == "reset":
                kept[source.name] = {n: m for n, m in moments.items() if n not in shared}
            body = [n for n in shared if n not in EMBEDDINGS]
            away = sum((parameters[n] - trained.parameters[n]).square().sum() for n in body)
            trained.moved.setdefault(source.name, []).append(float(away.sqrt()))
            locals_.append((source, parameters))
        for name in shared:
            by_row = variant == "trim" and name in TOKENS
            trained.parameters[name] = outer_step(
                name, trained.parameters[name], locals_, by_row, outer, momenta
            )
            for which in (1, 2) if inner_state == "average" else ():
                if (t + 1) % interval[which - 1] == 0:
                    pool.take(which, name, trained.parameters[name], locals_, by_row, kept, t + 1)
    return trained


class Pool:
    """The averages of moments that no source owns, as docs/inner_state.md has them.

    Attributes:
        values: by which moment it is (1 or 2) and parameter; zero where nothing was averaged.
        since: int64[rows]: the round of the average in each row, from 1, or 0.
        steps: of the source with the most steps among those averaged.
        sent: numbers that sources have sent to be averaged.
    """

    def __init__(self) -> None:
        self.values: dict[int, Parameters] = {1: {}, 2: {}}
        self.since: dict[int, Parameters] = {1: {}, 2: {}}
        self.steps = self.sent = 0

    def take(self, which, name, like, locals_, by_row, kept, number) -> None:
        """Average one moment of a parameter over the sources of a round, rows by their holders."""
        value = self.values[which].setdefault(name, torch.zeros_like(like))
        since = self.since[which].setdefault(name, torch.zeros(len(like), dtype=torch.int64))
        holders: dict[int, list[Tensor]] = {}
        for source, _ in locals_:
            steps, *moments = kept[source.name][name]
            self.sent += moments[which - 1].numel()
            self.steps = max(self.steps, steps)
            ids = source.vocabulary.tolist() if by_row else range(len(like))
            for row, moment in zip(ids, moments[which - 1], strict=True):
                holders.setdefault(row, []).append(moment)
        for row, moments in holders.items():
            value[row] = sum(moments) / len(moments)
            since[row] = number

    def give(self, moments: Moments, kept_in, own, source, variant, betas) -> None:
        """Replace, in what a source kept, the rows that were averaged since, or when, it did."""
        if not all(self.values.values()) and kept_in == 0:
            return
        first_decay, second_decay = betas
        most = (1 - first_decay) / math.sqrt(1 - second_decay)
        most /= math.sqrt(1 - first_decay**2 / second_decay)
        for name, parameter in own.items():
            by_row = variant == "trim" and name in TOKENS
            rows = source.vocabulary if by_row else torch.arange(len(parameter))
            zero = torch.zeros_like(parameter)
            steps, *both = moments.get(name, (self.steps, zero, zero))
            both, changed = [moment.clone() for moment in both], torch.zeros(len(rows)).bool()
            for which, moment in enumerate(both, start=1):
                if name in self.values[which]:
                    since = self.since[which][name][rows]
                    newer = (since > 0) & (since >= kept_in)
                    moment[newer] = self.values[which][name][rows][newer]
                    changed |= newer
            first, second = both
            spread = most * second.sqrt()
            first[changed] = torch.minimum(torch.maximum(first, -spread), spread)[changed]
            moments[name] = (steps, first, second)


def outer_step(
    name: str,
    start: Tensor,
    locals_: Sequence[tuple[Source, Parameters]],
    by_row: bool,
    outer: Mapping[str, float] | None,
    momenta: Parameters,
) -> Tensor:
    """The global parameter after the round: of its rows, those that a source of the round held."""
    total, holders = torch.zeros_like(start), torch.zeros(len(start), dtype=start.dtype)
    for source, parameters in locals_:
        rows = source.vocabulary if by_row else torch.arange(len(start))
        total[rows] += parameters[name]
        holders[rows] += 1
    holders = holders.view(-1, *[1] * (start.dim() - 1))
    average = torch.where(holders > 0, total / holders.clamp(min=1), start)
    if outer is None:
        return average
    gradient = start - average
    before = momenta.get(name, torch.zeros_like(start))
    momentum = outer["momentum"] * before + gradient
    # A row without a holder keeps its value, and its momentum for the next time it has one.
    momenta[name] = torch.where(holders > 0, momentum, before)
    stepped = start - outer["lr"] * (gradient + outer["momentum"] * momentum)
    return torch.where(holders > 0, stepped, start)


def rows_of(source: Source, variant: str) -> Tensor:
    """The row of each id in the matrix that a source trains, int64[|V|]; see ``unknown``."""
    ids = torch.arange(source.vocab_size)
    if variant not in ("trim", "spec"):
        return ids
    held = source.vocabulary
    rows = torch.full_like(ids, int(torch.searchsorted(held, source.unknown)))
    rows[held] = torch.arange(len(held))
    return rows


# --- the mixture: STD, ACT, continued pre-training -----------------------------------------------


def train_mixture(
    recipe: Recipe,
    sources: Sequence[Source],
    start: Parameters,
    *,
    steps: int,
    tau: float = 0.0,
    forget_every: int | None = None,
    redrawn: Mapping[int, Parameters] | None = None,
) -> Trained:
    """All sources mixed in every batch.

    Args:
        recipe: with the batch of the mixture.
        sources: in the order of the corpus.
        start: all parameters; for continued pre-training, those of the body and the new embedding.
        steps: of the whole run.
        tau: a sequence is of source k with p_k ~ tokens_k ** tau.
        forget_every: of ACT, steps between two resets of the token embedding; none by default.
        redrawn: the token matrices that it is reset to, by cycle (from 1).
    """
    trained, moments = Trained(dict(start)), {}
    batches = mixed_batches(recipe.seed, recipe.stage, sources, recipe.batch, tau)
    for step, ids in zip(range(steps), batches, strict=False):
        rate = recipe.lr * factor(step, steps, recipe.warmup, recipe.floor)
        rates = dict.fromkeys(start, rate)
        if forget_every is not None:
            cycle, within = divmod(step, forget_every)
            if cycle > 0 and within == 0:
                trained.parameters |= redrawn[cycle]
                for name in redrawn[cycle]:
                    moments.pop(name)
            own = recipe.lr * factor(within, forget_every, recipe.warmup, recipe.floor)
            rates |= {name: own for name in TOKENS if name in start}
        loss, norm = take_step(trained.parameters, moments, ids, rates, recipe)
        trained.losses.setdefault("mixture", []).append(loss)
        trained.norms.append(norm)
    return trained


# --- evaluation ----------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(trained: Trained, variant: str, source: Source, heads: int) -> dict[str, float]:
    """What ``summary.json`` has of the validation split of a source, by the same names.

    The paper is silent on tokens outside V_k. As README.md has it: in TRIM the softmax over V_k
    scores the tokens of V_k and the full matrix the others; in SPEC such a token costs ln |V|.
    Bits per byte take the first token of a sample, which nothing predicts, to cost the mean.
    """
    parameters = trained.parameters | trained.private.get(source.name, {})
    ids = source.val
    rows = rows_of(source, variant)[ids] if variant == "spec" else ids
    scores = logits(parameters, rows, heads)
    costs = cross_entropies(scores, rows)
    if variant in ("trim", "spec"):
        holds = torch.zeros(source.vocab_size, dtype=torch.bool)
        holds[source.vocabulary] = True
        inside = holds[ids[:, 1:]]
        if variant == "spec":
            costs = costs.where(inside, torch.tensor(math.log(source.vocab_size)).to(costs))
        else:
            trimmed = cross_entropies(scores.masked_fill(~holds, -math.inf), ids)
            costs = trimmed.where(inside, costs)
    loss = float(costs.mean())
    bits = loss / math.log(2) * ids.numel() / source.val_bytes
    scored = {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits}
    return scored | {"unigram_ce": unigram_cross_entropy(source)}


def unigram_cross_entropy(source: Source) -> float:
    """UNIGRAM-CE: nats per validation token by the counts of training, each plus one."""
    counts = source.train.flatten().bincount(minlength=source.vocab_size).double() + 1
    return -float((counts / counts.sum()).log()[source.val].mean())


def sent_per_step(
    trained: Trained, variant: str, sources: Sequence[Source], local_steps: int
) -> float:
    """Parameters that a source sends after its steps, spread over them: the mean over all slots."""
    sent, steps = trained.pool.sent if trained.pool else 0, 0
    for source in sources:
        taken = len(trained.losses.get(source.name, []))
        for name, value in trained.parameters.items():
            by_row = variant == "trim" and name in TOKENS
            rows = len(source.vocabulary) if by_row else len(value)
            sent += taken // local_steps * rows * value[0].numel()
        steps += taken
    return sent / steps


def mean_of(evaluations: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The average over sources of each number, as in the paper's tables."""
    return {key: sum(one[key] for one in evaluations) / len(evaluations) for key in evaluations[0]}
