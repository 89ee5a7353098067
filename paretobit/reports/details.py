"""details.json of a packed model: what the last evaluation saw and a row of results cannot hold. How KL divergence is
spread over tokens, the windows of text with the most flips, and what both models write.

The file comes with the model, so nobody vouches for it: every field is checked on the way in.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from paretobit.artifact import DETAILS
from paretobit.errors import ParetobitError
from paretobit.reports.fields import Fields
from paretobit.work import write_atomically

VERSION = 1
MOST_BYTES = 1_000_000
MOST_BINS, MOST_WINDOWS, MOST_TOKENS, MOST_TEXTS = 200, 8, 1024, 32
MOST_WORD, MOST_TEXT = 200, 4000  # characters of one token, of everything longer
RIGHT = ("original", "quantized", None)
HINT = "measure again: paretobit eval OUT --against MODEL --text FILE.txt"


@dataclass(frozen=True)
class Spread:
    """Tokens by log10 of their KL divergence in nats: counts[i] lie in first + i·step …; the ends take what lies
    beyond. quantiles: (share of tokens, nats)."""

    first: float
    step: float
    counts: tuple[int, ...]
    quantiles: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Guess:
    """A model's likeliest token, and the probability it gives to it."""

    text: str
    p: float


@dataclass(frozen=True)
class Token:
    """One token of held-out text, predicted by both. kl: nats; original and quantized: their guesses where they differ,
    else None; right: whose was the text's own token."""

    text: str
    kl: float
    original: Guess | None = None
    quantized: Guess | None = None
    right: str | None = None


@dataclass(frozen=True)
class Window:
    """A stretch of text: its number among the windows, what stands before the first scored token, and those."""

    window: int
    before: str
    tokens: tuple[Token, ...]

    @property
    def flips(self) -> int:
        return sum(token.original is not None for token in self.tokens)


@dataclass(frozen=True)
class Continuation:
    """What both models write after a prompt, always taking the likeliest token."""

    prompt: str
    original: str
    quantized: str


@dataclass(frozen=True)
class Details:
    """artifact: hash of the packed model; command: what measures it again; skipped: why there are no continuations."""

    artifact: str
    original: str
    command: str
    spread: Spread
    windows: tuple[Window, ...]
    continuations: tuple[Continuation, ...]
    skipped: str | None = None


def write(folder: Path, details: Details) -> None:
    """Put details.json into `folder`, in one rename. Raises ParetobitError where that fails."""
    facts = {"version": VERSION, **asdict(details)}
    for token in (token for window in facts["windows"] for token in window["tokens"]):
        for name in ("original", "quantized", "right"):
            if token[name] is None:
                del token[name]
    text = json.dumps(facts, separators=(",", ":"), allow_nan=False) + "\n"
    if len(text) > MOST_BYTES:
        raise ParetobitError(f"{DETAILS} would take {len(text)} bytes", hint=f"{MOST_BYTES} are allowed")
    write_atomically(folder / DETAILS, text.encode())


def read(folder: Path) -> Details | None:
    """The details in `folder`, None where nobody wrote any. Raises ParetobitError naming the file and the field."""
    source = Fields(str(folder / DETAILS), HINT)
    content = source.content(MOST_BYTES)
    if content is None:
        return None
    facts = source.parsed(content)
    if type(facts.get("version")) is not int or facts["version"] != VERSION:
        raise source.bad(f"version {reprlib.repr(facts.get('version'))}, expected {VERSION}")
    windows = source.items(facts, "windows", MOST_WINDOWS)
    texts = source.items(facts, "continuations", MOST_TEXTS)
    return Details(
        artifact=source.text(facts, "artifact", MOST_WORD),
        original=source.text(facts, "original", MOST_TEXT),
        command=source.text(facts, "command", MOST_TEXT),
        spread=_spread(source, facts.get("spread")),
        windows=tuple(_window(source, window) for window in windows),
        continuations=tuple(
            Continuation(*(source.text(each, key, MOST_TEXT) for key in ("prompt", "original", "quantized")))
            for each in texts
        ),
        skipped=None if facts.get("skipped") is None else source.text(facts, "skipped", MOST_TEXT),
    )


def _spread(source: Fields, facts: object) -> Spread:
    counts = source.items(facts, "counts", MOST_BINS)
    if not counts:
        raise source.bad("counts is empty")
    quantiles = []
    for pair in source.items(facts, "quantiles", MOST_BINS):
        if type(pair) is not list or len(pair) != 2:
            raise source.bad("quantiles does not hold pairs")
        share, nats = pair
        quantiles.append((source.checked(share, "a quantile", 0, 1), source.checked(nats, "a quantile", 0, 1e9)))
    return Spread(
        source.number(facts, "first", -100, 100),
        source.number(facts, "step", 1e-3, 10),
        tuple(source.count(count, "a count of tokens") for count in counts),
        tuple(quantiles),
    )


def _window(source: Fields, facts: object) -> Window:
    tokens = source.items(facts, "tokens", MOST_TOKENS)
    number = source.count(source.field(facts, "window"), "window")
    return Window(number, source.text(facts, "before", MOST_TEXT), tuple(_token(source, token) for token in tokens))


def _token(source: Fields, facts: object) -> Token:
    text, kl = source.text(facts, "text", MOST_WORD), source.number(facts, "kl", 0, 1e9)
    assert isinstance(facts, Mapping)
    if ("original" in facts) != ("quantized" in facts):
        raise source.bad("a token has one guess, not two")
    if "original" not in facts:
        return Token(text, kl)
    right = facts.get("right")
    if right is not None and (type(right) is not str or right not in RIGHT):
        raise source.bad(f"right is {reprlib.repr(right)}")
    original, quantized = (
        Guess(source.text(facts[name], "text", MOST_WORD), source.number(facts[name], "p", 0, 1))
        for name in ("original", "quantized")
    )
    return Token(text, kl, original, quantized, right)
