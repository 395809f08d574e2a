"""Names, order and colours of methods and stages in tables and plots."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """How a method is shown: the same in every table and plot.

    Attributes:
        label: name in tables and legends.
        colour: colour of matplotlib.
        marker: marker of matplotlib.
    """

    label: str
    budget: str
    """Of a baseline, what it has as much of as DEPT: ``tokens`` in all, or ``steps`` of the batch
    of one worker, as the baselines of the paper; ``both`` if it has both. Empty for DEPT."""

    colour: str
    dash: str | tuple[float, tuple[float, ...]]
    """matplotlib's line style; what is not solid is a baseline."""

    marker: str
    what: str
    """Description in one line."""


BUDGETS = {
    "steps": "at equal steps and batch",
    "tokens": "at equal tokens",
}

# Okabe and Ito's colours, which colour-blind readers can distinguish, are kept for DEPT. Baselines
# are grey and dashed, and differ in dash and marker, since greys alone do not suffice.
# fmt: off
METHODS = {
    "std_tau0": Method("STD τ=0", "tokens", "#1f1f1f", (0, (5, 1.5)), "o",
        "a mixture of all sources at every step, each as often as any other"),
    "std_tau03": Method("STD τ=0.3", "tokens", "#474747", (0, (5, 1.5, 1, 1.5)), "s",
        "the same, each source as often as its size to the power 0.3 says"),
    "std_tau1": Method("STD τ=1", "tokens", "#6e6e6e", (0, (1, 1.2)), "D",
        "the same, each source in proportion to its size"),
    "act": Method("ACT", "tokens", "#a6a6a6", (0, (3, 1, 1, 1, 1, 1)), "X",
        "active forgetting: STD whose token embedding is drawn again at intervals"),
    "std_steps": Method("STD τ=0 (steps)", "steps", "#8f8f8f", (0, (8, 2)), "v",
        "STD with the batch of one worker: as many steps as DEPT, a part of its tokens"),
    "std_steps_tau03": Method("STD τ=0.3 (steps)", "steps", "#8f8f8f", (0, (8, 2, 1, 2)), "1",
        "the same for this temperature"),
    "std_steps_tau1": Method("STD τ=1 (steps)", "steps", "#8f8f8f", (0, (2, 3)), "2",
        "the same for this temperature"),
    "act_steps": Method("ACT (steps)", "steps", "#a6a6a6", (0, (8, 3, 1, 3)), "3",
        "ACT with the batch of one worker"),
    "isolated": Method("isolated", "both", "#bfbfbf", (0, (2, 2)), "P",
        "a model for each source, with private embeddings and never averaged"),
    "glob": Method("GLOB", "", "#e69f00", "-", "^",
        "one global embedding, averaged like the body"),
    "trim": Method("TRIM", "", "#009e73", "-", "<",
        "rows of the global embedding, averaged over the sources that hold the token"),
    "spec": Method("SPEC", "", "#0072b2", "-", ">",
        "private embeddings over the tokens that occur in the source"),
    "spec_opt": Method("SPEC-OPT", "", "#d55e00", "-", "*",
        "private embeddings over the tokens of a tokenizer trained on the source"),
}
# fmt: on

# A topic is a part of a corpus's report; stages of the comparison have one each.
TOPICS = {
    "help": "Does it help me?",
    "cost": "What does it cost?",
    "set": "What must I set?",
    "overview": "Overview",
    "domains_and_languages": "Domain times language",
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
    "compression": "Compression",
    "inner_state": "Inner state",
    "rounds": "Rounds against local steps",
    "worker_batch": "Batch of a worker",
    "outer": "Outer optimizer",
    "continuation": "Ways to continue",
    "tuning": "Learning rates tried",
    "pilot": "Pilot: local steps, batch and rate at equal tokens",
    "control": "Control: sources at random",
    "scale": "A larger body",
    "embeddings": "First embeddings",
    "study": "Other settings",
    "setting": "Setting",
}
# Stages of studies, and what their settings are compared with: what methods of the comparison have.
STUDIED = {
    "compression": "none",
    "inner_state": "keep",
    "rounds": "10 x 40 steps",
    "worker_batch": "40 steps x 4",
    "outer": "average",
    "continuation": "as compared",
}
CONTINUED_ALONE = ("continuation",)
"""Studies that vary continued pre-training of the same bodies; others vary pre-training, and
continue what it gave in the stage ``<name>_cpt``."""

COMPARED = ("cpt_random", "cpt_random_long", "cpt_pretrained", "cpt_merged", "pretrain")
PLASTICITY = ("plasticity", "plasticity_long")
BY_SETTING = ("pilot", "control", "scale", "embeddings", "study")
"""Stages whose runs are named by their settings."""

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
    "pilot": "pilot",
    "control": "control",
    "scale": "larger body",
    "embeddings": "first embeddings",
    "study": "study",
    "compression": "compression",
    "compression_cpt": "compression, CPT",
    "inner_state": "inner state",
    "inner_state_cpt": "inner state, CPT",
    "rounds": "rounds against local steps",
    "rounds_cpt": "rounds against local steps, CPT",
    "worker_batch": "batch of a worker",
    "worker_batch_cpt": "batch of a worker, CPT",
    "outer": "outer optimizer",
    "outer_cpt": "outer optimizer, CPT",
    "continuation": "ways to continue",
    "downstream": "fine-tuning",
}

# What the names of settings of `tuning_cpt` begin with, and the stage that has the rate in use.
STARTS = {"random": "cpt_random", "pretrained": "cpt_pretrained", "merged": "cpt_merged"}

METRICS = {"perplexity": "perplexity", "bits_per_byte": "bits per byte"}


def metric_of(stage: str) -> str:
    """The metric of comparisons: perplexity only if all methods have the same tokenizer."""
    of_bytes = {"pretrain", "tuning", "study", *STUDIED} - {*CONTINUED_ALONE}
    return "bits_per_byte" if stage in of_bytes else "perplexity"


def label(method: str) -> str:
    """The name of a method in tables and plots."""
    return METHODS[method].label
