"""The top-level keys of a yaml, and the values below them that are most often mistyped.

llm-foundry and its constructors judge all other keys of a section, half a minute later;
``dept/training/registered.py`` and ``dept/training/build_errors.py`` report their errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dept.config import registries, schema
from dept.config.schema import FLAG, MAPPING, NULL, PATH, TEXT, Kind, integer, list_of, number
from dept.errors import ConfigError

COUNT = integer(1)
WIDTH = integer(1, 1_000_000)  # of a model or its layers; a larger value is a typing error
ROWS = integer(1, 100_000_000)
UNITS = ("ep", "ba", "sp", "tok")
INTERVAL = schema.time(*UNITS, "dur", least=1) | COUNT
BATCHES = COUNT | schema.one_of(-1)
ANYTHING = Kind("anything", lambda v: True)
BETAS = Kind(
    "two numbers of 0 or more and below 1",
    lambda v: list_of(number(0, 1 - 1e-12)).fits(v) and len(v) == 2,
)


def _each(kind: Kind, keys: str) -> dict[str, Kind]:
    return dict.fromkeys(keys.split(), kind)


# Some are read only after the warm-up.
SCHEDULER = {
    **_each(schema.time(*UNITS, "dur"), "t_warmup t_scale t_cooldown"),
    **_each(number(0, 1e6), "alpha alpha_i alpha_f alpha_f_decay alpha_f_cooldown"),
    "scale_warmup": FLAG,
}


REQUIRED = {
    **_each(MAPPING, "model tokenizer train_loader optimizer scheduler"),
    **_each(integer(1, 1_000_000), "global_train_batch_size device_eval_batch_size"),
    "max_seq_len": COUNT,
    "max_duration": schema.time(*UNITS, least=1) | COUNT,
    "run_name": TEXT | integer(),
}
KEYS = REQUIRED | {
    **_each(MAPPING | NULL, "algorithms callbacks loggers variables metadata compile_config"),
    **_each(MAPPING | NULL, "fsdp_config tp_config profiler"),
    **_each(FLAG, "accumulate_train_batch_on_tokens spin_dataloaders expandable_segments"),
    **_each(FLAG, "cuda_load_lazy eval_first save_overwrite save_weights_only load_weights_only"),
    **_each(FLAG, "load_strict_model_weights autoresume only_hf_checkpoint progress_bar"),
    **_each(FLAG, "only_composer_checkpoint log_to_console log_config flatten_metadata"),
    **_each(COUNT | NULL, "icl_seq_len max_split_size_mb"),
    **_each(BATCHES, "train_subset_num_batches eval_subset_num_batches"),
    **_each(INTERVAL, "save_interval console_log_interval"),
    **_each(TEXT | NULL, "save_filename save_latest_filename load_path"),
    **_each(TEXT | NULL, "icl_tasks_str eval_gauntlet_str"),
    **_each(list_of(TEXT) | NULL, "save_ignore_keys load_ignore_keys"),
    "code_paths": list_of(TEXT),
    "device_train_microbatch_size": COUNT | schema.one_of("auto"),
    "dist_timeout": number(above=True),
    "eval_gauntlet": TEXT | MAPPING | NULL,
    "eval_interval": INTERVAL | schema.one_of(0),
    "eval_loader": MAPPING | list_of(MAPPING) | NULL,
    "eval_loaders": list_of(MAPPING) | NULL,
    "icl_subset_num_batches": BATCHES | NULL,
    "icl_tasks": TEXT | list_of(MAPPING) | NULL,
    "precision": schema.one_of("auto", "fp32", "amp_fp16", "amp_bf16", "amp_fp8"),
    "python_log_level": NULL | schema.one_of("debug", "info", "warning", "error", "critical"),
    "save_folder": PATH | NULL,
    "save_num_checkpoints_to_keep": BATCHES,
    "seed": integer(),
}
VALUES = {
    "tokenizer.name": TEXT,
    "tokenizer.kwargs": MAPPING,
    "tokenizer.kwargs.model_max_length": COUNT,
    "optimizer.lr": number(0, 1e4, above=True),
    "optimizer.betas": BETAS,
    **_each(number(0, 1e3), "optimizer.eps optimizer.weight_decay optimizer.momentum"),
    **{
        f"{above}scheduler.{key}": kind
        for above in ("", "callbacks.active_forgetting.")
        for key, kind in SCHEDULER.items()
    },
    "algorithms.dept.outer_optimizer.lr": number(0, 1e4),
    "algorithms.gradient_clipping.clipping_threshold": number(above=True),
    "algorithms.gradient_clipping.clipping_type": schema.one_of("norm", "value", "adaptive"),
    **_each(COUNT, "callbacks.active_forgetting.every callbacks.norms.interval"),
    "callbacks.source_metrics.held_out_interval": INTERVAL | NULL,
    "callbacks.frozen_start.names": list_of(TEXT),
    "callbacks.frozen_start.until": schema.time(*UNITS),
    **_each(PATH, "callbacks.run_files.folder callbacks.best_checkpoint.folder loggers.jsonl.path"),
}
# An MPT silently accepts any key and many wrong values; a test compares these keys with its own.
MPT = {
    **_each(WIDTH, "d_model n_heads n_layers"),
    **_each(WIDTH | NULL, "head_dim attn_config.kv_n_heads attn_config.kv_dim"),
    **_each(WIDTH | NULL, "ffn_config.ffn_hidden_size"),
    **_each(MAPPING, "attn_config ffn_config init_config"),
    **_each(TEXT, "norm_type attn_config.attn_type attn_config.attn_impl attn_config.norm_type"),
    **_each(TEXT, "ffn_config.ffn_type init_config.name loss_fn"),
    **_each(FLAG, "no_bias learned_pos_emb tie_word_embeddings use_train_metrics use_cache"),
    **_each(FLAG, "attn_config.alibi attn_config.rope attn_config.qk_ln attn_config.qk_gn"),
    **_each(number(0, 1e3) | NULL, "init_config.emb_init_std init_config.init_std"),
    **_each(ANYTHING, "name resid_pdrop emb_pdrop init_device logit_scale attention_bias"),
    **_each(ANYTHING, "embedding_fraction norm_eps fc_type use_pad_tok_in_ffn block_overrides"),
    **_each(ANYTHING, "final_logit_softcapping additional_train_metrics master_weights_dtype"),
    **_each(ANYTHING, "init_config.fan_mode init_config.init_nonlinearity init_config.init_gain"),
    **_each(ANYTHING, "init_config.init_div_is_residual init_config.emb_init_uniform_lim"),
    "expansion_ratio": number(0, 1000, above=True),
    "max_seq_len": COUNT,
    "vocab_size": ROWS,
}
TRANSFORMERS = {
    "pretrained_model_name_or_path": TEXT,
    "config_overrides": MAPPING | NULL,
    "config_overrides.vocab_size": ROWS,
    **_each(FLAG, "pretrained trust_remote_code use_train_metrics"),
}


def check(config: Mapping[str, Any], *, whole: bool, any_name: bool = False) -> None:
    """Refuse unknown keys and names, and values that are not allowed.

    Args:
        config: a resolved yaml, as plain containers.
        whole: whether it is an experiment on a prepared corpus, which must have all sections.
        any_name: whether unknown names are accepted, since a program may have registered them.

    Raises:
        ConfigError: one sentence that names the key and the fix.
    """
    schema.refuse_unknown("the yaml", config, KEYS)
    for key in REQUIRED if whole else ():
        if key not in config:
            raise ConfigError(f"the yaml lacks {key}: add it")
    _check_values("", config, KEYS | VALUES)
    schema.refuse_unknown("tokenizer", config.get("tokenizer", {}), ("name", "kwargs"))
    if not any_name:
        registries.check(config)
    model = config.get("model", {})
    if model.get("name") == "hf_causal_lm":
        _check_values("model.", model, TRANSFORMERS)
    if model.get("name") == "mpt_causal_lm":
        _check_values("model.", model, MPT)
        schema.refuse_unknown("model", model, [key for key in MPT if "." not in key])
        known = [key.removeprefix("init_config.") for key in MPT if key.startswith("init_config.")]
        schema.refuse_unknown("model.init_config", model.get("init_config", {}), known)


def _check_values(above: str, section: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Check the values that are present, below the key ``above``."""
    for key, kind in sorted(kinds.items(), key=lambda item: item[0].count(".")):
        *names, last = key.split(".")
        found: Any = section
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping) and last in found:
            kind.check(above + key, found[last])
