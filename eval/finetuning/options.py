"""The keys of a fine-tuning yaml: each with its meaning, its default and its check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dept.config.options import parse
from dept.config.schema import FLAG, NULL, Kind, integer, number, one_of
from dept.errors import ConfigError, is_number
from dept.evaluation.finetuning.layouts import LAYOUTS

SPLITS = ("train", "val", "test")

_PART = Kind("a number between 0 and 1", lambda v: is_number(v) and 0 < v < 1)
_SHARE = Kind("a number from 0 to below 1", lambda v: is_number(v) and 0 <= v < 1)


@dataclass(frozen=True)
class TaskOptions:
    """``task``: the task to fine-tune on."""

    name: str
    """Name of its column in the report, and part of the names of runs."""

    kind: str
    """How pieces of text become sequences: ``classification``, ``entailment``, ``similarity`` or
    ``choice`` (``eval/finetuning/layouts.py``)."""

    columns: Mapping[str, Any]
    """The column of each piece, and of ``label``. ``answers`` is one column that holds a list, or a
    list of columns."""

    labels: list[Any] | None = None
    """The classes, in the order of their numbers; a row has the name or the number. Without classes
    the label is a number, and the task is a regression."""

    def __post_init__(self) -> None:
        one_of(*LAYOUTS).check("task.kind", self.kind)
        layout = LAYOUTS[self.kind]
        wanted = [*layout.pieces, "label"]
        for name in self.columns:
            if name not in wanted:
                raise ConfigError(
                    f"task.columns has {name!r}: {self.kind} knows {', '.join(wanted)}"
                )
        for name in wanted:
            if name not in self.columns and name not in layout.optional:
                raise ConfigError(f"task.columns lacks {name}: say which column has it")
        if any(isinstance(label, bool) for label in self.labels or ()):
            raise ConfigError(
                f"task.labels is {self.labels}: yaml takes yes, no, on, off for truth; quote them"
            )
        if self.labels is not None and len(set(map(str, self.labels))) < max(2, len(self.labels)):
            raise ConfigError(f"task.labels is {self.labels}: write two or more different ones")
        if self.kind == "choice" and self.labels is None:
            raise ConfigError("task.labels is not set: write how the label names answers, in order")


@dataclass(frozen=True)
class DataOptions:
    """``data``: where rows come from."""

    train: str
    """Split of ``hub``, or a file: ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet``."""

    val: str | None = None
    """Split on which the best epoch is chosen; a part of ``train`` by default."""

    test: str | None = None
    """Split whose scores are reported; a part of ``train`` by default."""

    transfer: Mapping[str, str] = field(default_factory=dict)
    """Other tests by the name of a source: splits or files of the same task, in another language.
    They are read with the embedding and tokenizer of that source, or with the global embedding
    where that is the one that is fine-tuned."""

    val_fraction: float = 0.1
    """Share of ``train`` that is ``val``, drawn by a hash of the first piece of text."""

    test_fraction: float = 0.1
    """Share of ``train`` that is ``test``, drawn likewise."""

    hub: str | None = None
    """A data set of the Hugging Face hub, as ``nyu-mll/glue``; without it splits are files."""

    config: str | None = None
    """Second argument of ``datasets.load_dataset``."""

    revision: str | None = None
    """Commit or tag of the data set."""

    def __post_init__(self) -> None:
        for name, where in self.transfer.items():
            if not isinstance(where, str):
                raise ConfigError(f"data.transfer.{name} is {where!r}: name a file or a split")
            if name in (*SPLITS, "epoch", "batch"):  # keys beside it in the summary's history
                raise ConfigError(f"data.transfer has {name!r}: it takes the names of sources")
        for key in ("val_fraction", "test_fraction"):
            _PART.check(f"data.{key}", getattr(self, key))
        if self.drawn["val"] + self.drawn["test"] >= 1:
            raise ConfigError("data.val_fraction and data.test_fraction leave nothing to train on")

    @property
    def drawn(self) -> dict[str, float]:
        """Shares of ``train`` that are other splits."""
        return {
            "val": 0.0 if self.val else self.val_fraction,
            "test": 0.0 if self.test else self.test_fraction,
        }


@dataclass(frozen=True)
class OptimizerOptions:
    """``optimizer``: AdamW of torch.

    Attributes:
        betas: the two decay rates of AdamW's averages of the gradient and its square.
        eps: term that AdamW adds to the denominator.
    """

    lr: float = 6.25e-5
    """At the end of the warm-up; that of Radford et al. 2018, of 117M parameters."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.01
    """Weight decay of matrices; gains and biases have none."""

    def __post_init__(self) -> None:
        number().check("optimizer.lr", self.lr)
        number().check("optimizer.weight_decay", self.weight_decay)


@dataclass(frozen=True)
class FineTuneOptions:
    """A whole yaml.

    Attributes:
        max_duration: length of the training, in Composer's notation: ``3ep`` is 3 epochs.
    """

    checkpoint: str
    """A checkpoint, a folder of them (``runs/<run_name>/checkpoints``), a transformers directory,
    or a name on the hub."""

    task: Any
    """:class:`TaskOptions`"""

    data: Any
    """:class:`DataOptions`"""

    source: str | None = None
    """Which embedding and tokenizer of a checkpoint: a source, or ``global``."""

    root: str | None = None
    """Folder that holds ``data/`` and ``tokenizers/`` of the checkpoint's corpus, if not where the
    run had it."""

    init: str = "pretrained"
    """``pretrained``, or ``random``: the same architecture and tokenizer without pre-training."""

    run_name: str | None = None
    """By default that of the checkpoint's run, with source, task and seed."""

    seed: int = 17
    """Seed of new rows, the head, dropout, and the order of examples."""

    max_length: int | None = None
    """Tokens of a sequence; those of the model by default."""

    max_duration: str = "3ep"
    global_train_batch_size: int = 32
    """Examples, of all processes together."""

    device_train_microbatch_size: int | None = None
    """Examples in one forward pass of a process; all of its batch by default."""

    optimizer: Any = field(default_factory=dict)
    """:class:`OptimizerOptions`"""

    t_warmup: str = "0.002dur"
    """Linear warm-up, of Radford et al.; then linearly to 0 at the end."""

    clipping_threshold: float = 1.0
    """Norm that gradients are clipped to."""

    lm_coef: float = 0.5
    """Weight of the language model's loss on the same sequences, of Radford et al.; 0 for none."""

    dropout: float = 0.1
    """Dropout of the head's input, as in Radford et al."""

    embedding_dropout: float = 0.0
    """Dropout of the embedding, 0.1 in Radford et al., who also pre-trained with it."""

    frozen_embedding: bool = False
    """Embeddings of tokens and positions, and the head of the language model, stay as they were, so
    that those of other sources still fit the body. The rows of layouts are frozen too."""

    token_dropout: float = 0.0
    """Fraction of tokens that are hidden from the body, drawn for each batch: small bodies would
    otherwise memorise the examples."""

    precision: str = "fp32"
    """``amp_bf16`` on GPUs."""

    folder: str = "runs/{run_name}"
    """Folder of checkpoints, metrics and the summary."""

    save_interval: str = "1ep"
    """Checkpoints to resume from after a kill; the newest is kept."""

    def __post_init__(self) -> None:
        for name, cls in (
            ("task", TaskOptions),
            ("data", DataOptions),
            ("optimizer", OptimizerOptions),
        ):
            object.__setattr__(self, name, parse(cls, name, getattr(self, name)))
        checks = {
            "init": one_of("pretrained", "random"),
            "global_train_batch_size": integer(1),
            "device_train_microbatch_size": integer(1) | NULL,
            "max_length": integer(1) | NULL,
            "seed": integer(),
            "frozen_embedding": FLAG,
            "lm_coef": number(),
            "clipping_threshold": number(),
            **dict.fromkeys(("dropout", "embedding_dropout", "token_dropout"), _SHARE),
        }
        for key, kind in checks.items():
            kind.check(key, getattr(self, key))


def read_options(config: Mapping[str, Any]) -> FineTuneOptions:
    """The options of a resolved yaml.

    Raises:
        ConfigError: a key is unknown or missing, or a value is not allowed.
    """
    free = {key: value for key, value in config.items() if key != "variables"}
    return parse(FineTuneOptions, "the yaml", free)
