"""In-context-learning tasks, by llm-foundry's own evaluation:

    composer eval/eval.py eval/yamls/gauntlet.yaml checkpoint=runs/<run_name>/checkpoints \\
        source=en gauntlet_root=/path/to/task/files [key=value ...]

The yaml is one of llm-foundry's for evaluation, with `extends` as train yamls have it. The model
`source_model` is what eval/source_models.py loads: a checkpoint with the embedding and tokenizer of
a source or the global ones, a transformers directory, or a name on the hub. `composer -n 2` shares
the questions of a task.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: see train.py
os.environ.setdefault("OMP_NUM_THREADS", "1")

from omegaconf import DictConfig

from dept.checkpoint import durable, trust
from dept.checkpoint.run_folder import find_checkpoint, folder_of_checkpoint
from dept.config import extends, icl
from dept.errors import ConfigError
from dept.log import log
from dept.training import scratch
from dept.transport.launcher import end_with_launcher


def main(arguments: Sequence[str]) -> int:
    """Evaluate the models of a yaml; returns the exit status."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(__doc__)
        return 0 if arguments else 2
    end_with_launcher()
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        config = load(arguments[0], arguments[1:])
        plain = extends.resolve(config)
        if not plain.get("models"):
            raise ConfigError("there are no models: name some, as eval/yamls/gauntlet.yaml does")
        icl.check_files(icl.tasks_of(plain))
        output = output_of(plain)
        scratch.enter()
        records = evaluate(config)
    except ValueError as error:
        if is_first:
            log.error(f"{arguments[0]}: {error}")
        return 2
    if is_first:
        from dept.evaluation.models.gauntlet import show

        durable.write(output, json.dumps(records, indent=1) + "\n")
        show(records)
        print(output)
    return 0


def load(path: str, overrides: Sequence[str]) -> DictConfig:
    """A yaml with overrides; the override of a variable needs no prefix ``variables.``.

    Args:
        path: path of the yaml.
        overrides: ``key=value`` strings, applied to the yaml.

    Returns:
        The config, as :func:`dept.config.extends.load` returns it.

    Raises:
        ConfigError: as :func:`dept.config.extends.load`.
    """
    variables = list((extends.load(path).get("variables") or {}).keys())
    return extends.load(
        path,
        [f"variables.{o}" if o.split("=")[0].split(".")[0] in variables else o for o in overrides],
    )


def output_of(config: dict[str, Any]) -> Path:
    """The file of results: that of the yaml, or one beside the run of the evaluated checkpoint.

    Raises:
        ConfigError: the file exists, or there is no run or no such checkpoint.
    """
    variables = config.get("variables") or {}
    chosen, source = variables.get("output"), variables.get("source")
    checkpoint = Path(str(variables.get("checkpoint")))
    if chosen:
        path = Path(chosen)
    elif (checkpoint / "config.json").is_file() or not checkpoint.exists():
        raise ConfigError(
            f"{checkpoint} is not a checkpoint of a run, which would have a folder for results: "
            f"set variables.output to a file, or correct variables.checkpoint"
        )
    else:
        run = folder_of_checkpoint(find_checkpoint(checkpoint))
        path = run / f"gauntlet-{source or 'global'}.json"
    if path.exists():
        raise ConfigError(f"{path} exists already: remove it, or set variables.output to another")
    return path


def evaluate(config: DictConfig) -> list[dict[str, Any]]:
    """Evaluate every model of a yaml with llm-foundry, which prints its own tables to stderr.

    Raises:
        ValueError: a model or task cannot be loaded.
    """
    trust.guard()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore")
    from contextlib import redirect_stdout

    from dept.evaluation.models.source_models import load as load_model

    for entry in config.models:
        if str(entry.model.name).startswith("hf_"):
            entry.model.setdefault("trust_remote_code", False)  # llm-foundry's default is true
    models = extends.resolve(config)["models"]
    for model in models:
        if model["model"]["name"] == "source_model":  # fail before slower imports
            load_model(model["model"]["checkpoint"], model["model"].get("source"))
    from llmfoundry.command_utils import eval as llmfoundry_eval

    from dept.evaluation.models import gauntlet

    gauntlet.register()
    with redirect_stdout(sys.stderr):
        trainers, _ = llmfoundry_eval.evaluate(config)
    return [gauntlet.record(*pair) for pair in zip(trainers, models, strict=True)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
