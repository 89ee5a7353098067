"""Functions that a model may call: how its family of chat templates writes a call, as a grammar and back.

A call's text is exact, as the grammar lets nothing else through: `open`, then {"name": "…", KEY: {…}} once or more with
`between` in between, then `close`.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paretobit.runtime.tokenizer import Tokenizer
from paretobit.server.errors import bad
from paretobit.server.fields import Message, NamedTool, Tool
from paretobit.server.grammar import TEXT, Form, closed, inline, lark

NOTHING = {"type": "object", "properties": {}}  # the parameters of a function that says nothing of them


@dataclass(frozen=True)
class Family:
    """known: what its templates contain. marks: pieces of open, between and close that may be special tokens."""

    name: str
    known: str
    open: str
    between: str
    close: str
    key: str = "arguments"
    marks: tuple[str, ...] = ()

    @property
    def trigger(self) -> str:
        """What a text contains where a call begins."""
        return self.marks[0] if self.marks else '{"name": "'

    def render(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """What a model that made these calls has said."""
        texts = [json.dumps({"name": c["name"], self.key: c["arguments"]}, ensure_ascii=False) for c in calls]
        return self.open + self.between.join(texts) + self.close


MARKS = ("<tool_call>", "</tool_call>")
HERMES = Family(
    "hermes", "<tool_call>", "<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", marks=MARKS
)
FAMILIES = (
    HERMES,  # Qwen 2.5 and 3, Hermes, SmolLM3
    Family("mistral", "[TOOL_CALLS]", "[TOOL_CALLS][", ", ", "]", marks=("[TOOL_CALLS]",)),
    Family("llama3", '"parameters"', "", "; ", "", key="parameters"),
)
TAUGHT = (
    "You may call functions. Their signatures, one JSON object a line:\n<tools>\n{tools}\n</tools>\n"
    "To call one, answer with its name and arguments between <tool_call> tags:\n"
    '<tool_call>\n{{"name": "NAME", "arguments": {{…}}}}\n</tool_call>'
)


class Toolbox:
    """The tools of one request. choice: as OpenAI has it; parallel: more than one call in an answer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        tools: Sequence[Tool] | None,
        choice: str | NamedTool | None,
        parallel: bool | None,
    ) -> None:
        names = [tool.function.name for tool in tools or ()]
        if len(set(names)) < len(names):
            raise bad("'tools' has two functions of one name", "tools")
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            raise bad(f"'tool_choice' names '{choice.function.name}', which is not in 'tools'", "tool_choice")
        if choice == "required" and not names:
            raise bad("'tool_choice' is required, but there are no 'tools'", "tool_choice")
        self.forced = choice == "required" or isinstance(choice, NamedTool)
        self.tools = [] if choice == "none" else list(tools or ())
        self._callable = [t for t in self.tools if not isinstance(choice, NamedTool) or t.function == choice.function
                          or t.function.name == choice.function.name]  # fmt: skip
        self._parallel = parallel is not False and not isinstance(choice, NamedTool)
        source = tokenizer.template
        self._native = "tools" in source
        self.family = next((f for f in FAMILIES if self._native and f.known in source), HERMES)
        specials = {mark: tokenizer.special(mark) for mark in self.family.marks}
        self._specials = {mark: token for mark, token in specials.items() if token is not None}
        self.shown = {token: mark for mark, token in self._specials.items()} if self.tools else {}

    def prompt(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
        """The chat's prompt, in the template's own form; taught in a system message where it has none."""
        spoken = [self._spoken(message) for message in messages]
        described = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in self.tools]
        if self._native:
            return tokenizer.chat(spoken, described or None)
        if described:
            text = TAUGHT.format(tools="\n".join(json.dumps(each, ensure_ascii=False) for each in described))
            first = spoken.pop(0)["content"] + "\n\n" if spoken[0]["role"] == "system" else ""
            spoken.insert(0, {"role": "system", "content": first + text})
        return tokenizer.chat(spoken)

    def _spoken(self, message: Message) -> dict[str, Any]:
        content = message.content
        text = content if isinstance(content, str) else "".join(part.text for part in content or ())
        role = "system" if message.role == "developer" else message.role
        calls = [
            {"name": call.function.name, "arguments": _object(call.function.arguments)}
            for call in message.tool_calls or ()
        ]
        if not self._native and (calls or role == "tool"):
            if role == "tool":
                return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
            return {"role": role, "content": text + self.family.render(calls)}
        spoken: dict[str, Any] = {"role": role, "content": text}
        if message.name is not None:
            spoken["name"] = message.name
        if message.tool_call_id is not None:
            spoken["tool_call_id"] = message.tool_call_id
        if calls:
            ids = [call.id for call in message.tool_calls or ()]
            named = zip(ids, calls, strict=True)
            spoken["tool_calls"] = [{"id": i, "type": "function", "function": call} for i, call in named]
        return spoken

    def grammar(self, form: Form | None) -> tuple[str, str] | None:
        """(grammar of an answer, the field it comes from); None where any text will do."""
        if not self.tools:
            return None if form is None else (form.whole, form.param)
        if form is not None and not form.piece:
            raise bad("'tools' and a regular expression or grammar do not go together", "response_format")
        family = self.family
        calls = " | ".join(f"call_{at}" for at in range(len(self._callable)))
        more = f" ({self._literal(family.between)} call)*" if self._parallel else ""
        rules = [f"call: {calls}", f"TEXT: {TEXT}"]
        for at, tool in enumerate(self._callable):
            schema = inline(closed(tool.function.parameters or NOTHING), f"tools[{at}].function.parameters")
            head = json.dumps({"name": tool.function.name})[:-1] + f', "{family.key}": '
            rules.append(f'call_{at}: {json.dumps(head)} {schema} "}}"')
        made = f"call{more} {self._literal(family.close)}"
        begun = f"{self._literal(family.open)} {made}"
        if self.forced:
            start = begun
        elif form is not None:
            start = f"{form.piece} | {begun}"
        elif not family.marks:
            rules.append(r"PLAIN: /[^{](.|\n)*/")
            start = f"PLAIN | {begun}"
        elif family.trigger in self._specials:
            start = f"TEXT | TEXT {begun}"
        else:
            rules.append(f"lead[lazy]: TEXT {json.dumps(family.trigger)}")
            start = f"TEXT | lead {self._literal(family.open.removeprefix(family.trigger))} {made}"
        return lark(f"start: {start}\n" + "\n".join(rules) + "\n"), "tools"

    def _literal(self, text: str) -> str:
        """A text in a grammar; what is one special token, as that."""
        if not text:
            return ""
        marks = "|".join(map(re.escape, self._specials))
        parts = re.split(f"({marks})", text) if marks else [text]
        return " ".join(f"<[{self._specials[p]}]>" if p in self._specials else json.dumps(p) for p in parts if p)


def _object(text: str) -> Any:
    """Arguments as templates want them; as they are where they are no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


class CallReader:
    """Parts an answer's text into what is said and what is called."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._family = toolbox.family
        self._off = not toolbox.tools
        self._held, self._calling = "", False

    def push(self, text: str) -> str:
        """What is said for sure."""
        if self._off:
            return text
        self._held += text
        if self._calling:
            return ""
        trigger = self._family.trigger
        at = self._held.find(trigger)
        if at >= 0 and (self._family.marks or at == 0):
            self._calling = True
            said, self._held = self._held[:at], self._held[at:]
            return said
        most = min(len(self._held), len(trigger) - 1)
        begun = next((n for n in range(most, 0, -1) if trigger.startswith(self._held[-n:])), 0)
        sure = len(self._held) - begun
        said, self._held = self._held[:sure], self._held[sure:]
        return said

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """(the rest of what is said, calls as OpenAI has them). Arguments that were cut off stay so."""
        if not self._calling:
            return self._held, []
        pattern = re.compile(rf'\{{"name": ("(?:[^"\\]|\\.)*"), "{self._family.key}": ')
        calls, at = [], 0
        while found := pattern.search(self._held, at):
            try:
                _, at = json.JSONDecoder().raw_decode(self._held, found.end())
            except (ValueError, RecursionError):
                at = len(self._held)
            calls.append(
                {
                    "id": f"call_{secrets.token_hex(12)}",
                    "type": "function",
                    "function": {"name": json.loads(found[1]), "arguments": self._held[found.end() : at]},
                }
            )
        return "", calls
