"""The options that `run` and `chat` share: how long an answer is, how its tokens are chosen, what computes them."""

from __future__ import annotations

from typing import Annotated

from paretobit.verbs.verb import Option

MaxNewTokens = Annotated[int, Option("Tokens of an answer at most.", "-n")]
Temperature = Annotated[float, Option("0 always takes the likeliest token; 0.7 varies, above 1 wanders.")]
TopK = Annotated[int, Option("Choose from the k likeliest tokens only; 0: from all.")]
TopP = Annotated[float, Option("Choose from the fewest tokens that together have this probability.")]
MinP = Annotated[float, Option("Choose from tokens at least this times as probable as the likeliest.")]
RepetitionPenalty = Annotated[float, Option("Above 1: fewer tokens that the prompt or the answer has already.")]
PresencePenalty = Annotated[float, Option("Above 0: fewer tokens that the answer has already.")]
FrequencyPenalty = Annotated[float, Option("Above 0: the fewer, the more often the answer has them.")]
LogitBias = Annotated[tuple[str, ...], Option("ID=VALUE added to a token's logit; -inf rules it out; repeatable.")]
Seed = Annotated[int, Option("Equal seeds choose equal tokens, on every machine.")]
Stop = Annotated[tuple[str, ...], Option("End before this text; repeatable.")]
Threads = Annotated[int | None, Option("Threads that compute (default: one for each physical core).")]
Activations = Annotated[str, Option("int8, or fp32: slower, and exact.")]
Kv = Annotated[str | int | None, Option("Bits of the key-value cache: 8, 4, 3 or 2 (default: 16; docs/kv.md).")]
