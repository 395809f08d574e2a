"""What bench/gpu.py records: facts about the machine, and what runs left in their folders.

python bench/gpu_record.py FACTS.json
"""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from statistics import median

import yaml

PACKAGES = "torch triton numpy transformers mosaicml llm-foundry mosaicml-streaming flash-attn"
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
"""Dense bfloat16 FLOP/s of a card by a part of its name, as its maker states them."""

HIDES = """
import os, torch
torch.cuda.is_available(), torch.cuda.device_count()
os.environ["CUDA_VISIBLE_DEVICES"] = ""
try:
    torch.zeros(1, device="cuda")
except Exception:
    print("hidden")
"""


def main(arguments: list[str]) -> int:
    """Write facts; those that fail are recorded with their error."""
    import torch

    facts: dict = {"python": platform.python_version(), "packages": {}}
    for name in PACKAGES.split():
        try:
            facts["packages"][name] = version(name)
        except PackageNotFoundError:
            facts["packages"][name] = None
    facts["cores"] = len(os.sched_getaffinity(0))
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["card"] = torch.cuda.get_device_name()
        facts["memory_bytes"] = properties.total_memory
        facts["cuda"] = torch.version.cuda
        facts["bfloat16"] = torch.cuda.is_bf16_supported()
        # Workers count GPUs, and only then choose theirs: dept/transport/devices.py.
        environment = os.environ | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        said = subprocess.run(
            [sys.executable, "-c", HIDES], env=environment, capture_output=True, text=True
        ).stdout
        facts["a_gpu_can_be_hidden_after_counting"] = "hidden" in said
        facts["nccl"] = attempt(nccl)
    else:
        facts["card"] = "cpu"
    Path(arguments[0]).write_text(json.dumps(facts, indent=1) + "\n")
    return 0


def attempt(function) -> str:
    """The result of a function, or its error."""
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def nccl() -> str:
    """The calls that workers make (dept/transport/process_group.py), by one of them."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    wait = timedelta(seconds=30)
    group = dist.ProcessGroupNCCL(dist.HashStore(), 0, 1, wait)
    sent = torch.arange(4.0, device="cuda")
    received = torch.empty_like(sent)
    group.alltoall_base(received, sent, [4], [4], dist.AllToAllOptions()).wait()
    options = dist.BroadcastOptions()
    options.rootRank = 0
    group.broadcast([received], options).wait()
    return f"{torch.cuda.nccl.version()}, right: {bool((received == sent).all())}"


def of_run(folder: Path) -> dict:
    """Speed, memory and times of a finished run.

    Args:
        folder: the folder of the run.
    """
    summary = json.loads((folder / "summary.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timing, rounds = summary["timing"], max(summary["rounds"], 1)
    ends = [line["time/train"] for line in lines if "time/train" in line]
    seconds = median([b - a for a, b in pairwise(ends)]) if len(ends) > 2 else None
    tokens = summary["tokens"] / max(summary["steps"], 1)
    slots = sum(source.get("rounds_trained", 0) for source in summary["sources"].values())
    sizes = [
        line["trainer/device_train_microbatch_size"]
        for line in lines
        if "trainer/device_train_microbatch_size" in line
    ]
    model = config["model"]
    return {
        "loss": summary["average"] and summary["average"]["loss"],
        "precision": config["precision"],
        "attention": (model.get("attn_config") or {}).get("attn_impl")
        or model.get("attn_implementation"),
        "loss_fn": model.get("loss_fn"),
        "microbatch": sizes[-1] if sizes else None,
        "rounds": summary["rounds"],
        "steps": summary["steps"],
        "tokens_per_second": timing["tokens_per_second"],
        "tokens_per_second_of_median_step": seconds and tokens / seconds,
        "median_step_ms": seconds and 1000 * seconds,
        "swap_ms_per_slot": 1000 * timing["swap_seconds"] / slots if slots else None,
        "outer_step_ms": 1000 * timing["outer_step_seconds"] / rounds if slots else None,
        "peak_memory_bytes": summary["peak_memory_bytes"],
        "flops_per_token": flops_per_token(model, config["max_seq_len"]),
    }


def flops_per_token(model: dict, length: int) -> float | None:
    """Of a step of an MPT without recomputation: 6 for each parameter of body and head, and 12 x
    layers x width x length for attention, as PaLM counts (Chowdhery et al. 2022, appendix B).

    Args:
        model: the section ``model``, with its vocabulary.
        length: tokens of a sample.
    """
    if model["name"] != "mpt_causal_lm":
        return None
    width, layers = model["d_model"], model["n_layers"]
    body = layers * width**2 * (4 + 2 * model.get("expansion_ratio", 4))
    return 6 * (body + width * model["vocab_size"]) + 12 * layers * width * length


def with_utilisation(runs: dict[str, dict], card: str) -> dict[str, dict]:
    """The same, with model FLOPs utilisation of the median step if the peak of the card is known.

    Args:
        runs: results of :func:`of_run` by name.
        card: name of the card.
    """
    peak = next((PEAKS[name] for name in PEAKS if name in card), None)
    for run in runs.values():
        speed, flops = run["tokens_per_second_of_median_step"], run["flops_per_token"]
        run["mfu"] = speed * flops / peak if peak and speed and flops else None
    return runs


def difference(one: Path, other: Path) -> float | None:
    """The greatest difference between the losses of two runs on a source; ``None`` without both.

    Args:
        one: folder of a run.
        other: folder of another one.
    """
    try:
        losses = [
            {n: s["eval"]["loss"] for n, s in json.loads(p.read_text())["sources"].items()}
            for p in (one / "summary.json", other / "summary.json")
        ]
    except FileNotFoundError:
        return None
    return max(abs(losses[0][name] - losses[1][name]) for name in losses[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
