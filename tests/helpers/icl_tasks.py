"""Task files of our own words, in llm-foundry's layout, and in a few lines how they are scored."""

import json
from pathlib import Path

import torch

NOUNS = ("file", "list", "name", "line", "value", "error")
VERBS = ("is", "has", "in", "of")

CHOICES = [
    {"query": f"the {noun} {verb}", "choices": [f"a {verb}", f"not {noun}", "the"], "gold": i % 3}
    for i, (noun, verb) in enumerate((n, v) for n in NOUNS for v in VERBS)
]
SCHEMAS = [
    {"context_options": [f"the {noun}", f"self {noun}"], "continuation": verb, "gold": i % 2}
    for i, (noun, verb) in enumerate((n, v) for n in NOUNS for v in VERBS)
]
TEXTS = [
    {"context": f"the {noun} of", "continuation": word, "category": ("one", "two")[i % 2]}
    for i, (noun, word) in enumerate((n, w) for n in NOUNS for w in ("the", "a", "self"))
]
FILES = {
    "world_knowledge/arc_easy.jsonl": CHOICES,
    "world_knowledge/jeopardy_small.jsonl": TEXTS,
    "commonsense_reasoning/copa.jsonl": CHOICES,
    "commonsense_reasoning/openbook_qa.jsonl": CHOICES,
    "language_understanding/lambada_openai_small.jsonl": TEXTS,
    "language_understanding/winograd_wsc.jsonl": SCHEMAS,
    "language_understanding/winogrande.jsonl": SCHEMAS,
    "symbolic_problem_solving/bigbench_operators.jsonl": TEXTS,
    "symbolic_problem_solving/simple_arithmetic_nospaces.jsonl": TEXTS,
}
# Of these, the tasks that are read without examples, so that a plain reading is short.
OPTIONS = [f"variables.shots.{name}=0" for name in ("copa", "winograd", "lambada")]


def write(folder: Path) -> Path:
    """Write the files below ``folder``."""
    for name, rows in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def in_training(folder: Path) -> list[str]:
    """Overrides that let a run evaluate three of them, and sum them up."""
    kinds = {"copa": "multiple_choice", "winograd": "schema", "lambada": "language_modeling"}
    names = {"copa": "copa", "winograd": "winograd_wsc", "lambada": "lambada_openai_small"}
    folders = {"copa": "commonsense_reasoning"}
    tasks = [
        f"{{label: {label}, icl_task_type: {kind}, num_fewshot: [0], dataset_uri: "
        f"{folder}/{folders.get(label, 'language_understanding')}/{names[label]}.jsonl}}"
        for label, kind in kinds.items()
    ]
    benchmarks = ", ".join(
        f"{{name: {name}, num_fewshot: 0, random_baseline: {chance}}}"
        for name, chance in (("copa", 0.25), ("winograd", 0.5))
    )
    gauntlet = f"{{weighting: EQUAL, categories: [{{name: all, benchmarks: [{benchmarks}]}}]}}"
    return [f"icl_tasks=[{', '.join(tasks)}]", f"eval_gauntlet={gauntlet}"]


def expected(model, tokenizer) -> dict[str, float]:
    """Accuracy of the three by their definitions: the likeliest choice, the right next tokens."""

    def read(context, answer):
        before, after = (
            tokenizer(t, add_special_tokens=False).input_ids for t in (context, answer)
        )
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([before + after])).logits[0]
        return logits[len(before) - 1 : -1], torch.tensor(after)

    def loss(context, answer):
        return float(torch.nn.functional.cross_entropy(*read(context, f" {answer}")))

    def least(losses):
        return min(range(len(losses)), key=losses.__getitem__)

    copa = [least([loss(r["query"], c) for c in r["choices"]]) == r["gold"] for r in CHOICES]
    winograd = [
        least([loss(c, r["continuation"]) for c in r["context_options"]]) == r["gold"]
        for r in SCHEMAS
    ]
    lambada = []
    for row in TEXTS:
        logits, after = read(row["context"], f" {row['continuation']}")
        lambada.append(bool((logits.argmax(-1) == after).all()))
    found = {"copa": copa, "winograd": winograd, "lambada": lambada}
    return {name: sum(right) / len(right) for name, right in found.items()}
