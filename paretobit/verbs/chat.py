"""chat: a conversation in the terminal, or with whatever writes lines to stdin. Needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from paretobit.errors import ParetobitError
from paretobit.progress import plain, say, write
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
from paretobit.verbs.verb import Option, Verb

if TYPE_CHECKING:
    from paretobit.runtime.conversation import Conversation

COMMANDS = {
    "/help": "this list",
    "/system TEXT": "put TEXT first as the system message; without TEXT, take it away",
    "/regen": "another answer to what you said last",
    "/save FILE": "write the conversation as JSON, or as Markdown if FILE ends in .md",
    "/load FILE": "go on from a conversation that was saved as JSON",
    "/reset": "begin again; the system message stays",
    "/quit": "leave; so does Ctrl-D, and Ctrl-C stops an answer",
}
Write = Callable[[str], bool]


class Chat:
    """A conversation and the lines that steer it: those of COMMANDS, and what is said to the model."""

    def __init__(self, conversation: Conversation, path: str) -> None:
        self.conversation = conversation
        self.path = path
        self._saved: set[Path] = set()

    def to_json(self) -> dict[str, Any]:
        """All messages, after what stdin says."""
        self.talk(iter(_line, None), lambda piece: True)
        return {"model": self.path, "messages": self.conversation.messages}

    def talk(self, lines: Iterator[str], out: Write, interactive: bool = False) -> None:
        """Answer `lines` until they end or say /quit, or nobody reads `out` any more.

        Errors end it where it is not interactive: a script shall not take another answer for the one it wanted.
        """
        for line in lines:
            try:
                if not (self._obey(line.strip(), out) if line.startswith("/") else self._speak(line, out)):
                    return
            except ParetobitError as why:
                if not interactive:
                    raise
                note(str(why), "red")

    def _speak(self, line: str, out: Write) -> bool:
        return not line.strip() or self._print(self.conversation.answer(line), out)

    def _print(self, pieces: Generator[str, None, None], out: Write) -> bool:
        """Pass an answer on; False when its reader has gone."""
        begun = False
        try:
            with closing(pieces):
                for piece in pieces:
                    begun = True
                    if not out(piece):
                        return False
            begun = True
        except KeyboardInterrupt:
            begun = True
        finally:
            if begun:
                out("\n")
        last = self.conversation.last
        if last is not None and last.finish == "length":
            note(f"cut after {len(last.tokens)} tokens: -n allows more")
        return True

    def _obey(self, line: str, out: Write) -> bool:
        """Do what a command says; False to leave."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name in ("/save", "/load") and not rest:
            raise ParetobitError(f"{name} which file?", hint=f"write {name} FILE")
        if name == "/quit":
            return False
        if name == "/regen":
            return self._print(self.conversation.again(), out)
        if name == "/help":
            for command, what in COMMANDS.items():
                note(f"{command:14} {what}")
        elif name == "/system":
            self.conversation.system(rest)
        elif name == "/reset":
            self.conversation.reset()
        elif name == "/save":
            self._save(Path(rest).expanduser())
        elif name == "/load":
            self.conversation.load(Path(rest).expanduser())
            note(f"{len(self.conversation.messages)} messages")
        else:
            raise ParetobitError(
                f"there is no {name}", hint="/help lists commands; a space before the / says it as text"
            )
        return True

    def _save(self, path: Path) -> None:
        if path.exists() and path.absolute() not in self._saved:
            raise ParetobitError(f"{path} is there already", hint="choose another name, or remove it")
        self.conversation.save(path)
        self._saved.add(path.absolute())
        note(f"{len(self.conversation.messages)} messages in {path}")


def chat(
    out: str,
    *,
    system: Annotated[str | None, Option("A system message, put first.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
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
) -> Chat:
    """Talk with the model, in its own chat template: a line is a message, /help lists commands, Ctrl-D leaves.

    What is printed on stdout are the answers alone; without a terminal, lines come from stdin. From Python, use the
    result's `conversation`. Raises ParetobitError where the model has no chat template.
    """
    from paretobit.runtime.conversation import Conversation
    from paretobit.runtime.generate import load
    from paretobit.runtime.sampler import Sampling, parse_bias

    penalties = (repetition_penalty, presence_penalty, frequency_penalty)
    sampling = Sampling(temperature, top_k, top_p, min_p, *penalties, parse_bias(logit_bias), seed)
    model = load(out, threads, activations, kv=kv)
    return Chat(Conversation(model, sampling, max_new_tokens, stop, system, tell=note), out)


def show(chat: Chat) -> None:
    """Talk until the lines end. Without a terminal, Ctrl-C between answers ends it with 130."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    lines, interrupted = iter(_typed if interactive else _line, None), False
    if interactive:
        note("a line is a message; /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves")
        with suppress(ImportError):
            import readline  # noqa: F401
    while True:
        try:
            if interrupted:
                write("\n")
            chat.talk(lines, write, interactive)
            return
        except KeyboardInterrupt:
            if not interactive:
                sys.exit(130)
            interrupted = True


def _typed() -> str | None:
    """A line from a terminal, with editing and history where Python has readline; None for Ctrl-D."""
    try:
        return input("> ")
    except EOFError:
        write("\n")
        return None


def _line() -> str | None:
    line = sys.stdin.buffer.readline()
    return line.decode("utf-8", "replace").rstrip("\r\n") if line else None


def note(line: str, style: str = "dim") -> None:
    """What is not an answer: on stderr, quieter in a terminal."""
    line = " ".join(plain(line).split("\n"))
    if not sys.stderr.isatty():
        say(line)
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False).print(Text(line, style), soft_wrap=True)


VERB = Verb("chat", chat, show)
