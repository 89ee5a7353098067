"""Answers that must obey something: schemas drawn at random, expressions, grammars, and tools of each family."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from paretobit.runtime.tokenizer import Tokenizer
from paretobit.server.fields import Message, Tool
from paretobit.server.launch import Server
from paretobit.server.tools import FAMILIES, HERMES, CallReader, Toolbox
from tests.checkpoints import TEMPLATE, tiny_tokenizer
from tests.parrot import tiny_files
from tests.served import packed, running

NAMES = ("a", "name", "sails", "Größe", 'say "hi"', "x y")
WORDS = ("", "ship", "café", "日本", '"quoted"', "line\nbreak")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(packed(tmp_path_factory.mktemp("packed"), max_position_embeddings=4096)) as served:
        yield served


def draw(chance: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema whose values end: all that may be long has a bound."""
    kinds = ["integer", "number", "string", "boolean", "null", "enum", "const"]
    kind = chance.choice(kinds + ["object", "object", "array", "anyOf"] * (depth > 0))
    if kind == "integer":
        least = chance.randrange(-500, 500)
        return chance.choice([{"type": kind, "minimum": least, "maximum": least + chance.randrange(900)}] * 3)
    if kind == "number":
        return {"type": kind, "minimum": 0, "maximum": chance.choice([1, 10, 99.5])}
    if kind == "string":
        pattern = chance.choice([r"^[a-z]{1,5}$", r"^\d{4}-\d{2}$", "^(red|green)$"])
        short = {"type": kind, "maxLength": chance.randrange(0, 12)}
        return chance.choice([short, {"type": kind, "pattern": pattern}, {"type": kind, "format": "date"}])
    if kind == "enum":
        return {"enum": chance.sample([*WORDS, 1, 2.5, None, True, [1, "x"], {"k": []}], 3)}
    if kind == "const":
        return {"const": chance.choice([*WORDS, 7, {"deep": [1, {"er": None}]}])}
    if kind == "anyOf":
        return {"anyOf": [draw(chance, depth - 1) for _ in range(chance.randrange(1, 4))]}
    if kind == "array":
        least = chance.randrange(3)
        return {
            "type": kind, "items": draw(chance, depth - 1), "minItems": least, "maxItems": least + chance.randrange(3)
        }  # fmt: skip
    if kind == "object":
        names = chance.sample(NAMES, chance.randrange(1, 4))
        needed = [name for name in names if chance.random() < 0.7]
        properties = {name: draw(chance, depth - 1) for name in names}
        return {"type": kind, "properties": properties, "required": needed, "additionalProperties": False}
    return {"type": kind}


def obey(server: Server, count: int) -> None:
    """Every answer that was not cut off parses and obeys its schema; nearly all end by themselves."""
    chance, ended = random.Random(0), 0
    with httpx.Client(base_url=server.url, timeout=120) as http:
        for seed in range(count):
            schema = draw(chance)
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
            asked = {
                "messages": [{"role": "user", "content": "?"}], "response_format": form, "seed": seed,
                "temperature": chance.choice([0, 0.7, 2]), "max_tokens": 3000,
            }  # fmt: skip
            answer = http.post("/v1/chat/completions", json=asked)
            assert answer.status_code == 200, (schema, answer.text)
            (choice,) = answer.json()["choices"]
            if choice["finish_reason"] == "stop":
                jsonschema.validate(json.loads(choice["message"]["content"]), schema)
                ended += 1
    assert ended >= 0.98 * count


def test_schemas(server: Server) -> None:
    obey(server, 120)


@pytest.mark.slow
def test_ten_thousand_schemas(server: Server) -> None:
    obey(server, 10_000)


def ask(server: Server, **fields: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 800, "seed": 1, **fields}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=asked, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def test_other_forms(server: Server) -> None:
    for seed in range(5):
        made = ask(server, response_format={"type": "regex", "regex": r"[A-Z][a-z]{2,9} [0-9]+ ships"}, seed=seed)
        assert made["finish_reason"] == "length" or re.fullmatch(
            r"[A-Z][a-z]{2,9} [0-9]+ ships", made["message"]["content"]
        )
        grammar = 'start: ("red" | "blue") " " NUMBER\nNUMBER: /[0-9]{1,3}/'
        made = ask(server, response_format={"type": "grammar", "grammar": grammar}, seed=seed)
        assert re.fullmatch(r"(red|blue) [0-9]{1,3}", made["message"]["content"]) and made["finish_reason"] == "stop"
        made = ask(server, response_format={"type": "json_object"}, seed=seed, max_tokens=3500)
        if made["finish_reason"] == "stop":
            assert isinstance(json.loads(made["message"]["content"]), dict)
        asked = {
            "prompt": "A number:",
            "response_format": {"type": "regex", "regex": "[0-9]{3}"},
            "seed": seed,
            "max_tokens": 3,
        }
        answer = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60).json()
        assert re.fullmatch("[0-9]{3}", answer["choices"][0]["text"])
        assert answer["choices"][0]["finish_reason"] == "stop"  # whole, though there was room for no more


def nested(schema: dict[str, Any], depth: int) -> dict[str, Any]:
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


BOMBS = {
    "nested groups": {"type": "regex", "regex": "(" * 8000 + "a" + ")" * 8000},
    "nested repeats": {"type": "regex", "regex": "((a?){100}){100}a{100}"},
    "wide repeats": {"type": "regex", "regex": "(.*a){500}b"},
    "nested rules": {"type": "grammar", "grammar": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000},
    "doubling rules": {
        "type": "grammar",
        "grammar": "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(1000)) + '\nr1000: "x"',
    },
    "a rule of itself": {"type": "grammar", "grammar": "start: start start | "},
    "a long repeat": {"type": "grammar", "grammar": 'start: "a"{1,1000000}'},
    "nested lists": nested({"type": "integer"}, 150),
    "a reference to itself": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "many patterns": {
        "type": "object",
        "properties": {f"k{i}": {"type": "string", "pattern": f"^(a|b){{1,{i}}}$"} for i in range(600)},
    },
    "a long string": {"type": "string", "minLength": 10**9},
    "a long list": {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
    "a product": {
        "allOf": [
            {"anyOf": [{"type": "object", "properties": {f"{i} {j}": {"type": "integer"}}} for j in range(6)]}
            for i in range(8)
        ]
    },
}  # fmt: skip


def test_forms_that_are_meant_to_break_it(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=20) as http:
        for name, bomb in BOMBS.items():
            schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": bomb}}
            form = bomb if bomb.get("type") in ("regex", "grammar") else schema
            asked = {"messages": [{"role": "user", "content": "?"}], "response_format": form, "max_tokens": 8}
            answer = http.post("/v1/chat/completions", json=asked)
            assert answer.status_code in (200, 400), (name, answer.text)
        assert http.get("/health").status_code == 200


def test_a_schema_and_tools_together(server: Server) -> None:
    """Free to choose, the answer is either what the schema says or a call."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    kinds = set()
    for seed in range(30):
        made = ask(server, tools=[tool("f")], response_format=form, seed=seed, temperature=2.0)
        if made["finish_reason"] == "tool_calls":
            assert made["message"]["content"] is None
            json.loads(made["message"]["tool_calls"][0]["function"]["arguments"])
        elif made["finish_reason"] == "stop":
            assert {*json.loads(made["message"]["content"])} == {"ok"}
        kinds.add(made["finish_reason"])
    assert {"stop", "tool_calls"} <= kinds


def tool(name: str) -> dict[str, Any]:
    parameters = {
        "type": "object", "properties": {"n": {"$ref": "#/$defs/few"}}, "required": ["n"],
        "additionalProperties": False, "$defs": {"few": {"type": "integer", "minimum": 0, "maximum": 9}},
    }  # fmt: skip
    return {"type": "function", "function": {"name": name, "description": "Counts", "parameters": parameters}}


# Families of templates

QWEN = "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}" + TEMPLATE
LLAMA = '{% if tools %}{{ tools | tojson }}"parameters"{% endif %}' + TEMPLATE
MISTRAL = "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[TOOL_CALLS]{% endif %}" + TEMPLATE
TEMPLATES = {"hermes": QWEN, "llama3": LLAMA, "mistral": MISTRAL}


def toolbox(template: str, choice: str | None = None, special: str | None = None) -> tuple[Toolbox, Tokenizer]:
    files = tiny_files(template)
    if special is not None:
        spelled = json.loads(tiny_tokenizer())
        spelled["added_tokens"].append(
            {"id": 300, "content": special, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
        )  # fmt: skip
        files["tokenizer.json"] = json.dumps(spelled).encode()
    tokenizer = Tokenizer(files)
    return Toolbox(tokenizer, [Tool.model_validate(tool("f"))], choice, None), tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_family_writes_is_read_back(name: str) -> None:
    box, tokenizer = toolbox(TEMPLATES[name])
    family = next(family for family in FAMILIES if family.name == name)
    assert box.family is family
    calls = [{"name": "f", "arguments": {"n": 3, "text": '}</tool_call> {"name": "g"'}}, {"name": "f", "arguments": {}}]
    for before in ("", "Let me see.\n") if family.marks else ("",):
        text = before + family.render(calls)
        for size in (1, 3, 1000):
            reader = CallReader(box)
            said = "".join(reader.push(text[at : at + size]) for at in range(0, len(text), size))
            rest, found = reader.end()
            assert said + rest == before and len({call["id"] for call in found}) == 2
            assert [c["function"]["name"] for c in found] == ["f", "f"]
            assert [json.loads(c["function"]["arguments"]) for c in found] == [c["arguments"] for c in calls]
    reader = CallReader(box)
    assert (reader.push("No call < here: {") + reader.end()[0], reader.end()[1]) == ("No call < here: {", [])
    spoken = [Message(role="user", content="Hi")]
    assert '"name": "f"' in box.prompt(tokenizer, spoken)


def test_a_call_that_is_cut_off_stays_so() -> None:
    reader = CallReader(toolbox(QWEN)[0])
    assert reader.push('<tool_call>\n{"name": "f", "arguments": {"n": ') == ""
    assert reader.end()[1][0]["function"] == {"name": "f", "arguments": '{"n": '}


def grammar_takes(box: Toolbox, tokenizer: Tokenizer, text: str) -> bool:
    from llguidance import LLMatcher, LLTokenizer

    vocab = LLTokenizer(tokenizer.to_json(), eos_token=2)
    found = box.grammar(None)
    assert found is not None
    matcher = LLMatcher(vocab, found[0], log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.consume_tokens(tokenizer.encode(text, add_special=False)) and matcher.is_accepting()


@pytest.mark.parametrize("special", [None, "<tool_call>"])
def test_the_grammar_lets_texts_and_right_calls_through(special: str | None) -> None:
    for name, template in TEMPLATES.items():
        box, tokenizer = toolbox(template, special=special)
        right, wrong = ([{"name": "f", "arguments": {"n": n}}] for n in (3, 12))
        other = [{"name": "g", "arguments": {"n": 3}}]
        render = box.family.render
        assert grammar_takes(box, tokenizer, "Hello there."), name
        assert grammar_takes(box, tokenizer, render(right)) and grammar_takes(box, tokenizer, render(right * 2))
        assert not grammar_takes(box, tokenizer, render(wrong)) and not grammar_takes(box, tokenizer, render(other))
        box, tokenizer = toolbox(template, "required", special)
        assert grammar_takes(box, tokenizer, render(right)) and not grammar_takes(box, tokenizer, "Hello there.")
        if box.family is HERMES and special:
            assert box.shown == {300: "<tool_call>"}


def test_a_template_without_tools_is_taught_them() -> None:
    box, tokenizer = toolbox(TEMPLATE)
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"n": 3}'}}
    messages = [
        Message(role="developer", content="Be brief."), Message(role="user", content="Count"),
        Message.model_validate({"role": "assistant", "tool_calls": [call]}),
        Message(role="tool", content="three", tool_call_id="c1"),
    ]  # fmt: skip
    text = box.prompt(tokenizer, messages)
    assert "Be brief.\n\nYou may call functions." in text and '"name": "f"' in text
    assert '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"n": 3}}\n</tool_call>' in text
    assert "<|im_start|>user\n<tool_response>\nthree\n</tool_response>" in text


def test_templates_get_calls_as_objects(tmp_path: Path) -> None:
    template = "{{ messages | tojson }}{{ tools }}<tool_call>"
    box, tokenizer = toolbox(template)
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"n": 3}'}}
    messages = [Message(role="user", content="x"), Message.model_validate({"role": "assistant", "tool_calls": [call]})]
    assert '"arguments": {"n": 3}' in box.prompt(tokenizer, messages)
