"""In-context-learning tasks: models of ours for llm-foundry's evaluation, and its results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from composer.models import HuggingFaceModel
from composer.utils import dist
from llmfoundry import registry
from llmfoundry.callbacks import EvalGauntlet
from llmfoundry.models.hf import ComposerHFCausalLM
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from dept import terminal
from dept.checkpoint import trust
from dept.config import icl
from dept.evaluation.models.source_models import load

load_once = lru_cache(maxsize=1)(load)  # llm-foundry builds model and tokenizer separately


class SourceCausalLM(HuggingFaceModel):
    """``model: {name: source_model}``: the model of ``source_models.load``.

    Args:
        tokenizer: of the yaml, ``source_model`` too.
        checkpoint: see there; and ``source``, ``root``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        checkpoint: str,
        source: str | None = None,
        root: str | None = None,
    ) -> None:
        train_metrics, metrics = ComposerHFCausalLM.build_metrics(use_train_metrics=True)
        super().__init__(
            load_once(checkpoint, source, root).model,
            tokenizer=tokenizer,
            use_logits=True,
            metrics=train_metrics,
            eval_metrics=metrics,
            shift_labels=True,
        )


class SourceTokenizer(PreTrainedTokenizerBase):
    """``tokenizer: {name: source_model}``: the tokenizer of that model, of whatever class."""

    def __new__(  # llm-foundry's registry takes classes only
        cls, checkpoint: str, source: str | None = None, root: str | None = None
    ) -> PreTrainedTokenizerBase:
        return load_once(checkpoint, source, root).tokenizer


def register() -> None:
    """Make the names known to llm-foundry."""
    registry.models.register("source_model", func=SourceCausalLM)
    registry.tokenizers.register("source_model", func=SourceTokenizer)
    icl.register()
    trust.guard_resumption()


def record(trainer: Any, model: Mapping[str, Any]) -> dict[str, Any]:
    """The results of an evaluation, for the file of results.

    Args:
        trainer: trainer of Composer, after the evaluation.
        model: entry of the model in ``models`` of the yaml.
    """
    state = trainer.state
    summed = next((c for c in state.callbacks if isinstance(c, EvalGauntlet)), None)
    known = {
        f"{benchmark['name']}/{benchmark['num_fewshot']}-shot": (category["name"], benchmark)
        for category in (summed.categories if summed else ())
        for benchmark in category["benchmarks"]
    }
    tasks: list[dict[str, Any]] = []
    for label, metrics in state.eval_metrics.items():
        category, benchmark = known.get("/".join(label.split("/")[:2]), (None, {}))
        for name, metric in metrics.items():
            value = float(metric.compute())
            questions = int(sum(dist.all_gather_object(float(metric.total))))
            tasks.append(
                {
                    "task": label,
                    "category": category,
                    "metric": name,
                    "value": value,
                    "standard_error": math.sqrt(value * (1 - value) / questions),
                    "random_baseline": benchmark.get("random_baseline"),
                    "questions": questions,
                }
            )
    scores = summed.eval_after_all(state, None) if summed else {}
    return {
        "model": model["model_name"],
        "source": model["model"].get("source"),
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "tasks": tasks,
        "scores": {key.rsplit("/", 1)[-1]: score for key, score in scores.items()},
    }


def show(records: Sequence[Mapping[str, Any]]) -> None:
    """Print a table for each model."""
    for model in records:
        terminal.show(_table(model), keys=2)


def _table(model: Mapping[str, Any]) -> Table:
    name = model["model"] + (f", {model['source']}" if model["source"] else "")
    clear = sum(
        task["random_baseline"] is not None
        and task["value"] - task["random_baseline"] > 2 * task["standard_error"]
        for task in model["tasks"]
    )
    rows = Table(
        title=f"{name}: {model['parameters']:,} parameters",
        caption=f"{clear} of {len(model['tasks'])} are more than two standard errors above chance, "
        "where small models are expected to be; scores: 0 is chance, 1 is all correct",
    )
    for header in ("task", "category"):
        rows.add_column(header, overflow="fold")
    for header in ("questions", "accuracy", "±", "chance"):
        rows.add_column(header, justify="right")
    for task in model["tasks"]:
        chance = task["random_baseline"]
        rows.add_row(
            task["task"],
            (task["category"] or "").replace("_", " "),
            f"{task['questions']:,}",
            f"{task['value']:.3f}",
            f"{task['standard_error']:.3f}",
            "" if chance is None else f"{chance:.2f}",
        )
    rows.add_section()
    for category, score in model["scores"].items():
        rows.add_row(f"score: {category.replace('_', ' ')}", "", "", f"{score:.3f}", "", "")
    return rows
