"""Build the models of checkpoints with transformers, since importing llm-foundry is slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dept.errors import ConfigError
from dept.evaluation.models import mpt
from dept.method.live_model import parameter_roles
from dept.method.variants import Role

# Of a machine, or of a model on the hub that the run began with; a class named in `auto_map` is
# code of others, which would run when an export is loaded with remote code.
_NOT_ARCHITECTURE = ("_name_or_path", "auto_map", "torch_dtype", "transformers_version")


def assemble(
    config: Mapping[str, Any], parameters: Mapping[str, Tensor], *, native: bool = True
) -> PreTrainedModel:
    """A model with these parameters, in evaluation mode, in float32.

    Args:
        config: the model config of a checkpoint, of llm-foundry's MPT or any transformers model.
        parameters: parameters of the trained model, by name.
        native: prefer a model of transformers to llm-foundry's MPT if both are possible.

    Returns:
        A model of transformers if one computes the same, otherwise llm-foundry's.

    Raises:
        ConfigError: this machine or this version of transformers cannot build it, or the
            parameters are not those of such a model.
    """
    rows = len(next(parameters[name] for name in token_matrices(config) if name in parameters))
    content = {k: v for k, v in config.items() if k not in _NOT_ARCHITECTURE}
    content["vocab_size"] = rows
    try:
        model, values = _built(content, parameters, native)
        # A checkpoint holds a tied matrix under both names, or under the first of them.
        first = {id(parameter): name for name, parameter in model.named_parameters()}
        every = model.named_parameters(remove_duplicate=False)
        tied = [name for name, parameter in every if first[id(parameter)] != name]
        values = {name: value for name, value in values.items() if name not in tied}
        missing, unexpected = model.load_state_dict(values, strict=False)
    except (ImportError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"a {config['model_type']} with this config cannot be built here "
            f"({' '.join(str(error).split())}): choose a checkpoint of another model"
        ) from error
    missing = [key for key in missing if key not in tied]
    if missing or unexpected:
        raise ConfigError(
            f"the checkpoint does not fit its own model config: it lacks {missing} and has "
            f"{unexpected} beside"
        )
    model.tie_weights()
    return model


def token_matrices(config: Mapping[str, Any]) -> list[str]:
    """Names of the parameters with a row for each token; a tied one may be missing.

    Args:
        config: what a checkpoint holds.
    """
    if config["model_type"] == "mpt":
        roles = mpt.ROLES
    else:
        with torch.device("meta"):
            roles = parameter_roles(_of_transformers(dict(config)))
    return [name for name, role in roles.items() if role is Role.TOKENS]


def _built(
    content: dict[str, Any], parameters: Mapping[str, Tensor], native: bool
) -> tuple[PreTrainedModel, Mapping[str, Tensor]]:
    if content["model_type"] != "mpt":
        return _of_transformers(content), parameters
    other = mpt.stand_in(content) if native else None
    if other is None:
        return _of_llmfoundry(content), parameters
    config = other.config(content)
    config.vocab_size = content["vocab_size"]
    config.tie_word_embeddings = content.get("tie_word_embeddings", True)
    model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.float32).eval()
    shapes = {name: value.shape for name, value in model.named_parameters()}
    return model, other.values(parameters, shapes, content["n_heads"])


def _of_transformers(content: dict[str, Any]) -> PreTrainedModel:
    kept = {k: v for k, v in content.items() if k not in (*_NOT_ARCHITECTURE, "model_type")}
    config = AutoConfig.for_model(content["model_type"], **kept)
    return AutoModelForCausalLM.from_config(config, torch_dtype=torch.float32).eval()


def _of_llmfoundry(content: dict[str, Any]) -> PreTrainedModel:
    from llmfoundry.models.mpt import MPTConfig, MPTForCausalLM

    attention = {**content["attn_config"], "attn_impl": "torch"}  # not flash: it runs anywhere
    config = MPTConfig(**{**content, "attn_config": attention, "init_device": "cpu"})
    return MPTForCausalLM(config).eval()
