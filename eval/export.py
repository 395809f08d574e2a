"""Writes a trained model as a directory that transformers loads, with one source's tokenizer.

    python eval/export.py runs/multilingual-dept_spec-s17/checkpoints --source en --out exports/en
    python eval/export.py runs/multilingual-dept_trim-s17/checkpoints --all --out exports/trim
    python eval/export.py ... --source en --out exports/en --push-to owner/name

`AutoModelForCausalLM.from_pretrained` loads it with only transformers and torch installed, with
the logits of training. An MPT with ALiBi becomes transformers' MPT, one with learned positions a
GPT-2, one with rotary positions a GPT-NeoX. Any other MPT (grouped queries, gated layers) is
exported with llm-foundry's code. transformers 4 loads it with `trust_remote_code=True`, if
`catalogue`, `einops` and `tabulate` are installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dept.log import log

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from dept.evaluation.models.source_models import SourceModel, TrainedRun


def export(
    run: TrainedRun, parts: Mapping[str | None, str], folder: Path, *, remote_code: bool = False
) -> list[Path]:
    """Write models, either all of them or nothing.

    Args:
        run: the trained run.
        parts: embeddings, as :meth:`TrainedRun.model` accepts them, and the path of each below
            ``folder``: ``""`` is ``folder`` itself.
        folder: may exist if it is empty.
        remote_code: export llm-foundry's code even if a model of transformers is equivalent.

    Returns:
        The directories.

    Raises:
        ConfigError: ``folder`` is not empty, or there is no such embedding or code.
        DataError: the corpus of the run is missing.
    """
    from dept.errors import ConfigError

    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already, and not empty: choose another --out")
    if remote_code and run.trained.model_config["model_type"] != "mpt":
        raise ConfigError(f"{run.trained.path} is no MPT: leave --remote-code out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for name, part in parts.items():
            write(run, run.model(name, native=not remote_code), unfinished / part)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return [folder / part for part in parts.values()]


def write(run: TrainedRun, source: SourceModel, folder: Path) -> None:
    """Write one model, its tokenizer and its card into a new directory.

    Args:
        run: the trained run, for the card.
        source: the model with its tokenizer. Both change: the end-of-text token becomes the first
            token.
        folder: directory of the model.
    """
    from dept.evaluation.models.model_card import model_card

    model, tokenizer = source.model, source.tokenizer
    foreign = type(model).__module__.startswith("llmfoundry.")
    # Documents are separated by an end-of-text token, and no other token begins them.
    tokenizer.bos_token = tokenizer.eos_token
    model.config.bos_token_id = tokenizer.eos_token_id
    if foreign:
        _with_code(model, folder)
    else:
        model.save_pretrained(folder)
    generation_config(source).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card, weights = folder / "README.md", folder / "model.safetensors"
    card.write_text(model_card(run, source, weights, remote_code=foreign))
    for file in folder.glob("*.safetensors"):
        file.chmod(card.stat().st_mode)  # they are written for their owner alone


def generation_config(source: SourceModel) -> GenerationConfig:
    """The defaults of generation: within the trained length, without untrained tokens."""
    from transformers import GenerationConfig

    return GenerationConfig(
        bos_token_id=source.tokenizer.bos_token_id,
        eos_token_id=source.tokenizer.eos_token_id,
        pad_token_id=source.tokenizer.pad_token_id,
        max_length=source.max_length,
        suppress_tokens=list(source.untrained_ids) or None,
    )


def _with_code(model: PreTrainedModel, folder: Path) -> None:
    """Save a model of llm-foundry with the code that it needs, as llm-foundry itself does."""
    from llmfoundry.models.mpt import MPTConfig, MPTForCausalLM
    from llmfoundry.utils.huggingface_hub_utils import edit_files_for_hf_compatibility

    MPTConfig.register_for_auto_class()
    MPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    model.save_pretrained(folder)
    edit_files_for_hf_compatibility(str(folder))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from dept.errors import ConfigError, DataError
    from dept.evaluation.hub import push
    from dept.evaluation.models.source_models import TrainedRun

    try:
        run = TrainedRun(chosen.checkpoint, chosen.root)
        parts = {name: name for name in run.names} if chosen.all else {chosen.source: ""}
        repositories = _repositories(chosen.push_to, parts.values())
        written = export(run, parts, chosen.out, remote_code=chosen.remote_code)
        for folder in written:
            print(folder, flush=True)
        for folder, repository in zip(written, repositories, strict=False):
            print(push(folder, repository, private=chosen.private), flush=True)
    except (ConfigError, DataError, OSError) as error:
        log.error(f"error: {error}")
        return 2
    return 0


def _repositories(push_to: str | None, parts: Iterable[str]) -> list[str]:
    """The repository of each part, if any; bad names are refused before anything slow."""
    from dept.evaluation.hub import check_name

    if push_to is None:
        return []
    names = [f"{push_to}-{part}" if part else push_to for part in parts]
    for name in names:
        check_name(name)
    return names


def _parser() -> argparse.ArgumentParser:
    about, commands, _ = (__doc__ or "").split("\n\n", 2)
    parser = argparse.ArgumentParser(
        prog="python eval/export.py",
        description=f"{about}\n\n{commands}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="a file, or the newest one of a folder of checkpoints")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--source", help="whose embedding; `global`, or the only one, by default")
    which.add_argument("--all", action="store_true", help="every embedding, each in OUT/<name>")
    parser.add_argument("--out", type=Path, required=True, help="directory to write; new, or empty")
    parser.add_argument(
        "--remote-code",
        action="store_true",
        help="export llm-foundry's code for an MPT that does not need it (half a minute)",
    )
    parser.add_argument(
        "--push-to",
        metavar="OWNER/NAME",
        help="send it to the hub (HF_ENDPOINT, HF_TOKEN); with --all to OWNER/NAME-<embedding>",
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--root", help="folder of data/ and tokenizers/, if the run had another")
    return parser


if __name__ == "__main__":
    sys.exit(main())
