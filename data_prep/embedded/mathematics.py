"""School mathematics as text: questions and their answers, made from a seed; stands for The Pile's
DM Mathematics.

DeepMind's generator, `mathematics_dataset` 1.0.1 of 2019, cannot be a dependency: it imports names
that left sympy in version 1.6, and torch needs 1.13. These questions cover the same kinds of
reasoning with the standard library, and are the same on every machine: of `random.Random`, only
`random`, whose sequence Python keeps between versions, is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from random import Random
from typing import Any

Pair = tuple[str, Any]
"""A question, and its answer as something to print."""


class Dice:
    """Draws from a seed."""

    def __init__(self, seed: str) -> None:
        self._random = Random(seed).random

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included.

        Args:
            low: the lowest number.
            high: the highest number.
        """
        return low + int(self._random() * (high - low + 1))

    def of(self, *options):
        """One of the options."""
        return options[self.between(0, len(options) - 1)]

    def is_heads(self) -> bool:
        """True half of the time."""
        return bool(self.between(0, 1))

    def number(self, digits: int = 4) -> int:
        """A whole number of any sign with 1 to `digits` digits, small ones as likely as large ones;
        never 0."""
        return self.of(1, -1) * self.between(1, 10 ** self.between(1, digits) - 1)

    def numbers(self, count: int, digits: int) -> list[int]:
        """So many of them.

        Args:
            count: how many numbers to draw.
            digits: the most digits of a number.
        """
        return [self.number(digits) for _ in range(count)]

    def name(self) -> str:
        """A letter for an unknown."""
        return self.of(*"abcdfghkmnpqrtuvwxyz")


def term(coefficient: int, power: int, x: str) -> str:
    """coefficient * x**power as one writes it: 3*x**2, -x, 7.

    Args:
        coefficient: a whole number.
        power: exponent of x, 0 or more.
        x: name of the unknown.
    """
    if power == 0:
        return str(coefficient)
    letters = x if power == 1 else f"{x}**{power}"
    return {1: letters, -1: f"-{letters}"}.get(coefficient, f"{coefficient}*{letters}")


def added(terms: list[str]) -> str:
    """Their sum as one writes it."""
    return " + ".join(terms).replace("+ -", "- ") or "0"


def polynomial(coefficients: list[int], x: str) -> str:
    """Highest power first; `coefficients[i]` belongs to x**i.

    Args:
        coefficients: whole numbers, lowest power first.
        x: name of the unknown.
    """
    return added([term(c, i, x) for i, c in enumerate(coefficients) if c][::-1])


def arithmetic(dice: Dice) -> Pair:
    """A sum, difference, product or quotient of two numbers."""
    a, b = dice.numbers(2, 6)
    kind = dice.of("add", "subtract", "multiply", "divide")
    if kind == "add":
        return dice.of(f"What is {a} + {b}?", f"Calculate {a} + {b}.", f"Add {a} and {b}."), a + b
    if kind == "subtract":
        texts = f"What is {a} - {b}?", f"Work out {a} - {b}.", f"Subtract {b} from {a}."
        return dice.of(*texts), a - b
    if kind == "multiply":
        product = f"What is the product of {a} and {b}?"
        return dice.of(f"What is {a} * {b}?", f"Multiply {a} and {b}.", product), a * b
    b = dice.number(3)
    a = b * dice.number(3) if dice.is_heads() else a
    return dice.of(f"Divide {a} by {b}.", f"What is {a} divided by {b}?"), Fraction(a, b)


def mixed(dice: Dice) -> Pair:
    """The value of an expression with brackets."""
    a, b, c, d = dice.numbers(4, 2)
    text, value = dice.of(
        (f"{a} + {b}*({c} - {d})", a + b * (c - d)),
        (f"({a} - {b}) - ({c} + {d})", a - b - c - d),
        (f"({a} + {b})*({c} - {d})", (a + b) * (c - d)),
        (f"{a}*{b} - {c}*{d}", a * b - c * d),
        (f"{a} - ({b} - ({c} - {d}))", a - b + c - d),
        (f"({a}*{b})/({c}*{d})", Fraction(a * b, c * d)),
    )
    question = dice.of(f"Evaluate {text}.", f"What is the value of {text}?", f"Calculate {text}.")
    return question, value


def linear(dice: Dice) -> Pair:
    """The solution of a linear equation."""
    x, root, a, c = dice.name(), dice.number(2), dice.number(2), dice.number(3)
    k = dice.number(1)
    left, right = polynomial([c, a], x), polynomial([c + (a - k) * root, k], x)
    question = dice.of(f"Solve {left} = {right} for {x}.", f"Let {left} = {right}. What is {x}?")
    return question, root if a != k else "any"


def pair_of_equations(dice: Dice) -> Pair:
    """One unknown of two linear equations."""
    x, y = dice.name(), dice.name()
    while y == x:
        y = dice.name()
    u, v = dice.numbers(2, 2)
    rows = [dice.numbers(2, 1) for _ in range(2)]
    while rows[0][0] * rows[1][1] == rows[0][1] * rows[1][0]:
        rows[1] = dice.numbers(2, 1)
    texts = [f"{added([term(a, 1, x), term(b, 1, y)])} = {a * u + b * v}" for a, b in rows]
    return f"Solve {texts[0]}, {texts[1]} for {x}.", u


def derivative(dice: Dice) -> Pair:
    """The first or second derivative of a polynomial."""
    x, c = dice.name(), dice.numbers(dice.between(3, 5), 2)
    once = [i * v for i, v in enumerate(c)][1:]
    of = f"{polynomial(c, x)} with respect to {x}"
    if dice.is_heads():
        question = dice.of(f"Find the first derivative of {of}.", f"Differentiate {of}.")
        return question, polynomial(once, x)
    twice = [i * v for i, v in enumerate(once)][1:]
    return f"What is the second derivative of {of}?", polynomial(twice, x)


def expand(dice: Dice) -> Pair:
    """The product of two binomials."""
    x, (a, b, c, d) = dice.name(), dice.numbers(4, 1)
    question = f"Expand ({polynomial([a, b], x)})*({polynomial([c, d], x)})."
    return question, polynomial([a * c, a * d + b * c, b * d], x)


def collect(dice: Dice) -> Pair:
    """The sum of terms of a polynomial."""
    x, powers = dice.name(), [dice.between(0, 2) for _ in range(4)]
    parts = list(zip(dice.numbers(4, 2), powers, strict=True))
    sums = [sum(n for n, p in parts if p == power) for power in range(3)]
    return f"Collect the terms in {added([term(n, p, x) for n, p in parts])}.", polynomial(sums, x)


def evaluate(dice: Dice) -> Pair:
    """The value of a polynomial."""
    x, f, at = dice.name(), dice.of(*"fghrs"), dice.number(1)
    c = dice.numbers(dice.between(2, 4), 1)
    question = f"Let {f}({x}) = {polynomial(c, x)}. Determine {f}({at})."
    return question, sum(v * at**i for i, v in enumerate(c))


def divisors(dice: Dice) -> Pair:
    """A greatest common divisor or least common multiple."""
    common = dice.between(1, 60)
    a, b = common * dice.between(1, 80), common * dice.between(1, 80)
    if dice.is_heads():
        question = dice.of(
            f"What is the greatest common divisor of {a} and {b}?",
            f"Calculate the highest common factor of {a} and {b}.",
        )
        return question, math.gcd(a, b)
    return f"Calculate the least common multiple of {a} and {b}.", math.lcm(a, b)


def factors_of(n: int) -> list[int]:
    """Prime factors of n >= 1, with repetition, in order."""
    found, p = [], 2
    while p * p <= n:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return found + ([n] if n > 1 else [])


def primes(dice: Dice) -> Pair:
    """A prime factorisation, or whether a number is prime."""
    n = dice.between(2, 10 ** dice.between(2, 5))
    if dice.is_heads():
        found = sorted(set(factors_of(n)))
        return f"List the prime factors of {n}.", ", ".join(map(str, found))
    n |= 1
    return dice.of(f"Is {n} a prime number?", f"Is {n} prime?"), len(factors_of(n)) == 1


def remainder(dice: Dice) -> Pair:
    """The remainder of a division, or divisibility."""
    a, b = dice.between(10, 99999), dice.between(2, 300)
    if dice.between(0, 3):
        return dice.of(
            f"Calculate the remainder when {a} is divided by {b}.", f"What is {a} modulo {b}?"
        ), a % b
    a -= (a % b) * dice.between(0, 1)
    return dice.of(f"Is {a} a multiple of {b}?", f"Does {b} divide {a}?"), a % b == 0


PLACES = ("units", "tens", "hundreds", "thousands")
PLACES += ("ten thousands", "hundred thousands", "millions")


def digits(dice: Dice) -> Pair:
    """A digit of a number, or a rounded number."""
    n = dice.between(1000, 9999999)
    place = dice.between(0, len(str(n)) - 1)
    if dice.is_heads():
        return f"What is the {PLACES[place]} digit of {n}?", n // 10**place % 10
    size = 10 ** dice.between(1, 4)
    return f"Round {n} to the nearest {size}.", (n + size // 2) // size * size


def base(dice: Dice) -> Pair:
    """A conversion between number bases."""
    n, b = dice.between(2, 4000), dice.between(2, 9)
    left, text = n, ""
    while left:
        left, digit = divmod(left, b)
        text = str(digit) + text
    if dice.is_heads():
        return f"What is {n} (base 10) in base {b}?", text
    return f"Convert {text} (base {b}) to base 10.", n


def order(dice: Dice) -> Pair:
    """Sorted numbers, or the n-th largest one."""
    numbers = dice.numbers(dice.between(4, 7), 3)
    listed = ", ".join(map(str, numbers))
    if dice.is_heads():
        down = dice.is_heads()
        answer = ", ".join(map(str, sorted(numbers, reverse=down)))
        return f"Put {listed} in {'descending' if down else 'ascending'} order.", answer
    nth, which = dice.of((2, "second"), (3, "third"), (4, "fourth"))
    return f"What is the {which} biggest value in {listed}?", sorted(numbers)[-nth]


def comparison(dice: Dice) -> Pair:
    """A comparison of two numbers."""
    a, b = (Fraction(dice.number(2), dice.between(1, 40)) for _ in range(2))
    if dice.is_heads():
        texts = f"Which is smaller: {a} or {b}?", f"Which is the smaller number: {a} or {b}?"
        return dice.of(*texts), min(a, b)
    return f"Is {a} greater than {b}?", a > b


def sequence(dice: Dice) -> Pair:
    """The next or the n-th term of a sequence."""
    a, b, c = dice.number(3), dice.number(2), dice.between(0, 1) * dice.number(1)
    values = [a + b * n + c * n * n for n in range(7)]
    count, n = dice.between(4, 6), polynomial([a - b + c, b - 2 * c, c], "n")
    listed = ", ".join(map(str, values[:count]))
    if dice.is_heads():
        return f"What is the next term in {listed}?", values[count]
    return f"What is the n'th term of {listed}?", n


def probability(dice: Dice) -> Pair:
    """The probability of letters drawn from a bag."""
    letters = [dice.of(*"abcdefghij") for _ in range(dice.between(4, 12))]
    bag, picked = "".join(letters), dice.of(*letters)
    one, share = f"picking {picked} when one letter is picked from {bag}", bag.count(picked)
    if dice.is_heads():
        return f"Calculate the probability of {one}.", Fraction(share, len(bag))
    return (
        f"Two letters are picked without replacement from {bag}. "
        f"What is the probability of picking 2 {picked}?",
        Fraction(share * (share - 1), len(bag) * (len(bag) - 1)),
    )


def measurement(dice: Dice) -> Pair:
    """A conversion of units, or a difference of times."""
    small, large, size = dice.of(
        ("millimeters", "meters", 1000),
        ("meters", "kilometers", 1000),
        ("grams", "kilograms", 1000),
        ("minutes", "hours", 60),
        ("seconds", "minutes", 60),
        ("hours", "days", 24),
        ("milliliters", "liters", 1000),
        ("months", "years", 12),
        ("centimeters", "meters", 100),
    )
    n = dice.between(2, 2000)
    if dice.is_heads():
        return f"How many {small} are there in {n} {large}?", n * size
    start, length = dice.between(0, 1439), dice.between(10, 700)
    clock = [
        f"{(t // 60 - 1) % 12 + 1}:{t % 60:02d} {'AM' if t // 60 % 24 < 12 else 'PM'}"
        for t in (start, start + length)
    ]
    return f"How many minutes are there between {clock[0]} and {clock[1]}?", length


MODULES: tuple[Callable[[Dice], Pair], ...] = (
    *(arithmetic, mixed, linear, pair_of_equations, derivative, expand, collect, evaluate),
    *(divisors, primes, remainder, digits, base, order, comparison, sequence, probability),
    measurement,
)


def mathematics(documents: int, seed: int = 0, pairs: int = 20) -> Iterator[list[str]]:
    """Documents of questions and answers, each of one kind.

    Args:
        documents: how many documents.
        seed: two seeds give different texts.
        pairs: questions in a document.

    Yields:
        Passages `question\\nanswer` of one document.  The text depends on nothing but the
        arguments.
    """
    for number in range(documents):
        module, dice = MODULES[number % len(MODULES)], Dice(f"{seed} {number}")
        yield ["{}\n{}".format(*module(dice)) for _ in range(pairs)]
