"""Text to tokens and back, and chat messages to text, from the files that travel with a model.

The files are hostile: tokenizer.json goes through the `tokenizers` library, a chat template through a sandbox with
bounds on what it may compute and write.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from threading import Lock
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from paretobit.errors import ParetobitError

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
UNKNOWN = "\ufffd"  # what a part of a character decodes to
PROBE = "a"  # any text that is not empty after normalization: what is added around it is BOS and EOS
MAX_ID = (1 << 31) - 1
MAX_PROMPT = 1 << 24  # characters that a chat template may write
MAX_LINES = 1 << 22  # lines of compiled template that run: thousands of messages, and about two seconds
MAX_MEMORY = 1 << 30  # bytes of address space that rendering may add
_LIMIT = Lock()
HINT_BRING = "bring the model's own tokenizer.json into its folder"


class Tokenizer:
    """The tokenizer in `files` (tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json).

    bos_id:  the token that encode() puts first, None where it adds none
    eos_ids: tokens that end a generation
    Raises ParetobitError where tokenizer.json is missing or broken.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self._tokenizer = self._load()
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._config = self._json(TOKENIZER_CONFIG)
        self.bos_id = self._bos()
        self.eos_ids = self._eos()

    def _load(self) -> Any:
        if TOKENIZER not in self._files:
            raise ParetobitError(f"the model has no {TOKENIZER}", hint=HINT_BRING)
        try:
            from tokenizers import Tokenizer as Library
        except ImportError:
            raise ParetobitError("tokenizing needs the tokenizers package", hint="pip install tokenizers") from None
        try:
            loaded = Library.from_buffer(self._files[TOKENIZER])
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as why:  # a panic of the library is a BaseException
            raise ParetobitError(f"{TOKENIZER} is broken: {str(why)[:200]}", hint=HINT_BRING) from None
        # Settings of somebody's training run, which would cut or fill every text.
        loaded.no_truncation()
        loaded.no_padding()
        return loaded

    def _json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads(self._files.get(name, b"{}"))
        except (ValueError, RecursionError) as why:
            raise ParetobitError(f"{name} is not valid JSON ({why})", hint="fetch the model's files again") from None
        if not isinstance(value, dict):
            raise ParetobitError(f"{name} is not a JSON object", hint="fetch the model's files again")
        return value

    def _bos(self) -> int | None:
        plain, full = self.encode(PROBE, add_special=False), self.encode(PROBE)
        before = next((at for at in range(len(full)) if full[at : at + len(plain)] == plain), 0)
        return full[0] if before else None

    def _eos(self) -> tuple[int, ...]:
        named = self._token("eos_token")
        given = self._json(GENERATION).get("eos_token_id")
        listed = given if isinstance(given, list) else [given]
        ids = [*listed, self._tokenizer.token_to_id(named) if named else None]
        return tuple(dict.fromkeys(i for i in ids if type(i) is int and self._knows(i)))

    def _knows(self, token: int) -> bool:
        return 0 <= token <= MAX_ID and self._tokenizer.id_to_token(token) is not None

    def _token(self, name: str) -> str | None:
        """The text of a special token that tokenizer_config.json names, as a string or an object."""
        value = self._config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        return value if isinstance(value, str) else None

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of `text`; with `add_special`, BOS and EOS where the tokenizer adds them.

        A prompt from chat() holds its special tokens already: encode it with add_special=False.
        """
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special).ids
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as why:  # lone surrogates are a TypeError, a panic is a BaseException
            raise ParetobitError(f"the text cannot be tokenized: {str(why)[:200]}", hint="give valid Unicode") from None

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; special tokens such as BOS leave nothing unless `skip_special` is False.

        Ids beyond the vocabulary leave nothing: many models pad their heads with rows that no token has.
        """
        ids = list(ids)
        wrong = next((i for i in ids if not 0 <= i <= MAX_ID), None)
        if wrong is not None:
            raise ParetobitError(f"{wrong} is not a token id", hint="use this model's own tokens")
        if not ids:
            return ""
        try:
            return self._tokenizer.decode(ids, skip_special_tokens=skip_special)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as why:  # some decoders panic on texts shorter than what they strip
            raise ParetobitError(f"{TOKENIZER} cannot decode: {str(why)[:200]}", hint=HINT_BRING) from None

    def is_hidden(self, token: int) -> bool:
        """Whether decode() leaves `token` out: it is special, or no token has this number."""
        if self.text_of(token) is None:
            return True
        return not self.decode([token]) and self.decode([token], skip_special=False) != ""

    def text_of(self, token: int) -> str | None:
        """`token` as the vocabulary spells it, None where there is no such token."""
        return self._tokenizer.id_to_token(token) if 0 <= token <= MAX_ID else None

    def bytes_of(self, token: int) -> bytes:
        """The bytes that `token` stands for, which may be a part of a character."""
        spelled = self.text_of(token) or ""
        if len(spelled) == 6 and spelled.startswith("<0x"):
            return bytes.fromhex(spelled[3:5])
        text = self.decode([token], skip_special=False)
        if UNKNOWN not in text:
            return text.encode("utf-8", "replace")
        return bytes(_BYTES[c] for c in spelled if c in _BYTES)

    def to_json(self) -> str:
        """The whole tokenizer, as tokenizer.json has it."""
        return self._tokenizer.to_str()

    def special(self, text: str) -> int | None:
        """The special token that is spelled `text`, None where there is none: decode() would never show it."""
        token = self._tokenizer.token_to_id(text)
        return token if token is not None and self.is_hidden(token) else None

    @cached_property
    def decoder(self) -> Mapping[str, Any]:
        """How tokens become text, as tokenizer.json has it; {} where they are put side by side with spaces."""
        found = self._tokenizer.decoder
        return {} if found is None else json.loads(found.__getstate__())

    def chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The prompt for `messages` ({"role": …, "content": …}), ready for the assistant's answer.

        tools: functions that the assistant may call, as OpenAI describes them; a template may leave them out.
        Raises ParetobitError where the model has no chat template, or the template fails, refuses or runs wild.
        """
        source = self.template
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        tokens = {name: self._token(name) or "" for name in names}
        try:
            with _bounded():
                template = _environment().from_string(source)
                fields = {"messages": list(messages), "add_generation_prompt": True, "tools": tools, "documents": None}
                return _joined(template.generate(**fields, **tokens))
        except Exception as why:  # a template is a program: it may raise anything
            raise ParetobitError(
                f"the chat template does not take these messages: {type(why).__name__}: {str(why)[:300]}",
                hint="check their roles and order, or use run instead of chat",
            ) from None

    @cached_property
    def template(self) -> str:
        """The chat template. Raises ParetobitError where the model has none."""
        if TEMPLATE in self._files:
            return self._files[TEMPLATE].decode("utf-8", "replace")
        given = self._config.get("chat_template")
        if isinstance(given, list):  # several, by name
            named = {t.get("name"): t.get("template") for t in given if isinstance(t, dict)}
            given = named.get("default")
        if isinstance(given, str):
            return given
        raise ParetobitError("the model has no chat template", hint="use run instead of chat: it continues plain text")


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level vocabularies write for bytes: GPT-2's."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_letters()


def _joined(parts: Iterable[str]) -> str:
    done, size = [], 0
    for part in parts:
        size += len(part)
        if size > MAX_PROMPT:
            raise ValueError(f"it writes more than {MAX_PROMPT} characters")
        done.append(part)
    return "".join(done)


@contextmanager
def _bounded() -> Iterator[None]:
    """Ends a hostile template: MAX_LINES by counting them (deterministic, and for this thread alone), MAX_MEMORY by the
    process's address space, where the system says how much that is. The lock keeps two threads' limits apart."""
    lines, before = 0, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        if lines > MAX_LINES:
            raise TimeoutError(f"it runs more than {MAX_LINES} lines")
        return trace

    with _LIMIT:
        old = resource.getrlimit(resource.RLIMIT_AS)
        try:
            pages = int(Path("/proc/self/statm").read_bytes().split()[0])
            most = pages * resource.getpagesize() + MAX_MEMORY
            if old[0] == resource.RLIM_INFINITY or most < old[0]:
                resource.setrlimit(resource.RLIMIT_AS, (most, old[1]))
        except OSError:  # not Linux: the other bounds must do
            pass
        try:
            sys.settrace(trace)
            yield
        finally:
            sys.settrace(before)
            resource.setrlimit(resource.RLIMIT_AS, old)


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as Hugging Face's chat templates expect it, in a sandbox."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks the assistant's words for training; here its body is just text."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Bounded(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            """Numbers stay small: the time of one product of huge ones is not bounded by counting lines."""
            if any(isinstance(x, int) and x.bit_length() > 64 for x in (left, right)) or (
                operator == "**" and right > 64
            ):
                raise SecurityError(f"{operator} of numbers beyond 64 bits")
            return super().call_binop(context, operator, left, right)

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes for HTML, which prompts are not."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
