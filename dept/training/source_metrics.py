"""Evaluation of each source in comparable metrics: bits per byte beside perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from composer.core import Callback, Event, State
from composer.loggers import Logger

from dept.data.corpus import PreparedSplit
from dept.data.loader import SourceLoader
from dept.transport import process_group

Interval = Callable[[State, Event], bool]


@dataclass(frozen=True)
class SourceEvaluation:
    """The metrics of one evaluation of one source."""

    loss: float
    """Cross-entropy in nats per token."""

    perplexity: float
    """``exp(loss)``; of the tokens of its tokenizer, so not comparable between tokenizers."""

    bits_per_byte: float
    """Bits per UTF-8 byte of the text, which are comparable between tokenizers."""

    unigram_ce: float
    """Cross-entropy of the same tokens under the counts of the training split, nats per token."""


def evaluation(loss: float, split: PreparedSplit, unigram_ce: float) -> SourceEvaluation:
    """The metrics of a source from its mean loss.

    The first token of a sample has no prediction; it is assumed to cost the mean of the others.

    Args:
        loss: mean cross-entropy in nats per token.
        split: the split it was measured on, with its tokens and bytes.
        unigram_ce: unigram cross-entropy of the source, nats per token.
    """
    bits = loss / math.log(2) * split.tokens / split.bytes
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return SourceEvaluation(loss, perplexity, bits, unigram_ce)


def average(evaluations: list[SourceEvaluation]) -> SourceEvaluation:
    """The mean of each metric over sources, as the paper's tables average perplexities.

    The result does not depend on the order of the evaluations.
    """
    rows = [asdict(item) for item in evaluations]
    return SourceEvaluation(
        **{key: math.fsum(row[key] for row in rows) / len(rows) for key in rows[0]}
    )


def _with_the_last_epoch(interval: Interval) -> Interval:
    """Move an evaluation after the end of training to the end of the last epoch.

    After training, the summary has been written, and workers do not synchronise any more.
    """

    brought_forward = False

    def due(state: State, event: Event) -> bool:
        nonlocal brought_forward
        if interval(state, event):
            return not brought_forward
        brought_forward = event == Event.EPOCH_END and interval(state, Event.FIT_END)
        return brought_forward

    return due


class SourceMetrics(Callback):
    """Logs ``eval/<source>/{loss,perplexity,bits_per_byte,unigram_ce}`` after each evaluation.

    It works with any evaluator whose loader is a validation loader of a prepared source. If each
    worker evaluates a part of the sources, the first one logs all of them at the end of an epoch.

    Args:
        held_out_interval: interval of evaluations on text that the run does not train on, in
            addition to one at the end; by default that of all other text.

    Attributes:
        latest: the last evaluation of each source, by name.
        held_out: names of the sources among them that the run does not train on.
        vocab_sizes: vocabulary sizes of the tokenizers of their text.
    """

    def __init__(self, held_out_interval: str | None = None) -> None:
        self.held_out_interval = held_out_interval
        self.latest: dict[str, SourceEvaluation] = {}
        self.held_out: set[str] = set()
        self.vocab_sizes: dict[str, int] = {}
        self._new: dict[str, dict[str, float]] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        loader = state.train_dataloader
        if isinstance(loader, SourceLoader):
            now, before = {*loader.schedule.sources}, loader.schedule.earlier
            self.held_out -= now
            for name in {source for period in before for source in period.sources} - now:
                self.latest.pop(name, None)  # it has left
        for evaluator in state.evaluators:
            held_out = getattr(evaluator.dataloader.dataloader, "held_out", False)
            if held_out and self.held_out_interval is not None:
                evaluator.eval_interval = self.held_out_interval
            evaluator.eval_interval = _with_the_last_epoch(evaluator.eval_interval)

    def eval_end(self, state: State, logger: Logger) -> None:
        label, loader = state.dataloader_label or "", state.dataloader
        prepared = getattr(loader, "prepared", None)
        metric = state.eval_metrics[label].get("LanguageCrossEntropy")
        if prepared is None or metric is None:
            return
        loss = float(metric.compute())
        result = evaluation(loss, prepared.splits["val"], prepared.unigram_ce)
        if loader.held_out:
            self.held_out.add(prepared.name)
        else:
            self.held_out.discard(prepared.name)  # it may have been, before it joined the run
        self.vocab_sizes[prepared.name] = prepared.vocab_size
        self._take(prepared.name, result, logger)
        self._new[prepared.name] = asdict(result)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        if process_group.current().count == 1:
            self._log_average(logger)

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        # `eval_first`: Composer runs it outside of training, where eval_after_all is no event.
        if process_group.current().count == 1:
            self._log_average(logger)
        else:
            self._share("the evaluation before training", logger)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        if process_group.current().count > 1:
            self._share(f"the evaluation after epoch {state.timestamp.epoch.value}", logger)

    def _share(self, stage: str, logger: Logger) -> None:
        """Log the sources that other workers have evaluated, and the average."""
        everyone = process_group.current()
        new, self._new = self._new, {}
        here = {"latest": new, "held_out": sorted(self.held_out), "sizes": self.vocab_sizes}
        for worker, given in enumerate(everyone.gather(here, stage=stage)):
            self.held_out |= set(given["held_out"])
            self.vocab_sizes |= given["sizes"]
            if worker != everyone.place.worker:
                for name, result in given["latest"].items():
                    new[name] = result
                    self._take(name, SourceEvaluation(**result), logger)
        if new:
            self._log_average(logger)

    def _log_average(self, logger: Logger) -> None:
        trained = [result for name, result in self.latest.items() if name not in self.held_out]
        if trained:
            mean = average(trained)
            logger.log_metrics({f"eval/average/{k}": v for k, v in asdict(mean).items()})

    def _take(self, name: str, result: SourceEvaluation, logger: Logger) -> None:
        self.latest[name] = result
        logger.log_metrics({f"eval/{name}/{k}": v for k, v in asdict(result).items()})

    def state_dict(self) -> dict[str, Any]:
        latest = {name: asdict(result) for name, result in self.latest.items()}
        return {
            "latest": latest,
            "held_out": sorted(self.held_out),
            "vocab_sizes": self.vocab_sizes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.latest = {name: SourceEvaluation(**r) for name, r in state["latest"].items()}
        self.held_out = set(state["held_out"])
        self.vocab_sizes = dict(state["vocab_sizes"])
