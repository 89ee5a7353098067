"""Answers that obey a schema, a regular expression or a grammar: llguidance says which tokens may come next."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from paretobit.errors import ParetobitError
from paretobit.runtime.generate import Model
from paretobit.server.errors import ApiError, bad
from paretobit.server.fields import ResponseFormat

MOST_SCHEMA = 1 << 16  # characters
# One way to write each value: no space that a model could go on with for ever.
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
TEXT = r"/(.|\n)*/"


class Grammars:
    """Compiles grammars for the tokens of `model`."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        tokenizer = self._model.tokenizer
        try:
            return LLTokenizer(
                tokenizer.to_json(), n_vocab=self._model.session.arch.vocab, eos_token=list(tokenizer.eos_ids) or None
            )
        except ValueError as why:
            raise ParetobitError(
                f"this model's tokenizer knows no constraints: {str(why)[:200]}", hint="ask without response_format"
            ) from None

    def compile(self, grammar: str, param: str) -> Callable[[], Matcher]:
        """What makes a fresh constraint. Raises ApiError, naming `param`, where it cannot be compiled."""
        limits = LLParserLimits(verbose_errors=False)
        first = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        probe = first.deep_copy()
        probe.compute_bitmask()  # some are found to be too complex, or to allow nothing, only now
        if probe.is_error() or (probe.is_stopped() and not probe.is_accepting()):
            raise refused(probe.get_error() or "nothing obeys it", param)
        vocab = self._model.session.arch.vocab
        return lambda: Matcher(first.deep_copy(), vocab)


class Matcher:
    """Where an answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher, vocab: int) -> None:
        self._matcher, self._vocab = matcher, vocab

    def allowed(self) -> np.ndarray:  # (vocab,) bool
        words = self._matcher.compute_bitmask()
        self._check()
        bits = np.unpackbits(np.frombuffer(words, np.uint8), bitorder="little")[: self._vocab]
        return bits.astype(bool)

    def push(self, token: int) -> bool:
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ParetobitError(
                f"the answer's grammar is too complex: {self._matcher.get_error()[:300]}", hint="give a simpler one"
            )


def refused(why: str, param: str) -> ApiError:
    return bad(f"'{param}' cannot be compiled: {' '.join(why.split())[:500]}", param, "invalid_schema")


def inline(schema: Mapping[str, Any], param: str) -> str:
    """A JSON schema as a piece of a Lark grammar. Raises ApiError where it is too large."""
    text = json.dumps({**schema, "x-guidance": STYLE})
    if len(text) > MOST_SCHEMA:
        raise bad(f"'{param}' has more than {MOST_SCHEMA} characters", param, "invalid_schema")
    return f"%json {text}"


def closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema of an object that names its properties, and no others where it leaves that open: what obeys it obeys the
    schema, and a small model does not go on inventing fields."""
    combined = {"additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref"}
    if schema.get("type") != "object" or "properties" not in schema or combined & schema.keys():
        return schema
    return {**schema, "additionalProperties": False}


def lark(rules: str) -> str:
    return "%llguidance {}\n" + rules


@dataclass(frozen=True)
class Form:
    """What an answer's text must be. whole: as a grammar; piece: the same inside of another one, "" where it cannot be;
    param: the field that says so."""

    whole: str
    piece: str
    param: str


def form_of(wanted: ResponseFormat | None) -> Form | None:
    """None where it may be any text. Raises ApiError on what does not fit together."""
    if wanted is None or wanted.type == "text":
        return None
    given = {name for name in ("json_schema", "regex", "grammar") if getattr(wanted, name) is not None}
    needed = {wanted.type} - {"json_object"}
    if given != needed:
        name = min(given ^ needed)
        raise bad(
            f"'response_format' of type {wanted.type} {'needs' if needed else 'has no'} {name}", "response_format"
        )
    param = f"response_format.{wanted.type}"
    if wanted.regex is not None:
        return Form(LLMatcher.grammar_from_regex(wanted.regex), "", param)
    if wanted.grammar is not None:
        return Form(wanted.grammar, "", param)
    schema = {"type": "object"} if wanted.json_schema is None else closed(wanted.json_schema.schema_)
    piece = inline(schema, param)
    return Form(lark(f"start: {piece}\n"), piece, param)
