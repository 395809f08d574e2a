"""Runs of the real trainer on the small corpus, in this process."""

import os
from pathlib import Path

from omegaconf import OmegaConf

from dept.config import complete as configs
from dept.config import extends

REPOSITORY = Path(__file__).parents[2]
LOCAL_STEPS, BATCH, ROUNDS = 3, 4, 3


def overrides(root: Path) -> list[str]:
    """What makes an experiment of this repository small, and keeps its files below ``root``."""
    return [
        "variables.corpus=tiny",
        f"train_loader.root={root}",
        f"tokenizer.name={root}/tokenizers/tiny/global",
        "max_seq_len=32",
        "max_duration=3ep",
        "eval_interval=1ep",
        f"save_folder={root}/runs/${{run_name}}/checkpoints",
        f"callbacks.run_files.folder={root}/runs/{{run_name}}",
        f"loggers.jsonl.path={root}/runs/{{run_name}}/metrics.jsonl",
    ]


MPT = ["model.d_model=32", "model.n_heads=2", "model.n_layers=2"]
DEPT = [f"algorithms.dept.local_steps={LOCAL_STEPS}", f"global_train_batch_size={BATCH}"]


def load(root: Path, experiment: str, *more: str, checked: bool = False) -> dict:
    """The config of a small run, checked as train.py checks it, unless it has been."""
    small = MPT if "llama" not in experiment else ["model.config_overrides.hidden_size=32"]
    small = [*small, *(DEPT if experiment.startswith("dept") else [])]
    path = REPOSITORY / "yamls" / f"{experiment}.yaml"
    config = extends.load(path, [*overrides(root), *small, *more])
    if not checked:  # once workers have joined, the environment is that of one of them
        configs.check(OmegaConf.to_container(config, resolve=True))
    return config


def train(root: Path, experiment: str, *more: str, checked: bool = False):
    """Train, as train.py does after its checks; returns Composer's trainer."""
    import run_imports  # noqa: F401
    from llmfoundry.command_utils import train as llmfoundry_train

    from dept.training import registration
    from dept.training.on_machine import choose

    registration.register()
    os.chdir(REPOSITORY)
    config = load(root, experiment, *more, checked=checked)
    chosen, _ = choose(OmegaConf.to_container(config, resolve=True))
    for key, value in chosen.items():
        OmegaConf.update(config, key, value, force_add=True)
    return llmfoundry_train(config)


def dept_of(trainer):
    """The algorithm of a run."""
    return next(a for a in trainer.state.algorithms if hasattr(a, "run"))


def parameters(model) -> dict:
    """Copies of the parameters of a model, by name."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def tensors_of(trainer) -> dict:
    """All that a DEPT run has learned, by name."""
    slots = dept_of(trainer).run.slots
    learned = {f"global/{name}": value.clone() for name, value in slots.start.items()}
    for source, values in slots.private.items():
        learned |= {f"{source}/{name}": value.clone() for name, value in values.items()}
    return learned
