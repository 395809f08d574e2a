"""A whole MPT with `attn_impl: fused`, beside llm-foundry's own `torch`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.end_to_end
SIZES = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 12, "vocab_size": 50}


@pytest.fixture(scope="module")
def build():
    import run_imports  # noqa: F401
    from llmfoundry.utils.builders import build_composer_model

    from dept.training import registration

    registration.register()

    def both(**attention):
        models = []
        for implementation in ("torch", "fused"):
            torch.manual_seed(0)
            given = {"attn_impl": implementation, "alibi": True, **attention}
            options = {**SIZES, "attn_config": given, "loss_fn": "torch_crossentropy"}
            models.append(build_composer_model("mpt_causal_lm", options, tokenizer=None))
        return models

    return both


def batch(**more):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (3, 10), generator=generator)
    return {"input_ids": ids, "labels": ids.clone(), **more}


PRESENT = torch.arange(10) < torch.tensor([[10], [7], [4]])
SEQUENCES = (torch.arange(10) >= torch.tensor([[10], [5], [3]])).long()


@pytest.mark.parametrize(
    ("attention", "more"),
    [
        ({}, {}),
        ({}, {"attention_mask": PRESENT}),
        ({"alibi": False}, {"attention_mask": PRESENT}),
        ({"attn_type": "grouped_query_attention", "kv_n_heads": 2}, {}),
        ({"attn_type": "multiquery_attention"}, {"attention_mask": PRESENT}),
        ({"attn_uses_sequence_id": True}, {"sequence_id": SEQUENCES}),
    ],
)
def test_loss_and_gradients_are_those_of_torch(build, attention, more):
    losses, gradients = [], []
    for model in build(**attention):
        given = batch(**more)
        if "attention_mask" in more:
            given["labels"] = given["labels"].masked_fill(~PRESENT, -100)
        loss = model.loss(model(given), given)
        loss = loss["total"] if isinstance(loss, dict) else loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-5)


def test_only_fused_is_fused_and_its_config_runs_anywhere(build):
    from llmfoundry.models.layers.attention import scaled_multihead_dot_product_attention

    from dept.method.fused_attention import fused_attention

    plain, fused = build()
    used = [{block.attn.attn_fn for block in m.model.transformer.blocks} for m in (plain, fused)]
    assert used == [{scaled_multihead_dot_product_attention}, {fused_attention}]
    assert fused.model.config.attn_config["attn_impl"] == "torch"


def test_generation_with_padding_on_the_left_is_the_same(build):
    ids = batch()["input_ids"][:, :6]
    present = torch.arange(6) >= torch.tensor([[0], [2], [4]])
    outs = []
    for model in build():
        model.eval()
        steps, cache, mask, token = [], None, present, ids
        with torch.no_grad():
            for _ in range(4):
                out = model.model(
                    input_ids=token, attention_mask=mask, past_key_values=cache, use_cache=True
                )
                steps.append(out.logits[:, -1])
                cache = out.past_key_values
                token = out.logits[:, -1:].argmax(-1)
                mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.bool)], 1)
        outs.append(torch.stack(steps))
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-4, atol=1e-5)


WITHOUT = """
import sys
class Without:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, *more):
        is_hidden = name.split(".")[0] in ("mlflow", "mcli")
        return None if is_hidden else self.finder.find_spec(name, *more)
    def __getattr__(self, name): return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from dept.checkpoint.library_patches import stand_in_for_missing
stand_in_for_missing()
import llmfoundry.command_utils
from dept.training import registration
registration.register()
print(type(sys.modules["mlflow"]).__name__, type(sys.modules["mcli"]).__name__)
"""


def test_training_is_imported_without_mlflow_and_mosaicml_cli():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        cwd=REPOSITORY,
        env={**os.environ, "USE_TF": "0"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["_StandIn", "_StandIn"], done.stderr[-3000:]
