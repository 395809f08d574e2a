"""The README of an exported model: its origin, its use and its limits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dept.data.corpus import GLOBAL
from dept.training.summary import read_summary

if TYPE_CHECKING:
    from dept.evaluation.models.source_models import SourceModel, TrainedRun

_SHOWN = {
    "loss": "nats per token",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "unigram_ce": "unigram cross-entropy, nats per token",
}


def model_card(run: TrainedRun, source: SourceModel, weights: Path, *, remote_code: bool) -> str:
    """Markdown, with the header that the Hugging Face hub reads.

    Args:
        run: the run of the model.
        source: the model.
        weights: its file, as written.
        remote_code: whether the directory has code that loading must run.
    """
    named = str(run.config.get("run_name") or run.trained.path.stem)
    remote = ", trust_remote_code=True" if remote_code else ""
    facts = _facts(run, source, weights)
    scores = _scores(run, source)
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "tags: [dept]",
            "---",
            f"# {named}, {source.name}",
            "",
            _summary(run, source),
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"model = AutoModelForCausalLM.from_pretrained(folder{remote})  # this one",
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            'inputs = tokenizer(tokenizer.bos_token + "Some text", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs)[0]))",
            "```",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in facts.items()),
            "",
            *scores,
            "## What it is not",
            "",
            *(f"* {line}" for line in _limits(source, remote_code)),
            "",
        ]
    )


def _summary(run: TrainedRun, source: SourceModel) -> str:
    if run.trained.variant is None:
        return "A causal language model, pre-trained on a mixture of sources."
    whose = (
        "the embedding that all sources share"
        if source.name == GLOBAL
        else f"the embedding and the tokenizer of source `{source.name}`"
    )
    return (
        "A causal language model, pre-trained with DEPT (Decoupled Embeddings for Pre-Training, "
        f"arXiv 2410.05021): one body trained over many sources, with {whose}."
    )


def _facts(run: TrainedRun, source: SourceModel, weights: Path) -> dict[str, str]:
    trained, config, summary = run.trained, run.config, _summary_of(run)
    method = (config.get("variables") or {}).get("method")
    options = (config.get("algorithms") or {}).get("dept") or {}
    sources = list(trained.identity["sources"]) if trained.identity else list(summary["sources"])
    total = sum(trained.tokens_trained.values()) or summary["tokens"]
    rows = source.model.get_input_embeddings().weight.shape[0]
    facts = {
        "run": config.get("run_name"),
        "variant": trained.variant,
        "method": method,
        "seed": config.get("seed"),
        "sources": ", ".join(sources),
        "rounds": trained.round,
        "local steps": options.get("local_steps"),
        "tokens the body was trained on": total and f"{total:,}",
        f"tokens of {source.name}": _counted(trained.tokens_trained.get(source.name)),
        "parameters": f"{source.parameters:,}, of which {_embedding(source):,} embedding",
        "architecture": _architecture(run, source),
        "sequence length": source.max_length,
        "tokenizer": f"{_kind(source)}, {len(source.tokenizer):,} tokens",
        "rows of the embedding": f"{rows:,}",
        "checkpoint": trained.path.name,
        "sha256 of the checkpoint": f"`{_sha256(trained.path)}`",
        "sha256 of model.safetensors": f"`{_sha256(weights)}`" if weights.is_file() else None,
    }
    return {key: str(value) for key, value in facts.items() if value not in (None, "", 0)}


def _architecture(run: TrainedRun, source: SourceModel) -> str:
    name = type(source.model).__name__
    return (
        f"{name}, trained as llm-foundry's MPT"
        if run.trained.model_config["model_type"] == "mpt"
        else name
    )


def _counted(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"


def _embedding(source: SourceModel) -> int:
    head = source.model.get_output_embeddings()
    matrices = {
        id(module.weight): module.weight.numel()
        for module in (source.model.get_input_embeddings(), head)
        if hasattr(module, "weight")
    }
    return sum(matrices.values())


def _kind(source: SourceModel) -> str:
    kind = type(source.tokenizer.backend_tokenizer.model).__name__
    if source.prepared is None or source.prepared.tokenizer == GLOBAL:
        whole = source.prepared is None or len(source.tokenizer) == source.prepared.vocab_size
        return f"{kind}, of all sources" if whole else f"{kind} of all sources, trimmed to this one"
    return f"{kind}, of this source alone"


def _summary_of(run: TrainedRun) -> Mapping[str, Any]:
    """The summary of the run; empty for an earlier checkpoint than its last."""
    empty: Mapping[str, Any] = {"sources": {}, "held_out": {}, "tokens": 0}
    summary = read_summary(run.folder / "summary.json")
    if summary and run.trained.shared is not None:  # a server knows what silos report
        whole = {name: found for name, found in summary["sources"].items() if "loss" in found}
        summary |= empty | {"sources": {name: {"eval": found} for name, found in whole.items()}}
    return summary if summary and summary["rounds"] == run.trained.round else empty


def _scores(run: TrainedRun, source: SourceModel) -> list[str]:
    summary = _summary_of(run)
    every = {**summary["sources"], **summary["held_out"]}
    shown = [name for name in every if source.name in (GLOBAL, name)]
    if not shown:
        return []
    lines = ["## Validation, at the end of training", ""]
    lines += [f"| | {' | '.join(_SHOWN.values())} |", f"|---{'|---:' * len(_SHOWN)}|"]
    for name in shown:
        found = every[name]["eval"]
        cells = (f"{found[key]:.3f}" if key in found else "" for key in _SHOWN)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _limits(source: SourceModel, remote_code: bool) -> list[str]:
    lines = [
        "It is no assistant, and follows no instructions: it was only pre-trained.",
        "Nobody has checked what it writes for truth, bias or harm.",
        f"It reads at most {source.max_length} tokens; its text began after "
        f"`{source.tokenizer.eos_token}`.",
    ]
    if source.name != GLOBAL:
        lines.append(
            f"It knows the text of `{source.name}`. Other text is spelled in its tokens, or is "
            f"unknown to it."
        )
    if source.untrained_ids:
        lines.append(
            f"The last {len(source.untrained_ids):,} tokens were never trained. The tokenizer "
            f"needs them to spell any text; generation leaves them out."
        )
    if remote_code:
        lines.append(
            "The Python files are llm-foundry's (Apache License 2.0), as its own export writes "
            "them, for transformers 4; they need `catalogue`, `einops` and `tabulate`. Loading "
            "runs them: read them if you do not trust where this is from."
        )
    return lines


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
