"""The keys of a yaml that are llm-foundry's, of the versions pinned here: what each may be.

llm-foundry says the same half a minute later, some of it not at all. ``algorithms.dept``,
``train_loader`` and ``callbacks.start_from`` are ours: ``dept/config/options.py`` has those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dept.config import schema
from dept.config.model_keys import MODEL
from dept.config.optimizer_keys import OPTIMIZER, SCHEDULER
from dept.config.schema import (
    FLAG,
    MAPPING,
    NAME,
    PATH,
    TEXT,
    ListOf,
    Named,
    Optional,
    Section,
    either,
    integer,
    number,
    one_of,
    time,
)

INTERVAL = either(time("ep", "ba", "sp", "tok", "dur", least=1), integer(1))
LEVEL = one_of("debug", "info", "warning", "error", "critical")

ALGORITHMS: dict[str, schema.Spec] = {
    "dept": MAPPING,  # dept/config/options.py
    "gradient_clipping": Section(
        {
            "clipping_type": one_of("norm", "value", "adaptive"),
            "clipping_threshold": number(0, above=True),
        },
        required=("clipping_type", "clipping_threshold"),
    ),
    "alibi": MAPPING,
    "gated_linear_units": MAPPING,
    "low_precision_layernorm": MAPPING,
}

CALLBACKS: dict[str, schema.Spec] = {
    "active_forgetting": Section(
        {"every": integer(1), "scheduler": SCHEDULER}, required=("every", "scheduler")
    ),
    "best_checkpoint": Section({"folder": PATH}, required=("folder",)),
    "norms": Section({"interval": integer(1)}),
    "progress": Section(),
    "run_files": Section({"folder": PATH}),
    "source_metrics": Section({"held_out_interval": Optional(INTERVAL)}),
    "start_from": MAPPING,  # dept/config/options.py
    "nan_monitor": Section(),
    "lr_monitor": Section(),
    "speed_monitor": Section({"window_size": integer(1)}, is_open=True),
}
# Of llm-foundry; what their options may be, it says itself.
OF_LLM_FOUNDRY = (  # what their options may be, it says itself
    "async_eval curriculum_learning dataset_swap early_stopper env_logging eval_output_logging",
    "fdiff_metrics generate_callback global_lr_scaling hf_checkpointer kill_loss_spike",
    "layer_freezing load_checkpoint loss_perp_v_len mbmoe_tok_per_expert memory_monitor",
    "memory_snapshot mono_checkpoint_saver oom_observer optimizer_monitor run_timeout",
    "runtime_estimator scheduled_gc system_metrics_monitor",
)
CALLBACKS |= dict.fromkeys(" ".join(OF_LLM_FOUNDRY).split(), MAPPING)

LOGGERS: dict[str, schema.Spec] = {"jsonl": Section({"path": PATH}), "inmemory": Section()}
LOGGERS |= dict.fromkeys(
    ("in_memory_logger", "mlflow", "mosaicml", "tensorboard", "wandb"), MAPPING
)

LOADERS = ("sources", "mixture", "text", "finetuning", "contrastive_pairs")

VALIDATION = Section(
    {
        "label": TEXT,
        "corpus": TEXT,
        "source": TEXT,
        "written_with": TEXT,
        "held_out": FLAG,
        "root": TEXT,
        "remote": Optional(TEXT),
    },
    required=("label", "corpus", "source"),
)
EVAL_LOADER = Named(
    {"validation": VALIDATION, "text": MAPPING, "finetuning": MAPPING, "contrastive_pairs": MAPPING}
)


def _by_name(known: Mapping[str, schema.Spec], is_open: bool) -> Optional:
    return Optional(Section({k: Optional(spec) for k, spec in known.items()}, is_open=is_open))


def keys(*, is_open: bool) -> dict[str, schema.Spec]:
    """All keys of a yaml.

    Args:
        is_open: whether ``code_paths`` may add names of callbacks, loggers and algorithms.
    """
    return {
        # What is trained
        "model": MODEL,
        "tokenizer": Section(
            {
                "name": TEXT,
                "kwargs": Section({"model_max_length": integer(1)}, is_open=True),
            },
            required=("name",),
        ),
        "max_seq_len": integer(1),
        "train_loader": MAPPING,  # dept/config/options.py
        "global_train_batch_size": integer(1, 1_000_000),
        "device_train_microbatch_size": either(one_of("auto"), integer(1)),
        "train_subset_num_batches": either(one_of(-1), integer(1)),
        "accumulate_train_batch_on_tokens": FLAG,
        "spin_dataloaders": FLAG,
        # How
        "seed": integer(),
        "precision": one_of("fp32", "amp_fp16", "amp_bf16", "amp_fp8"),
        "optimizer": OPTIMIZER,
        "scheduler": SCHEDULER,
        "algorithms": _by_name(ALGORITHMS, is_open),
        "max_duration": either(time("ep", "ba", "sp", "tok", least=1), integer(1)),
        "compile_config": Optional(MAPPING),
        "fsdp_config": Optional(MAPPING),
        "tp_config": Optional(MAPPING),
        "dist_timeout": number(0, above=True),
        "max_split_size_mb": Optional(integer(1)),
        "expandable_segments": FLAG,
        "cuda_load_lazy": FLAG,
        "code_paths": Optional(ListOf(TEXT)),
        # Evaluation
        "eval_interval": either(INTERVAL, one_of(0)),
        "eval_first": FLAG,
        "eval_loader": Optional(schema.ANYTHING),  # a mapping or a list of them
        "eval_loaders": Optional(ListOf(EVAL_LOADER)),
        "eval_subset_num_batches": either(one_of(-1), integer(1)),
        "device_eval_batch_size": integer(1, 1_000_000),
        "icl_tasks": Optional(schema.Value("a yaml of tasks, or a list of them", _is_tasks)),
        "icl_tasks_str": Optional(TEXT),
        "icl_seq_len": Optional(integer(1)),
        "icl_subset_num_batches": Optional(either(one_of(-1), integer(1))),
        "eval_gauntlet": Optional(schema.Value("a yaml, or its content", _is_text_or_mapping)),
        "eval_gauntlet_str": Optional(TEXT),
        # Files and figures
        "run_name": NAME,
        "callbacks": _by_name(CALLBACKS, is_open),
        "loggers": _by_name(LOGGERS, is_open),
        "save_folder": Optional(PATH),
        "save_filename": Optional(TEXT),
        "save_latest_filename": Optional(TEXT),
        "save_interval": INTERVAL,
        "save_num_checkpoints_to_keep": either(one_of(-1), integer(1)),
        "save_overwrite": FLAG,
        "save_weights_only": FLAG,
        "save_ignore_keys": Optional(ListOf(TEXT)),
        "load_path": Optional(TEXT),
        "load_weights_only": FLAG,
        "load_strict_model_weights": FLAG,
        "load_ignore_keys": Optional(ListOf(TEXT)),
        "autoresume": FLAG,
        "only_hf_checkpoint": FLAG,
        "only_composer_checkpoint": FLAG,
        "progress_bar": FLAG,
        "log_to_console": FLAG,
        "console_log_interval": INTERVAL,
        "python_log_level": Optional(LEVEL),
        "log_config": FLAG,
        "metadata": Optional(MAPPING),
        "flatten_metadata": FLAG,
        "profiler": Optional(MAPPING),
        "variables": Optional(MAPPING),
    }


def _is_tasks(value: Any) -> bool:
    is_list = isinstance(value, list) and all(isinstance(task, Mapping) for task in value)
    return is_list or (isinstance(value, str) and bool(value))


def _is_text_or_mapping(value: Any) -> bool:
    return isinstance(value, (str, Mapping)) and bool(value)


REQUIRED = (
    "model",
    "tokenizer",
    "max_seq_len",
    "train_loader",
    "global_train_batch_size",
    "device_eval_batch_size",
    "optimizer",
    "scheduler",
    "max_duration",
    "run_name",
)


def check(config: Mapping[str, Any], *, whole: bool, any_name: bool = False) -> None:
    """Refuse keys that nothing knows, and values that they cannot have.

    Args:
        config: a resolved yaml, as plain containers.
        whole: whether it is an experiment on a prepared corpus, of which all is known. Of any other
            yaml of llm-foundry, names and types of the uppermost keys are.
        any_name: whether callbacks, loggers and algorithms may have names unknown here; they may,
            too, where ``code_paths`` are given.

    Raises:
        ConfigError: one sentence that names the key and the mend.
    """
    known = keys(is_open=any_name or bool(config.get("code_paths")))
    if not whole:
        known = {key: _outline(spec) for key, spec in known.items()}
    if not config.get("code_paths"):
        known["train_loader"] = Section({"name": one_of(*LOADERS)}, ("name",), is_open=True)
    schema.check("", Section(known, required=REQUIRED if whole else ()), config)


def _outline(spec: schema.Spec) -> schema.Spec:
    """What a value is, whatever is in it."""
    if isinstance(spec, Optional):
        return Optional(_outline(spec.spec))
    if isinstance(spec, ListOf):
        return ListOf(schema.ANYTHING)
    return spec if isinstance(spec, schema.Value) else MAPPING
