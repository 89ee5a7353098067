"""A conversation with a packed model: its own chat template, its history, and no token computed twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from paretobit.errors import ParetobitError
from paretobit.runtime.generate import Generation, Model, Slot, check_room
from paretobit.runtime.sampler import Sampler, Sampling
from paretobit.work import read_bytes, write_atomically

ROLES = ("system", "user", "assistant")
HINT_FILE = 'give a JSON file that /save wrote: {"messages": [{"role": "user", "content": "…"}, …]}'

Message = dict[str, str]


class Conversation:
    """messages: all that was said, {"role", "content"}, the system message first where there is one.

    Between turns the cache keeps what the next prompt begins with. When the context is full, prompts leave out the
    oldest turns and `tell` is told; messages keep them. `last`: the newest answer. Equal seeds and words give equal
    conversations. Raises ParetobitError where the model has no chat template, or it does not take a system message.
    """

    def __init__(
        self,
        model: Model,
        sampling: Sampling,
        max_new_tokens: int = 512,
        stop: str | Sequence[str] = (),
        system: str | None = None,
        tell: Callable[[str], object] = lambda line: None,
    ) -> None:
        check_room(1, max_new_tokens, model.session.context + max_new_tokens)
        self.model = model
        self.messages: list[Message] = []
        self.last: Generation | None = None
        self._most, self._stop, self._tell = max_new_tokens, stop, tell
        self._forgotten = 0  # messages after the system message that prompts leave out
        self._sampler = Sampler(sampling, model.session.arch.vocab)
        self._slot = Slot(model.session)
        self.system(system)

    def answer(self, text: str) -> Generator[str, None, None]:
        """Say `text`; the answer's pieces as they are made. Closed or interrupted, what was said of it is kept.

        Raises ParetobitError, and forgets `text`, where the template refuses it or it does not fit the context.
        """
        yield from self._reply([*self.messages, {"role": "user", "content": text}])

    def again(self) -> Generator[str, None, None]:
        """Another answer in place of the last; a greedy one is the same."""
        last = self.messages[-1]["role"] if self.messages else ""
        if last not in ("user", "assistant"):
            raise ParetobitError("there is no answer to give again", hint="say something first")
        yield from self._reply(self.messages[:-1] if last == "assistant" else self.messages)

    def system(self, text: str | None) -> None:
        """Put `text` first as the system message, from the next turn on; None or "" takes it away."""
        said = [message for message in self.messages if message["role"] != "system"]
        first = [{"role": "system", "content": text}] if text else []
        self.model.tokenizer.chat([*first, *(said or [{"role": "user", "content": "Hello"}])])
        self.messages = [*first, *said]

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages, self._forgotten = self._first(), 0

    def save(self, path: Path) -> None:
        """Write the messages to `path`: as Markdown where it ends in .md, as JSON otherwise."""
        if path.suffix == ".md":
            text = "\n".join(f"## {m['role']}\n\n{m['content']}\n" for m in self.messages)
        else:
            text = json.dumps({"messages": self.messages}, indent=1, ensure_ascii=False) + "\n"
        write_atomically(path, text.encode("utf-8", "replace"))

    def load(self, path: Path) -> None:
        """Go on from messages in a JSON file: a list, or an object that holds it as "messages"."""
        try:
            found = json.loads(read_bytes(path))
        except (ValueError, RecursionError):
            raise ParetobitError(f"{path} is not JSON", hint=HINT_FILE) from None
        self.messages, self._forgotten = checked(found, str(path)), 0

    def _first(self) -> list[Message]:
        return [message for message in self.messages[:1] if message["role"] == "system"]

    def _reply(self, messages: list[Message]) -> Generator[str, None, None]:
        before, self.messages = (self.messages, self._forgotten), messages
        made = None
        try:
            prompt = self._prompt()
            most = min(self._most, self.model.session.context - len(prompt))
            made = self.last = Generation(self.model, self._slot, prompt, self._sampler, most, self._stop)
            yield from made
        finally:
            if made is not None and (made.text or made.finish):
                self.messages = [*messages, {"role": "assistant", "content": made.text}]
            else:
                self.messages, self._forgotten = before

    def _prompt(self) -> list[int]:
        """The tokens of the messages that fit, with room for an answer."""
        context = self.model.session.context
        first = self._first()
        said, start = self.messages[len(first) :], self._forgotten
        room = min(self._most, context // 4)
        limit = context - room
        while True:
            text = self.model.tokenizer.chat([*first, *said[start:]])
            prompt = self.model.tokenizer.encode(text, add_special=False)
            if len(prompt) <= limit:
                break
            users = (at for at in range(start + 1, len(said)) if said[at]["role"] == "user")
            next_turn = next(users, None)
            if next_turn is None and len(prompt) < context:
                break
            if next_turn is None:
                raise ParetobitError(
                    f"a message of {len(prompt)} tokens does not fit the context of {context}", hint="say it shorter"
                )
            # A quarter more than needed, or every turn from now on would be computed from the start.
            start, limit = next_turn, context - room - context // 4
        if start > self._forgotten:
            self._tell(
                f"the context of {context} tokens is full: the oldest {start} messages are left out from here on"
            )
        self._forgotten = start
        return prompt


def checked(found: Any, name: str) -> list[Message]:
    """The messages in `found`, from a file called `name`. Raises ParetobitError on anything else."""
    listed = found.get("messages") if isinstance(found, dict) else found
    if not isinstance(listed, list):
        raise ParetobitError(f"{name} holds no list of messages", hint=HINT_FILE)
    messages: list[Message] = []
    for at, entry in enumerate(listed):
        role, content = (entry.get("role"), entry.get("content")) if isinstance(entry, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str) or (role == "system" and at > 0):
            raise ParetobitError(f"{name}: message {at + 1} is not one of this kind of conversation", hint=HINT_FILE)
        messages.append({"role": role, "content": content})
    return messages
