"""In-context-learning tasks of llm-foundry while DEPT trains: their files, tokens and embedding.

With a global embedding, tasks are read as llm-foundry does. With embeddings of sources only, the
worker of ``algorithms.dept.icl_source`` evaluates all tasks with the embedding of that source: SPEC
translates ids of the global tokenizer to rows as it does for text, and SPEC-OPT reads tasks in the
tokens of the source. Tasks that generate answers are for checkpoints (``eval/eval.py``), since
llm-foundry decodes answers with the one tokenizer of the yaml.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from dept.checkpoint import library_patches
from dept.config.options import DeptOptions
from dept.data.corpus import PreparedCorpus
from dept.errors import ConfigError
from dept.method.variants import Vocabulary

OWN = "own_tokens_"
"""Prefix of the type of a task that is read in a source's own tokens."""

# The metrics of llm-foundry for a task that names none.
_METRICS = {
    "language_modeling": "InContextLearningLMAccuracy",
    "multiple_choice": "InContextLearningMultipleChoiceAccuracy",
    "schema": "InContextLearningMultipleChoiceAccuracy",
}


def is_task(label: str) -> bool:
    """Whether an evaluator of this label is a task, and not the text of an eval loader."""
    return label != "eval" and not label.startswith("eval/")


def tasks_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tasks of a resolved yaml, or of the file that it names.

    Raises:
        ConfigError: the file does not exist or has no list ``icl_tasks``.
    """
    tasks = config.get("icl_tasks") or config.get("icl_tasks_str") or []
    if isinstance(tasks, str):
        path = Path(tasks)
        try:
            content: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else None
        except (OSError, ValueError, YAMLError):
            content = None
        tasks = content.get("icl_tasks") if isinstance(content, dict) else None
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise ConfigError(f"icl_tasks is {path}, which is no yaml with a list icl_tasks")
    return [dict(task) for task in tasks]


def check_files(tasks: Sequence[Mapping[str, Any]]) -> None:
    """Refuse tasks whose files do not exist; remote files are left to llm-foundry.

    Raises:
        ConfigError: a file is missing.
    """
    for task in tasks:
        uri = str(task.get("dataset_uri"))
        if "://" not in uri and not os.path.isfile(uri):
            raise ConfigError(
                f"icl_tasks: the file of {task.get('label')}, {uri}, does not exist: set "
                f"variables.gauntlet_root to the folder that has your task files"
            )


def check_embedding(
    tasks: Sequence[Mapping[str, Any]], dept: DeptOptions, sources: Sequence[str]
) -> None:
    """Refuse tasks that no embedding of the run can evaluate.

    Args:
        tasks: the tasks of the yaml, as :func:`tasks_of` returns them.
        dept: options of ``algorithms.dept``.
        sources: names of the sources to train.

    Raises:
        ConfigError: ``icl_source`` is missing, unknown or not needed, or a task generates text.
    """
    where, source = "algorithms.dept.icl_source", dept.icl_source
    if dept.sharing.has_global_embedding:
        if source is not None:
            raise ConfigError(f"{where} is {source!r}, but {dept.variant} has a global embedding")
        return
    if source is None and not tasks:
        return
    if source not in sources:
        given = "is not set" if source is None else f"is {source!r}"
        raise ConfigError(
            f"{where} {given}, and icl_tasks need the embedding of a source in {dept.variant}: set "
            f"it to one of {', '.join(sources)}"
        )
    for task in tasks:
        if task.get("icl_task_type") not in _METRICS:
            raise ConfigError(
                f"icl_tasks: {task.get('label')} is of type {task.get('icl_task_type')}, which "
                f"needs the tokenizer of its embedding: evaluate the checkpoint with eval/eval.py"
            )


def in_own_tokens(
    tasks: Sequence[Mapping[str, Any]], dept: DeptOptions, corpus: PreparedCorpus
) -> list[dict[str, Any]]:
    """The tasks, read in the tokens of ``icl_source`` if sources have their own tokenizers.

    Args:
        tasks: the tasks of the yaml, as :func:`tasks_of` returns them; not changed.
        dept: options of ``algorithms.dept``.
        corpus: the corpus of the run, for the tokenizers of its sources.

    Returns:
        A copy of each task. If it is read in own tokens, its type begins with ``OWN``, it names the
        folder of the tokenizer, and it has default metrics unless it names some.
    """
    if dept.icl_source is None or dept.sharing.vocabulary is not Vocabulary.OWN:
        return [dict(task) for task in tasks]
    path = str(corpus.tokenizers[dept.icl_source].path)
    return [
        {"metric_names": [_METRICS[task["icl_task_type"]]]}
        | dict(task)
        | {"icl_task_type": OWN + task["icl_task_type"], "tokenizer_path": path}
        for task in tasks
    ]


def results(state: Any) -> dict[str, float]:
    """The metrics of Composer and the Gauntlet for the tasks that this worker evaluated last.

    Args:
        state: the state of Composer.

    Returns:
        Values by metric name.
    """
    from llmfoundry.callbacks import EvalGauntlet

    found = {
        f"metrics/{label}/{name}": float(metric.compute())
        for label, metrics in state.eval_metrics.items()
        if is_task(label)
        for name, metric in metrics.items()
    }
    for callback in state.callbacks:
        if isinstance(callback, EvalGauntlet):
            found |= callback.eval_after_all(state, None)
    return found


def register() -> None:
    """Register task types in own tokens, and copy task files to a folder of the job."""
    from llmfoundry import registry

    for kind in _METRICS:
        if OWN + kind not in registry.icl_datasets:
            registry.icl_datasets.register(
                OWN + kind, func=_reading_own_tokens(registry.icl_datasets.get(kind))
            )
    library_patches.copy_tasks_to_own_folder()


def _reading_own_tokens(dataset: type) -> Callable[..., Any]:
    def build(*, tokenizer_path: str, **options: Any) -> Any:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path, trust_remote_code=False)
        own = {"tokenizer": tokenizer, "pad_tok_id": tokenizer.pad_token_id}
        return dataset(**{**options, **own})

    return build
