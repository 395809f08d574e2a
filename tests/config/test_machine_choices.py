"""What a yaml leaves to the machine, and what it does not."""

import pytest
from experiments import NAMES, resolved

from dept.config import extends
from dept.config.machine_choices import choices, line, put
from dept.transport.devices import Device

CPU = Device()
GPU = Device(gpu="H100", bf16=True)
FLASH = Device(gpu="H100", bf16=True, flash=True)
OLD = Device(gpu="V100")


def chosen(name, device, tmp_path, *overrides):
    config = extends.resolve(resolved(name, tmp_path, *overrides))
    return config, choices(config, device)


@pytest.mark.parametrize("name", [n for n in NAMES if "llama" not in n])
def test_every_experiment_of_mpt_runs_on_both(name, tmp_path):
    config, on_cpu = chosen(name, CPU, tmp_path)
    batch = config["global_train_batch_size"]
    # These are the values of the recorded results.
    assert on_cpu == {
        "precision": "fp32",
        "model.attn_config.attn_impl": "torch",
        "model.loss_fn": "torch_crossentropy",
        "device_train_microbatch_size": batch,
    }
    assert chosen(name, GPU, tmp_path)[1] == {
        "precision": "amp_bf16",
        "model.attn_config.attn_impl": "fused",
        "model.loss_fn": "torch_crossentropy",
        "device_train_microbatch_size": "auto",
    }
    flash = chosen(name, FLASH, tmp_path)[1]
    assert flash["model.attn_config.attn_impl"] == "flash"
    assert flash["model.loss_fn"] == "fused_crossentropy"


def test_a_model_of_transformers_has_names_of_its_own(tmp_path):
    assert "model.attn_implementation" not in chosen("dept_spec_llama", CPU, tmp_path)[1]
    for device, name in ((GPU, "sdpa"), (FLASH, "flash_attention_2")):
        found = chosen("dept_spec_llama", device, tmp_path)[1]
        assert found["model.attn_implementation"] == name and "model.loss_fn" not in found


def test_what_the_yaml_says_stays(tmp_path):
    given = ["precision=fp32", "model.attn_config.attn_impl=torch", "model.loss_fn=x"]
    given += ["device_train_microbatch_size=2"]
    assert chosen("dept_spec", GPU, tmp_path, *given)[1] == {}


def test_what_a_gpu_or_a_kernel_lacks_is_not_chosen(tmp_path):
    assert chosen("dept_spec", OLD, tmp_path)[1]["precision"] == "fp32"
    window = "model.attn_config.sliding_window_size=64"
    found = chosen("dept_spec", GPU, tmp_path, window)[1]
    assert found["model.attn_config.attn_impl"] == "torch"


def test_a_worker_of_several_ranks_has_a_part_of_the_batch(tmp_path):
    found = chosen("dept_spec", CPU, tmp_path, "algorithms.dept.ranks_per_worker=2")[1]
    assert found["device_train_microbatch_size"] == 2


def test_the_line_says_what_is_computed(tmp_path):
    config, found = chosen("dept_spec", GPU, tmp_path)
    assert line(put(config, found), GPU) == (
        "on H100: precision amp_bf16, attention fused, torch_crossentropy, micro-batch auto, "
        "1 thread"
    )
    assert choices(config, GPU) == {"device_train_microbatch_size": "auto"}  # nothing is left


def test_sections_that_are_missing_are_made():
    config = {"model": {"name": "mpt_causal_lm", "attn_config": None}, "global_train_batch_size": 1}
    put(config, choices(config, CPU))
    assert config["model"]["attn_config"] == {"attn_impl": "torch"}
