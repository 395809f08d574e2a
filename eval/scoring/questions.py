"""Questions of which line continues a text, made from documents."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

CHOICES = 4
CONTEXT_LINES = 3


def continuations(
    texts: Sequence[str], each: int = 1, context_lines: int = CONTEXT_LINES, seed: int = 17
) -> list[dict[str, Any]]:
    """Questions of which line continues a text: its own, or one of other texts.

    Args:
        texts: documents; those of too few lines give no question.
        each: questions of a document, if it has as many lines after the first ones.
        context_lines: that a question begins with.
        seed: of the places to ask at, and of the lines to choose among.

    Returns:
        ``context``, which ends with a newline, ``choices`` and ``answer``, the index of the true
        one.
    """
    lines = [[line for line in text.splitlines() if line.strip()] for text in texts]
    every = sorted({line for own in lines for line in own})
    draw, questions = random.Random(seed), []
    for own in lines:
        places = range(context_lines, len(own))
        if not places or len(every) - len(set(own)) < CHOICES - 1:
            continue
        for at in sorted(draw.sample(places, min(each, len(places)))):
            others: set[str] = set()
            while len(others) < CHOICES - 1:
                others |= {draw.choice(every)} - set(own)
            choices = [own[at], *sorted(others)]
            draw.shuffle(choices)
            context = "\n".join(own[at - context_lines : at]) + "\n"
            answer = choices.index(own[at])
            questions.append({"context": context, "choices": choices, "answer": answer})
    return questions
