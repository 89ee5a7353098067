"""EleutherAI's lm-evaluation-harness on any model paretobit opens: the extra `lm-eval` (lm_eval 0.4).

    import lm_eval, paretobit.evals.lm_eval_adapter
    lm_eval.simple_evaluate(model="paretobit", model_args="artifact=OUT", tasks=["piqa"])

Importing this module registers the model "paretobit" where lm_eval is installed, and does nothing elsewhere.
The tokens, splits and scores are those of `paretobit.evals.tasks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from paretobit.errors import ParetobitError
from paretobit.evals.perplexity import Logits, call
from paretobit.evals.tasks import Request, encode_pair, score, truncate
from paretobit.evals.text import Tokenizer

MAX_NEW_TOKENS = 256  # the harness's own default


class Adapter:
    """The three requests of an lm_eval `LM` (list of instances with `.args`) over one open model.

    artifact: what `paretobit eval` takes. max_length: tokens of a context with its continuation; longer
    contexts lose their start, as in the harness. Raises ParetobitError for sampling: generation is greedy.
    """

    def __init__(self, artifact: str, max_length: int | str = 2048, **ignored: Any) -> None:
        super().__init__()
        unknown = sorted(ignored.keys() - set(HARNESS_OPTIONS))
        if unknown:
            raise ParetobitError(f"unknown model_args: {', '.join(unknown)}", hint="give artifact= and max_length=")
        self.artifact, self.max_length = str(artifact), int(max_length)
        self.logits, self.tokens = self.open(self.artifact)

    @staticmethod
    def open(artifact: str) -> tuple[Logits, Tokenizer]:
        """The model behind a name, as `paretobit eval` opens it."""
        from paretobit.verbs.evaluate import open_logits

        opened: tuple[Logits, Tokenizer] = open_logits(artifact)
        return opened

    @property
    def tokenizer_name(self) -> str:
        return self.artifact

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as the model's own template writes them, ready for the answer."""
        chat = getattr(self.tokens, "chat", None)
        if chat is None or not add_generation_prompt:
            raise ParetobitError(
                "this chat template is only rendered up to the answer",
                hint="evaluate without prefilled answers",
            )
        return str(chat(chat_history))

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of each `(context, continuation)`."""
        wanted = [i for i, request in enumerate(requests) if request.args[1]]
        encoded = [truncate(encode_pair(self.tokens, *requests[i].args[:2]), self.max_length) for i in wanted]
        answers = [(0.0, True)] * len(requests)  # an empty continuation is certain
        for i, likelihood, greedy in zip(wanted, *score(self.logits, encoded), strict=True):
            answers[i] = (float(likelihood), bool(greedy))
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-likelihood of each whole `(text,)`; every token once, the last chunk with a full context."""
        chunks = [self._chunks(request.args[0]) for request in requests]
        likelihood, _ = score(self.logits, [chunk for of_text in chunks for chunk in of_text])
        ends = np.cumsum([0] + [len(of_text) for of_text in chunks])
        return [float(likelihood[start:stop].sum()) for start, stop in pairwise(ends)]

    def _chunks(self, text: str) -> list[Request]:
        if not text:
            return []
        whole = encode_pair(self.tokens, "", text)
        chunks, tokens, size = [], whole.tokens, self.max_length
        for start in range(whole.start, len(tokens), size):
            stop = min(start + size, len(tokens))
            # inputs are tokens[low:stop-1]; the first chunk starts at the prefix token
            low = max(stop - 1 - size, 0)
            chunks.append(Request(tokens[low:stop], start - low))
        return chunks

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy continuation of each `(context, options)` up to the first of `until`, which is cut off."""
        return [self._generate(*request.args[:2]) for request in requests]

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        if options.get("do_sample") and options.get("temperature", 1.0) > 0:
            raise ParetobitError("this adapter does not sample", hint="set do_sample: false, temperature: 0")
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else until
        limit = int(options.get("max_gen_toks", MAX_NEW_TOKENS))
        bos = [] if self.tokens.bos_id is None else [self.tokens.bos_id]
        ids = self.tokens.encode(context, add_special=False)
        ids = ids if ids[:1] == bos else bos + ids
        ids = (ids or [min(self.tokens.eos_ids, default=0)])[-max(self.max_length - limit, 1) :]
        prompt, text = len(ids), ""
        for _ in range(limit):
            following = int(call(self.logits, np.asarray([ids]), len(ids) - 1)[0, 0].argmax())
            if following in self.tokens.eos_ids:
                break
            ids.append(following)
            text = self.tokens.decode(ids[prompt:])
            if any(stop in text for stop in until):
                break
        return text[: min((text.find(stop) for stop in until if stop in text), default=len(text))]


HARNESS_OPTIONS = ("batch_size", "max_batch_size", "device")  # lm_eval passes these to every model


def register() -> type | None:
    """Register "paretobit" with lm_eval and return its class; None where lm_eval is not installed."""
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError:
        return None
    model: type = register_model("paretobit")(type("ParetobitLM", (Adapter, LM), {"__doc__": Adapter.__doc__}))
    return model


ParetobitLM = register()
