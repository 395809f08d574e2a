"""Text of made-up words."""

import random


def sentences(count: int, seed: int, alphabet: str = "abcdefghij") -> list[str]:
    """Documents of made-up words, the same for the same seed."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(alphabet, k=draw.randint(2, 9))) for _ in range(400)]
    return [" ".join(draw.choices(words, k=draw.randint(5, 40))) + "." for _ in range(count)]
