"""A session without a model: it says what a test wants said, and remembers what it was fed.

As a program it is the command line with such a session behind run and chat; the model TALKER never ends:
`python tests/parrot.py run TALKER PROMPT`.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
# ruff: noqa: E402
from checkpoints import SPECIAL, TEMPLATE, tiny_tokenizer

from paretobit.errors import ParetobitError
from paretobit.runtime.generate import Model
from paretobit.runtime.tokenizer import Tokenizer

VOCAB, END = 300, 2
ASSISTANT = "<|im_start|>assistant\n"
Says = Callable[[list[int]], int]


@dataclass(frozen=True)
class Dimensions:
    vocab: int = VOCAB


class ParrotSession:
    """Session's interface. says: the likeliest token after a slot's tokens; its logit is 8, all others' are 0.

    fed: the tokens of every call of feed; patience: calls before one is interrupted as by Ctrl-C; slow: seconds a call.
    """

    def __init__(self, says: Says, context: int = 512, slow: float = 0.0) -> None:
        self.arch, self.threads, self.context, self.activations = Dimensions(), 1, context, "int8"
        self.says, self.slow = says, slow
        self.fed: list[list[int]] = []
        self.slots: dict[int, list[int]] = {}
        self.patience = -1

    def open(self) -> int:
        slot = len(self.fed) + len(self.slots)
        self.slots[slot] = []
        return slot

    def close(self, slot: int) -> None:
        del self.slots[slot]

    def length(self, slot: int) -> int:
        return len(self.slots[slot])

    def truncate(self, slot: int, length: int) -> None:
        assert 0 <= length <= len(self.slots[slot])
        del self.slots[slot][length:]

    def feed(self, slot: int, tokens: Sequence[int]) -> np.ndarray:
        assert len(tokens) > 0 and all(0 <= token < VOCAB for token in tokens)
        if len(tokens) + self.length(slot) > self.context:
            raise ParetobitError("the context is exceeded", hint="this is a test that failed")
        if self.patience == 0:
            raise KeyboardInterrupt
        self.patience -= 1
        time.sleep(self.slow)
        self.fed.append(list(tokens))
        self.slots[slot] += tokens
        return self._logits(self.slots[slot])

    def logits(self, tokens: np.ndarray, first: int = 0) -> np.ndarray:
        rows = [[self._logits(list(row[: at + 1])) for at in range(first, len(row))] for row in tokens]
        return np.stack([np.stack(row) for row in rows])

    def _logits(self, tokens: list[int]) -> np.ndarray:
        logits = np.zeros(VOCAB, np.float32)
        logits[self.says(tokens)] = 8
        return logits


def tiny_files(template: str | None = TEMPLATE) -> dict[str, bytes]:
    files = {
        "tokenizer.json": tiny_tokenizer().encode(),
        "generation_config.json": json.dumps({"eos_token_id": END}).encode(),
        "tokenizer_config.json": json.dumps({"bos_token": SPECIAL[1]}).encode(),
    }
    return files if template is None else {**files, "chat_template.jinja": template.encode()}


def scripted(prompt: int, answer: Sequence[int]) -> Says:
    """After `prompt` tokens says `answer`, then the end."""
    return lambda tokens: answer[len(tokens) - prompt] if len(tokens) - prompt < len(answer) else END


def parrot(tokenizer: Tokenizer) -> Says:
    """In a chat, repeats what the user said last; "count N" is answered with the numbers to N, "hush" with nothing."""

    mark = tokenizer.encode(ASSISTANT, add_special=False)

    def says(tokens: list[int]) -> int:
        start = next(at for at in range(len(tokens), 0, -1) if tokens[at - len(mark) : at] == mark)
        asked = tokenizer.decode(tokens[: start - len(mark)], skip_special=False).rpartition("<|im_start|>user\n")[2]
        asked = asked.removesuffix("\n").removesuffix("<|im_end|>")
        command, _, number = asked.partition(" ")
        answer = " ".join(map(str, range(1, 1 + int(number)))) if command == "count" else f"{asked}!"
        rest = tokenizer.encode("" if asked == "hush" else answer)[len(tokens) - start :]
        return rest[0] if rest else END

    return says


def parrot_model(context: int = 512, slow: float = 0.0, template: str | None = TEMPLATE) -> tuple[Model, ParrotSession]:
    tokenizer = Tokenizer(tiny_files(template))
    session = ParrotSession(parrot(tokenizer), context, slow)
    return Model(session, tokenizer), session


def talker(slow: float = 0.01) -> Model:
    """Never ends: after n tokens it says the n-th letter, again and again."""
    tokenizer = Tokenizer(tiny_files(None))
    letters = [tokenizer.encode(letter)[0] for letter in "abcdefghijklmnopqrstuvwxyz"]
    return Model(ParrotSession(lambda tokens: letters[len(tokens) % 26], 1 << 20, slow), tokenizer)


def loader(slow: float) -> Callable[..., Model]:
    """What stands in for `generate.load`: TALKER never ends, MUTE has no chat template, others repeat what is said."""

    def load(
        path: str,
        threads: int | None = None,
        activations: str = "int8",
        context: int | None = None,
        kv: str | None = None,
    ) -> Model:
        if path == "TALKER":
            return talker(slow)
        return parrot_model(slow=slow, template=None if path == "MUTE" else TEMPLATE)[0]

    return load


def main() -> None:
    from paretobit.cli import main as command
    from paretobit.runtime import generate

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's children ignore it
    generate.load = loader(slow=0.01)
    command(sys.argv[1:])


if __name__ == "__main__":
    main()
