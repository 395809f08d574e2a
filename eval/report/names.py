"""What methods and stages are called in tables and plots, in which order and colour."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """How a method is shown: the same in every table and plot."""

    label: str
    what: str
    """What it is, in a line."""
    colour: str
    dash: str | tuple[float, tuple[float, ...]]
    """matplotlib's line style; what is not solid is a baseline."""
    marker: str
    budget: str = ""
    """Of a baseline, what it has as much of as DEPT: ``tokens`` in all, or ``steps`` of the batch
    of one worker, as the baselines of the paper; ``both`` if it has both."""


BUDGETS = {
    "steps": "at equal steps and batch",
    "tokens": "at equal tokens",
}

# Okabe and Ito's colours, which colour-blind readers can tell apart, are kept for DEPT. Baselines
# are grey and dashed, and differ in dash and marker, since greys alone do not suffice.
METHODS = {
    "std_tau0": Method(
        "STD τ=0",
        "a mixture of all sources at every step, each as often as any other",
        "#1f1f1f",
        (0, (5, 1.5)),
        "o",
        "tokens",
    ),
    "std_tau03": Method(
        "STD τ=0.3",
        "the same, each source as often as its size to the power 0.3 says",
        "#474747",
        (0, (5, 1.5, 1, 1.5)),
        "s",
        "tokens",
    ),
    "std_tau1": Method(
        "STD τ=1",
        "the same, each source in proportion to its size",
        "#6e6e6e",
        (0, (1, 1.2)),
        "D",
        "tokens",
    ),
    "act": Method(
        "ACT",
        "active forgetting: STD whose token embedding is drawn again at intervals",
        "#a6a6a6",
        (0, (3, 1, 1, 1, 1, 1)),
        "X",
        "tokens",
    ),
    "std_steps": Method(
        "STD τ=0 (steps)",
        "STD with the batch of one worker: as many steps as DEPT, a part of its tokens",
        "#8f8f8f",
        (0, (8, 2)),
        "v",
        "steps",
    ),
    "std_steps_tau03": Method(
        "STD τ=0.3 (steps)",
        "the same for this temperature",
        "#8f8f8f",
        (0, (8, 2, 1, 2)),
        "1",
        "steps",
    ),
    "std_steps_tau1": Method(
        "STD τ=1 (steps)", "the same for this temperature", "#8f8f8f", (0, (2, 3)), "2", "steps"
    ),
    "act_steps": Method(
        "ACT (steps)",
        "ACT with the batch of one worker",
        "#a6a6a6",
        (0, (8, 3, 1, 3)),
        "3",
        "steps",
    ),
    "isolated": Method(
        "isolated",
        "a model for each source, with private embeddings and never averaged",
        "#bfbfbf",
        (0, (2, 2)),
        "P",
        "both",
    ),
    "glob": Method("GLOB", "one global embedding, averaged like the body", "#e69f00", "-", "^"),
    "trim": Method(
        "TRIM",
        "rows of the global embedding, averaged over the sources that hold the token",
        "#009e73",
        "-",
        "<",
    ),
    "spec": Method(
        "SPEC",
        "private embeddings over the tokens that occur in the source",
        "#0072b2",
        "-",
        ">",
    ),
    "spec_opt": Method(
        "SPEC-OPT",
        "private embeddings over the tokens of a tokenizer trained on the source",
        "#d55e00",
        "-",
        "*",
    ),
}

# A topic is a part of a corpus's report; stages of the comparison have one each.
TOPICS = {
    "overview": "Overview",
    "cpt_random": "Continued pre-training from random embeddings",
    "cpt_random_long": "Continued pre-training from random embeddings, more steps",
    "cpt_pretrained": "Continued pre-training from pre-trained embeddings",
    "cpt_merged": "Continued pre-training from merged embeddings",
    "pretrain": "Pre-training",
    "plasticity": "Plasticity",
    "plasticity_long": "Plasticity, more steps",
    "downstream": "Fine-tuning",
    "norms": "Stability",
    "communication": "Communication",
    "tuning": "Learning rates tried",
    "study": "Other settings",
    "setting": "Setting",
}
COMPARED = ("cpt_random", "cpt_random_long", "cpt_pretrained", "cpt_merged", "pretrain")
PLASTICITY = ("plasticity", "plasticity_long")

# Stages of one name differ in steps, which ``run_records.stage_name`` adds.
STAGES = {
    "tuning": "tuning",
    "pretrain": "pre-training",
    "cpt_random": "CPT, random",
    "cpt_random_long": "CPT, random",
    "cpt_pretrained": "CPT, pre-trained",
    "cpt_merged": "CPT, merged",
    "tuning_cpt": "tuning of CPT",
    "plasticity": "plasticity",
    "plasticity_long": "plasticity",
    "stability": "stability",
    "study": "study",
    "downstream": "fine-tuning",
}

# What the names of settings of `tuning_cpt` begin with, and the stage that has the rate in use.
STARTS = {"random": "cpt_random", "pretrained": "cpt_pretrained", "merged": "cpt_merged"}

METRICS = {"perplexity": "perplexity", "bits_per_byte": "bits per byte"}


def metric_of(stage: str) -> str:
    """What methods are compared by: perplexity only where all read one tokenizer."""
    return "bits_per_byte" if stage in ("pretrain", "tuning", "study") else "perplexity"


def label(method: str) -> str:
    return METHODS[method].label


def order(method: str) -> int:
    """The place of a method: baselines first, then DEPT from the most to the least shared."""
    return list(METHODS).index(method)
