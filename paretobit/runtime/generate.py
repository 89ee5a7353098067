"""A packed model that speaks: prompts to tokens, tokens to text, one sequence at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paretobit.errors import ParetobitError
from paretobit.runtime.sampler import Sampler, Sampling
from paretobit.runtime.streaming import Words
from paretobit.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from paretobit.runtime.session import Session


def load(
    path: str | Path,
    threads: int | None = None,
    activations: str = "int8",
    context: int | None = None,
    kv: str | int | None = None,
) -> Model:
    """Open the packed model in folder `path`.

    threads: None for the physical cores; activations: "int8" or "fp32"; context: most tokens of a sequence, None for
    the model's own limit; kv: bits of the key-value cache, 16, 8, 4, 3 or 2, or a spelling of `kv.KV`. Raises
    ParetobitError where there is no packed model, or it is damaged.
    """
    from paretobit.artifact import Artifact
    from paretobit.runtime.session import Session

    artifact = Artifact(Path(path))
    return Model(Session(artifact, threads, activations, context, kv), Tokenizer(artifact.companions))


class Model:
    """A packed model in memory: `session` computes, `tokenizer` reads and writes."""

    def __init__(self, session: Session, tokenizer: Tokenizer) -> None:
        self.session = session
        self.tokenizer = tokenizer

    def logits(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:  # (tokens,) -> (tokens, vocab) float32
        """What the model expects after each of `ids`. Raises ParetobitError on ids that it does not have."""
        return self.session.logits(np.asarray(ids, np.int64).reshape(1, -1))[0]

    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        stream: Callable[[str], object] | None = None,
    ) -> str:
        """The text that goes on from `prompt`, without it; `stream` gets it piece by piece, whole characters each.

        It ends at the tokenizer's end token, before a stop string, or after max_new_tokens. `Sampling` says what the
        other arguments do. Raises ParetobitError on arguments that make no sense and prompts that do not fit.
        """
        sampling = Sampling(
            temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty,
            logit_bias or {}, seed,
        )  # fmt: skip
        with closing(self.stream(prompt, sampling, max_new_tokens, stop)) as generation:
            for piece in generation:
                if stream is not None:
                    stream(piece)
            return generation.text

    def stream(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling,
        max_new_tokens: int = 128,
        stop: str | Sequence[str] = (),
    ) -> Generation:
        """The same as an iterator over pieces of text. Nothing is computed before it is asked for."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        sampler = Sampler(sampling, self.session.arch.vocab)
        return Generation(self, Slot(self.session), ids, sampler, max_new_tokens, stop, before=ids, owned=True)


class Slot:
    """A sequence of the session's whose tokens are known, so that a prompt computes only what is new in it.

    tokens: those in the cache. fed: how many were computed in all.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._slot = session.open()
        self.tokens: list[int] = []
        self.fed = 0

    def become(self, tokens: Sequence[int]) -> np.ndarray:  # (vocab,) float32
        """Hold `tokens`, at least one; the logits after them. What the cache begins with alike is kept."""
        tokens = list(tokens)
        # The last one is computed in any case: its logits are what is asked for.
        pairs = zip(self.tokens, tokens[:-1], strict=False)
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if kept < len(self.tokens):
            self._session.truncate(self._slot, kept)
            self.tokens = tokens[:kept]
        return self.append(tokens[kept:])

    def append(self, tokens: list[int]) -> np.ndarray:  # (vocab,) float32
        """Go on with `tokens`; the logits after them. Interrupted, it keeps those that were computed."""
        before = len(self.tokens)
        try:
            return self._session.feed(self._slot, tokens)
        finally:
            self.tokens = (self.tokens + tokens)[: self._session.length(self._slot)]
            self.fed += len(self.tokens) - before

    def close(self) -> None:
        self._session.close(self._slot)


class Generation:
    """One answer, made while it is read: iterate over its pieces of text. Once exhausted or closed it stays so.

    text: what was given so far; tokens: those generated, the end token apart; finish: "" while it runs, then "eos",
    "stop" (a stop string) or "length". prompt_tokens: of the prompt; fed_tokens: those of them that were computed;
    prompt_seconds: until the first logits; steps: tokens that were computed after that, in `seconds`.
    """

    def __init__(
        self,
        model: Model,
        slot: Slot,
        prompt: list[int],
        sampler: Sampler,
        max_new_tokens: int,
        stop: str | Sequence[str],
        before: Sequence[int] = (),
        owned: bool = False,
    ) -> None:
        """before: tokens that the text goes on from; owned: the slot is closed with this.

        Raises ParetobitError where the prompt is empty or does not fit the context together with the answer.
        """
        self._slot, self._owned = slot, owned
        self._prompt, self._sampler = prompt, sampler
        try:
            check_room(len(prompt), max_new_tokens, model.session.context)
            self._words = Words(model.tokenizer, max_new_tokens, stop, before)
        except BaseException:
            self._release()
            raise
        self.text = ""
        self.prompt_tokens, self.fed_tokens = len(prompt), 0
        self.steps, self.prompt_seconds, self.seconds = 0, 0.0, 0.0
        self._pieces = self._make()

    @property
    def tokens(self) -> list[int]:
        return self._words.tokens

    @property
    def finish(self) -> str:
        return self._words.finish

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def read(self) -> str:
        """The whole text: what is missing is made now."""
        for _ in self:
            pass
        return self.text

    def close(self) -> None:
        """Make no more of it."""
        self._pieces.close()
        self._release()

    def _release(self) -> None:
        if self._owned:
            self._owned = False
            self._slot.close()

    def _make(self) -> Generator[str, None, None]:
        try:
            for piece in self._decode():
                if piece:
                    self.text += piece
                    yield piece
        finally:
            self._release()

    def _decode(self) -> Iterator[str]:
        """Text of one token after the other, until a token ends it."""
        start, fed = time.perf_counter(), self._slot.fed
        logits = self._slot.become(self._prompt)
        self.fed_tokens = self._slot.fed - fed
        self._sampler.start(self._prompt)
        ready = time.perf_counter()
        self.prompt_seconds = ready - start
        while True:
            token = self._sampler.sample(logits)
            self.seconds = time.perf_counter() - ready
            yield self._words.push(token)
            if self._words.finish:
                return
            logits = self._slot.append([token])
            self.steps += 1


def check_room(prompt: int, new: int, context: int) -> None:
    """Raise ParetobitError unless `prompt` tokens and `new` ones fit into a context of `context`."""
    if not isinstance(new, int) or isinstance(new, bool) or new < 1:
        raise ParetobitError(f"max_new_tokens {new!r} is out of range", hint="ask for at least one token")
    if prompt < 1:
        raise ParetobitError("the prompt is empty", hint="give some text: this model's tokenizer adds nothing to it")
    if prompt + new > context:
        room = context - prompt
        raise ParetobitError(
            f"a prompt of {prompt} tokens and {new} new ones do not fit the context of {context}",
            hint=f"ask for at most {room} new tokens (-n {room})" if room > 0 else "shorten the prompt",
        )
