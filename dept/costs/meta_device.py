"""Count the parameters of any model by building it on the meta device, without values.

Importing this module imports llm-foundry, which takes half a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from composer.models import ComposerModel
from llmfoundry.models.utils import init_empty_weights
from llmfoundry.utils.builders import build_composer_model

from dept.costs.parameters import Parameters
from dept.method.live_model import parameter_roles, transformer_of, vocabulary_modules
from dept.method.variants import Role


def built_parameters(model: Mapping[str, Any], rows: int) -> Parameters:
    """The parameters of the model of a yaml.

    Args:
        model: the section ``model``.
        rows: size of the vocabulary, if the section has none.
    """
    built = build(model, rows)
    numbers = dict.fromkeys(Role, 0)
    for name, role in parameter_roles(built).items():
        numbers[role] += built.get_parameter(name).numel()
    held = vocabulary_modules(built)[0].weight.shape[0]
    return Parameters(numbers[Role.BODY], numbers[Role.TOKENS] // held, numbers[Role.POSITIONS])


def build(model: Mapping[str, Any], rows: int) -> ComposerModel:
    """Build the model of a yaml with llm-foundry's registry, on the meta device.

    Attention and loss are torch's, with the same parameters.

    Args:
        model: the section ``model``.
        rows: the vocabulary, if the section does not say.
    """
    options = {**model, "init_device": "meta"}
    name = options.pop("name")
    if name.startswith("hf_"):
        options["config_overrides"] = {"vocab_size": rows} | (model.get("config_overrides") or {})
        options |= {"use_flash_attention_2": False, "attn_implementation": None}
    else:
        options.setdefault("vocab_size", rows)
        options["attn_config"] = {**(model.get("attn_config") or {}), "attn_impl": "torch"}
        options["loss_fn"] = "torch_crossentropy"
    built = build_composer_model(name, options, tokenizer=None, init_context=init_empty_weights())
    # The context gives every module that shares a tied matrix a separate copy.
    transformer_of(built).tie_weights()
    return built
