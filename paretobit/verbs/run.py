"""run: plain text in, what the model makes of it out. Needs no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from paretobit.errors import ParetobitError
from paretobit.progress import say, write
from paretobit.verbs.answers import (
    Activations,
    FrequencyPenalty,
    Kv,
    LogitBias,
    MaxNewTokens,
    MinP,
    PresencePenalty,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
)
from paretobit.verbs.verb import Verb

if TYPE_CHECKING:
    from paretobit.runtime.generate import Generation


class Completion:
    """What goes on from a prompt, made while it is read: iterate over its pieces of text, or take str() of it all."""

    def __init__(self, generation: Generation, threads: int, load_seconds: float) -> None:
        self.generation = generation
        self.threads = threads
        self.load_seconds = load_seconds

    def __iter__(self) -> Iterator[str]:
        return iter(self.generation)

    def __str__(self) -> str:
        return self.generation.read()

    def to_json(self) -> dict[str, Any]:
        """tokens: generated; finish: "eos", "stop" or "length"; seconds: for prompt and answer, loading apart."""
        from paretobit.native import isa

        made = self.generation
        text = made.read()
        return {
            "text": text,
            "finish": made.finish,
            "prompt_tokens": made.prompt_tokens,
            "tokens": len(made.tokens),
            "load_seconds": self.load_seconds,
            "prompt_seconds": made.prompt_seconds,
            "seconds": made.prompt_seconds + made.seconds,
            "prompt_tokens_per_s": rate(made.fed_tokens, made.prompt_seconds),
            "tokens_per_s": rate(made.steps, made.seconds),
            "threads": self.threads,
            "isa": isa(),
        }


def rate(count: int, seconds: float) -> float | None:
    return count / seconds if count and seconds > 0 else None


def run(
    out: str,
    prompt: str,
    *,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    logit_bias: LogitBias = (),
    seed: Seed = 0,
    stop: Stop = (),
    threads: Threads = None,
    activations: Activations = "int8",
    kv: Kv = None,
) -> Completion:
    """Go on from PROMPT, as plain text without a chat template; "-" reads it from stdin, less its last line break.

    Prints the continuation alone on stdout, as it is made; how fast it was, on stderr. Raises ParetobitError on options
    that make no sense, and where OUT is not a packed model or the prompt does not fit its context.
    """
    from paretobit.runtime.generate import load
    from paretobit.runtime.sampler import Sampling, parse_bias

    penalties = (repetition_penalty, presence_penalty, frequency_penalty)
    sampling = Sampling(temperature, top_k, top_p, min_p, *penalties, parse_bias(logit_bias), seed)
    text = _stdin() if prompt == "-" else prompt
    start = time.perf_counter()
    model = load(out, threads, activations, kv=kv)
    ready = time.perf_counter()
    generation = model.stream(text, sampling, max_new_tokens, stop)
    return Completion(generation, model.session.threads, ready - start)


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as why:
        raise ParetobitError(
            f"the prompt on stdin is not UTF-8 ({why})", hint="convert it, with iconv for one"
        ) from None


def show(completion: Completion) -> None:
    """Ctrl-C keeps what was said and leaves with 130; a reader that goes away ends it quietly."""
    made, code = completion.generation, 0
    with closing(made):
        try:
            for piece in made:
                if not write(piece):
                    return
        except KeyboardInterrupt:
            code = 130
        except ParetobitError:
            write("\n" if made.text else "")
            raise
    write("\n")
    say(_summary(completion.to_json()))
    if code:
        sys.exit(code)


def _summary(told: dict[str, Any]) -> str:
    def speed(tokens: int, per_second: float | None) -> str:
        return f"{tokens} tokens" + (f" at {per_second:.1f}/s" if per_second else "")

    prompt = speed(told["prompt_tokens"], told["prompt_tokens_per_s"])
    answer = speed(told["tokens"], told["tokens_per_s"])
    return f"prompt {prompt}, answer {answer}; {told['threads']} threads, {told['isa']}"


VERB = Verb("run", run, show)
