"""Continue a prompt with the tokenizer and embedding of the source that fits it best:

    python eval/generate.py CHECKPOINT --prompt "Turn on the" [--route model] [--source en]
    echo "Turn on the" | python eval/generate.py CHECKPOINT --prompt - --temperature 0

prints the chosen source, its distance to the next one, and the text. eval/routing.py measures the
accuracy of the choice. A transformers directory, which has one embedding, works too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dept.data.corpus import GLOBAL
from dept.errors import ConfigError
from dept.evaluation.scoring.routers import RULES, rank, router_of
from dept.log import log

if TYPE_CHECKING:
    from dept.evaluation.models.source_models import SourceModel, TrainedRun


@dataclass(frozen=True)
class Sampling:
    """Options of sampling, with the names of ``generate`` of transformers.

    Attributes:
        max_new_tokens: the most tokens to generate.
        top_p: draw among the most probable tokens whose probabilities sum to this, 0 to 1; 1: among
            all.
        seed: seed of the draws.
    """

    max_new_tokens: int = 100
    temperature: float = 0.8
    """0 takes the most probable token each time."""
    top_k: int = 0
    """Draw among so many; 0: among all."""
    top_p: float = 1.0
    seed: int = 17


def choose(
    run: TrainedRun, prompt: str, rule: str = RULES[0], device: str = "cpu"
) -> tuple[str, str]:
    """The embedding for a prompt.

    Args:
        run: the trained run.
        prompt: the text whose source is sought.
        rule: one of ``RULES``.
        device: device of torch.

    Returns:
        its name, and why it is that.

    Raises:
        ConfigError: the prompt is empty, so no source fits best.
    """
    if run.names == [GLOBAL]:
        return GLOBAL, "it has no other"
    if not prompt.strip():
        raise ConfigError("an empty --prompt is of no source: name one with --source")
    router = router_of(run, rule, device)
    bits = router.bits_per_byte([prompt])[:, 0].tolist()
    (name, best), *others = rank(dict(zip(router.names, bits, strict=True)))
    why = f"{rule} rule: {best:.3f} bits per byte"
    if others:
        why += f", next {others[0][0]} with {others[0][1]:.3f}"
    return name, why


def continuation(source: SourceModel, prompt: str, sampling: Sampling) -> str:
    """Continue a prompt up to the end of the text or ``max_new_tokens``.

    The prompt is the beginning of a document. A model has no positions beyond its context (MPT of
    transformers fails there, with ALiBi too), so when the context is full, its last half becomes
    the beginning of the next one. Tokens without text are never drawn: special ones except the end,
    tokens without a row in the source, and padding of the matrix.

    Args:
        source: the model with its tokenizer.
        prompt: may be empty, and longer than the context.
        sampling: how tokens are drawn.
    """
    import torch
    from transformers import GenerationConfig

    from dept.evaluation.models.source_models import context_length
    from dept.evaluation.scoring.scorer import CONTEXT, first_token
    from dept.evaluation.scoring.spelling import Speller

    tokenizer, context = source.tokenizer, context_length(source.model) or CONTEXT
    (spelled,) = Speller(tokenizer, source.untrained_ids).spell([prompt])
    ids, end = [first_token(tokenizer), *spelled.ids], tokenizer.eos_token_id
    if spelled.unknown_bytes:
        log.warning(f"{source.name} cannot read {spelled.unknown_bytes} bytes of it")
    chance = {
        "do_sample": sampling.temperature > 0,
        "temperature": sampling.temperature or None,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }
    options = chance if sampling.temperature > 0 else {"do_sample": False}
    torch.manual_seed(sampling.seed)
    begin, wanted = len(ids), len(ids) + sampling.max_new_tokens
    while len(ids) < wanted and (len(ids) == begin or ids[-1] != end):
        window = ids if len(ids) < context else ids[-max(context // 2, 1) :]
        config = GenerationConfig(
            max_new_tokens=min(wanted - len(ids), context - len(window)),
            use_cache=True,
            suppress_tokens=never_drawn(source),
            eos_token_id=end,
            pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            **options,
        )
        given = torch.tensor([window], device=source.model.device)
        mask = torch.ones_like(given)
        out = source.model.generate(
            given, attention_mask=mask, generation_config=config, use_model_defaults=False
        )
        ids += out[0, len(window) :].tolist()
    how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before, whole = tokenizer.decode(ids[1:begin], **how), tokenizer.decode(ids[1:], **how)
    # Some tokenizers drop the space that a text begins with: only after the prompt is it one.
    return (
        whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids[begin:], **how)
    )


def never_drawn(source: SourceModel) -> list[int]:
    """Ids that represent no text, ascending, without the end of a text."""
    tokenizer, rows = source.tokenizer, source.model.config.vocab_size
    special = {*tokenizer.all_special_ids, *source.untrained_ids, *range(len(tokenizer), rows)}
    return sorted(i for i in special - {tokenizer.eos_token_id} if i < rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the text; returns the exit status."""
    default = Sampling()
    parser = argparse.ArgumentParser(
        prog="python eval/generate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a file, runs/<run_name>/checkpoints, or of transformers")
    parser.add_argument("--prompt", required=True, help="-: from standard input")
    parser.add_argument(
        "--route",
        choices=RULES,
        default=RULES[0],
        help="choose the source by counts of its training tokens (the paper's rule), or by the "
        "loss of its model on the prompt",
    )
    parser.add_argument("--source", help="do not pick: a source, or global")
    parser.add_argument("--max-new-tokens", type=int, default=default.max_new_tokens, metavar="N")
    parser.add_argument(
        "--temperature", type=float, default=default.temperature, help="0: greedy (%(default)s)"
    )
    parser.add_argument("--top-k", type=int, default=default.top_k, help="0: all (%(default)s)")
    parser.add_argument("--top-p", type=float, default=default.top_p, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="(%(default)s)")
    parser.add_argument("--root", type=Path, help="where data/ and tokenizers/ are")
    parser.add_argument("--device", default="cpu", help="of torch (cpu)")
    options = parser.parse_args(arguments)
    if options.max_new_tokens < 1 or options.temperature < 0 or options.top_k < 0:
        parser.error("--max-new-tokens is 1 or more, --temperature and --top-k 0 or more")
    if not 0 < options.top_p <= 1:
        parser.error("--top-p is above 0 and at most 1")
    chosen = {key: getattr(options, key) for key in Sampling.__dataclass_fields__}
    prompt = sys.stdin.read().rstrip("\n") if options.prompt == "-" else options.prompt
    try:
        source, why = _model(options, prompt)
    except ValueError as error:
        log.error(error)
        return 2
    source.model.to(options.device)
    print(f"source: {source.name} ({why})\n")
    print(prompt + continuation(source, prompt, Sampling(**chosen)))
    return 0


def _model(options: argparse.Namespace, prompt: str) -> tuple[SourceModel, str]:
    from dept.evaluation.models.source_models import TrainedRun, is_checkpoint, load

    if not is_checkpoint(options.model):
        return load(options.model, options.source), "it has no other"
    run = TrainedRun(options.model, options.root)
    if options.source:
        return run.model(options.source), "as asked"
    name, why = choose(run, prompt, options.route, options.device)
    return run.model(name), why


if __name__ == "__main__":
    sys.exit(main())
