"""What the first run of a process imports and measures; it is here to be imported before a fork."""

from dept.imports import without_collection

with without_collection():
    import llmfoundry.command_utils  # noqa: F401
    from composer.utils.collect_env import get_cpu_model
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    import dept.training.command
    import dept.training.registration  # noqa: F401

    list(MODEL_FOR_CAUSAL_LM_MAPPING.values())  # imports them: Composer looks for a model among all
    get_cpu_model()  # which it keeps
