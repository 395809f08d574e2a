"""llm-foundry's MPT, with ``attn_impl: fused`` beside its own ``torch`` and ``flash``."""

from __future__ import annotations

from typing import Any

from llmfoundry.layers_registry import attention_implementations
from llmfoundry.models.layers.attention import GroupedQueryAttention
from llmfoundry.models.mpt import ComposerMPTCausalLM
from transformers import PreTrainedTokenizerBase

FUSED = "fused"


class MPTCausalLM(ComposerMPTCausalLM):
    """``model: {name: mpt_causal_lm, ...}``, which also takes ``attn_config.attn_impl: fused``.

    llm-foundry 0.22 has a registry of attention implementations, but its MPT refuses all names but
    ``torch`` and ``flash``. The masks and biases that it makes for ``torch`` are those that
    ``fused`` takes, so the model is built as ``torch``, and its layers then call the other
    function. Its config, which exports and checkpoints hold, says ``torch``: it runs anywhere.

    Args:
        tokenizer: the tokenizer of the yaml.
        options: the section ``model``, without its name.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None = None, **options: Any) -> None:
        attention = dict(options.get("attn_config") or {})
        fused = attention.get("attn_impl") == FUSED
        if fused:
            options["attn_config"] = attention | {"attn_impl": "torch"}
        super().__init__(tokenizer, **options)
        for module in self.modules() if fused else ():
            if isinstance(module, GroupedQueryAttention):  # the class of all three kinds
                module.attn_fn = attention_implementations.get(FUSED)
