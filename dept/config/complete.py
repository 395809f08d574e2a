"""Complete a yaml of this repository for llm-foundry."""

from __future__ import annotations

import os
from typing import Any

from dept.checkpoint.run_folder import checkpoint_name, checkpoints_of, remote_of
from dept.config import icl, machine_choices
from dept.config.check import check
from dept.config.corpus_checks import corpus_and_sources, evaluates_held_out
from dept.config.options import options_of
from dept.data.corpus import GLOBAL
from dept.method.variants import Vocabulary
from dept.transport import devices, process_group

__all__ = ["check", "complete", "options_of"]


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """Add to an llm-foundry config what DEPT needs; see ``dept/training/transform.py``.

    * Schedulers run on sequential steps (``dept/training/learning_rate.py``).
    * A model of transformers runs no code of its repository, unless the yaml allows it.
    * What it leaves to the machine is chosen (``dept/config/machine_choices.py``).
    * A yaml without a seed gets llm-foundry's default, for its summary.
    * A model without a vocabulary size gets that of the global tokenizer.
    * A body that is trained further reads its text in another order.
    * Every source gets an evaluator, and so do held-out sources if there is a global embedding.
    * The model is sharded by FSDP2, if it is sharded.
    * The loader resumes itself, and DEPT saves the state of each source.
    * Checkpoints are written whole, and before an end by SIGTERM (``dept/checkpoint/saver.py``).
    * In-context-learning tasks are read in the tokens of the embedding that evaluates them.
    * Workers other than the first write only the files of their sources.
    """
    dept, loader = options_of(config)
    model = config.get("model")
    if isinstance(model, dict) and str(model.get("name")).startswith("hf_"):
        model.setdefault("trust_remote_code", False)  # llm-foundry's default is true
    if loader is None:
        return config
    machine_choices.put(config, machine_choices.choices(config, devices.device()))
    config.setdefault("seed", 17)
    remote = remote_of(config)
    if remote is not None:
        config["save_folder"] = str(checkpoints_of(config))
    corpus, names = corpus_and_sources(loader, dept)
    own = dept is not None and dept.sharing.vocabulary is Vocabulary.OWN
    model = config["model"]
    sizes = model.setdefault("config_overrides", {}) if model["name"].startswith("hf_") else model
    sizes.setdefault("vocab_size", corpus.tokenizers[GLOBAL].vocab_size)
    if "start_from" in (config.get("callbacks") or {}):
        config["train_loader"].setdefault("stage", "start_from")
    if not config.get("eval_loader") and not config.get("eval_loaders"):
        held_out = [n for n in corpus.held_out if n not in names and evaluates_held_out(dept)]
        config["eval_loaders"] = [  # llm-foundry's name for a list of eval_loader
            {
                "name": "validation",
                "label": name,
                "corpus": corpus.name,
                "root": loader.root,
                "remote": loader.remote,
                "source": name,
                "written_with": name if own else GLOBAL,
                "held_out": name not in names,
            }
            for name in (*names, *held_out)
        ]
    if dept is None:
        _add_checkpoints(config, remote)
        return config
    if tasks := icl.tasks_of(config):
        config["icl_tasks"] = icl.in_own_tokens(tasks, dept, corpus)
        config.pop("icl_tasks_str", None)
    if config.get("fsdp_config") is not None:
        os.environ["FSDP_VERSION"] = "2"  # Composer reads it; FSDP1 has one flat shard
        # It sees gradients before they are clipped: Composer calls the last one first then.
        config["algorithms"]["dept"] = config["algorithms"].pop("dept")
        config["fsdp_config"].setdefault("state_dict_type", "full")
    config["spin_dataloaders"] = False
    config["train_loader"]["own_tokenizers"] = own
    config["scheduler"] = {
        "name": "sequential_steps",
        "scheduler": config["scheduler"],
        "local_steps": dept.local_steps,
    }
    config["save_ignore_keys"] = [*(config.get("save_ignore_keys") or []), "state/optimizers"]
    if config.get("save_folder") and config.get("save_interval", "1ep"):
        config.setdefault("save_filename", checkpoint_name(process_group.current().count))
        _add_source_checkpoints(config, remote if dept.upload_sources else None)
    _add_checkpoints(config, remote)
    return config if process_group.current().place.worker == 0 else _quiet(config)


def _add_source_checkpoints(config: dict[str, Any], remote: str | None) -> None:
    """Add the callback that writes files of sources beside the checkpoints."""
    config["callbacks"] = {
        **(config.get("callbacks") or {}),
        "source_checkpoints": {
            "checkpoints": config["save_folder"],
            "save_interval": config.get("save_interval", "1ep"),
            "save_num_checkpoints_to_keep": config.get("save_num_checkpoints_to_keep", -1),
            "remote": remote,
        },
    }


def _add_checkpoints(config: dict[str, Any], remote: str | None) -> None:
    """Replace Composer's checkpoint saver by ours; the callback that ends the run follows it."""
    if not config.get("save_folder") or not config.get("save_interval", "1ep"):
        return
    names = {
        "save_folder": "folder",
        "save_filename": "filename",
        "save_latest_filename": "latest_filename",
        "save_interval": "save_interval",
        "save_num_checkpoints_to_keep": "num_checkpoints_to_keep",
        "save_overwrite": "overwrite",
        "save_weights_only": "weights_only",
        "save_ignore_keys": "ignore_keys",
    }
    options = {option: config[key] for key, option in names.items() if config.get(key) is not None}
    config["callbacks"] = {
        **(config.get("callbacks") or {}),
        "checkpoints": options | ({"remote": remote} if remote else {}),
        "stop_on_sigterm": {},
    }


# Callbacks that write files or print to the terminal, for the whole job.
_FOR_ALL = ("progress", "run_files", "checkpoints", "hf_checkpointer")


def _quiet(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a worker other than the first, which prints, logs, saves and loads for all."""
    callbacks = {k: v for k, v in (config.get("callbacks") or {}).items() if k not in _FOR_ALL}
    quiet = {"loggers": {}, "save_folder": None, "load_path": None, "autoresume": False}
    return config | quiet | {"callbacks": callbacks}
