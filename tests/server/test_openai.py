"""The server as OpenAI's own Python client sees it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from pydantic import BaseModel

from paretobit.runtime.sampler import Sampling
from paretobit.server.launch import Server
from tests.served import alone, packed, running

HELLO = [{"role": "user", "content": "The river runs"}]
NO_END = {"0": -100, "2": -100}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(packed(tmp_path_factory.mktemp("packed"), max_position_embeddings=4096), metrics=True) as served:
        yield served


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def expected(server: Server, most: int, prompt: str | None = None, **sampling: object) -> str:
    """What the model says to HELLO, or after a prompt, alone."""
    model = server.catalogue.models["tiny"].model
    text = model.tokenizer.chat(HELLO) if prompt is None else prompt
    with_it = Sampling(**sampling)
    return alone(model, model.tokenizer.encode(text, add_special=prompt is not None), most, with_it)


def test_a_chat(server: Server, client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=12, temperature=0, user="me")
    (choice,) = made.choices
    assert choice.message.content == expected(server, 12) and choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length") and made.object == "chat.completion" and made.model == "tiny"
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens > 10
    again = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=12, temperature=0)
    assert again.choices[0].message.content == choice.message.content and again.id != made.id
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1


def test_a_stream_of_chunks(server: Server, client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=12, temperature=0, stream=True, logit_bias=NO_END,
            stream_options={"include_usage": True}, logprobs=True, top_logprobs=2,
        )
    )  # fmt: skip
    assert len({chunk.id for chunk in chunks}) == 1 and {c.object for c in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    last, used = chunks[-2], chunks[-1]
    assert last.choices[0].finish_reason == "length" and last.choices[0].delta.content is None
    assert [c.choices[0].finish_reason for c in chunks[:-2]] == [None] * (len(chunks) - 2)
    assert used.choices == [] and used.usage.completion_tokens == 12 and all(c.usage is None for c in chunks[:-1])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    bias = {int(token): value for token, value in NO_END.items()}
    assert text == expected(server, 12, logit_bias=bias)
    noted = [each for c in chunks[:-1] if c.choices[0].logprobs for each in c.choices[0].logprobs.content]
    assert len(noted) == 12
    for each in noted:
        assert len(each.top_logprobs) == 2 and each.logprob <= 0
        assert each.top_logprobs[0].logprob >= each.top_logprobs[1].logprob
    said = b"".join(bytes(each.bytes) for each in noted)
    assert said.decode("utf-8", "replace") == text


def test_choices_have_seeds_of_their_own(server: Server, client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 8, "seed": 5, "temperature": 1.0, "n": 5}
    made = client.chat.completions.create(**asked)
    assert [c.message.content for c in made.choices] == [
        expected(server, 8, temperature=1.0, seed=5 + at) for at in range(5)
    ]
    assert [c.index for c in made.choices] == list(range(5))
    texts, prompt = [""] * 5, made.usage.prompt_tokens
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [c.message.content for c in made.choices]
    assert prompt == client.chat.completions.create(**{**asked, "n": 1}).usage.prompt_tokens


def test_stop_strings(server: Server, client: openai.OpenAI) -> None:
    whole = expected(server, 40)
    stop = whole[10:12]
    made = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=40, temperature=0, stop=[stop])
    assert made.choices[0].message.content == whole[: whole.index(stop)] and made.choices[0].finish_reason == "stop"


def test_completions(server: Server, client: openai.OpenAI) -> None:
    made = client.completions.create(model="tiny", prompt="The capital of", max_tokens=9, temperature=0)
    assert made.choices[0].text == expected(server, 9, "The capital of") and made.object == "text_completion"
    tokens = server.catalogue.models["tiny"].model.tokenizer.encode("The capital of")
    many = client.completions.create(model="tiny", prompt=[tokens, tokens[:2]], max_tokens=9, temperature=0, n=2)
    assert [c.text for c in many.choices[:2]] == [made.choices[0].text] * 2 and len(many.choices) == 4
    assert many.usage.prompt_tokens == len(tokens) + 2
    text = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(
            model="tiny", prompt="The capital of", max_tokens=9, temperature=0, stream=True, echo=True
        )
    )
    assert text == "The capital of" + made.choices[0].text


def test_scores_of_a_prompt(server: Server, client: openai.OpenAI) -> None:
    """As lm-eval asks for the likelihood of a text."""
    import numpy as np

    model = server.catalogue.models["tiny"].model
    tokens = model.tokenizer.encode("The people of the town walk along it in the evening." * 3)
    logits = model.logits(tokens).astype(np.float64)
    exact = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for most in (0, 1):
        made = client.completions.create(model="tiny", prompt=tokens, max_tokens=most, temperature=0, echo=True,
                                         logprobs=1)  # fmt: skip
        found = made.choices[0].logprobs
        assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(tokens) + most
        assert found.token_logprobs[0] is None and found.text_offset[0] == 0
        wanted = [exact[at, token] for at, token in enumerate(tokens[1:])]
        assert found.token_logprobs[1 : len(tokens)] == pytest.approx(wanted, abs=1e-9)
        for at in range(len(tokens) - 1):
            best = max(found.top_logprobs[at + 1].values())
            assert best == pytest.approx(exact[at].max(), abs=1e-9)


def test_async(server: Server) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:

            async def one(at: int) -> str:
                prompt = "The river runs through the old town" + " and" * at
                stream = await client.completions.create(
                    model="tiny", prompt=prompt, max_tokens=10, temperature=0, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            return list(await asyncio.gather(*(one(at) for at in range(12))))

    wanted = [expected(server, 10, "The river runs through the old town" + " and" * at) for at in range(12)]
    assert asyncio.run(ask()) == wanted


class Ship(BaseModel):
    sails: int
    fast: bool


def test_parse(client: openai.OpenAI) -> None:
    made = client.chat.completions.parse(model="tiny", messages=HELLO, response_format=Ship, seed=1, max_tokens=200)
    assert isinstance(made.choices[0].message.parsed, Ship)
    with client.chat.completions.stream(
        model="tiny", messages=HELLO, response_format=Ship, seed=2, max_tokens=200
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Ship)
    made = client.responses.parse(model="tiny", input="A ship", text_format=Ship, max_output_tokens=200)
    assert isinstance(made.output_parsed, Ship)


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Says what the weather is",
            "parameters": {
                "type": "object",
                "properties": {"days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
                "required": ["days", "unit"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "forecast")
]


def test_tools(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": HELLO, "tools": TOOLS, "max_tokens": 300, "seed": 3}
    named = {"type": "function", "function": {"name": "forecast"}}
    made = client.chat.completions.create(**asked, tool_choice=named)
    (call,) = made.choices[0].message.tool_calls
    assert call.function.name == "forecast" and made.choices[0].finish_reason == "tool_calls"
    assert {*json.loads(call.function.arguments)} == {"days", "unit"} and made.choices[0].message.content is None
    made = client.chat.completions.create(**asked, tool_choice="required", parallel_tool_calls=False)
    assert len(made.choices[0].message.tool_calls) == 1
    messages = [
        *HELLO, made.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    ]  # fmt: skip
    after = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS, max_tokens=5)
    assert after.choices[0].message.content is not None
    none = client.chat.completions.create(**asked, tool_choice="none")
    assert none.choices[0].message.tool_calls is None
    calls: dict[int, str] = {}
    for chunk in client.chat.completions.create(**asked, tool_choice="required", stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            calls[call.index] = calls.get(call.index, "") + (call.function.arguments or "")
    assert calls and all({*json.loads(text)} == {"days", "unit"} for text in calls.values())


def test_responses(server: Server, client: openai.OpenAI) -> None:
    made = client.responses.create(model="tiny", input=HELLO, max_output_tokens=12, temperature=0)
    assert made.output_text == expected(server, 12) and made.status in ("completed", "incomplete")
    events = list(client.responses.create(model="tiny", input=HELLO, max_output_tokens=12, temperature=0, stream=True))
    assert events[0].type == "response.created" and [e.sequence_number for e in events] == list(range(len(events)))
    assert events[-1].response.output_text == made.output_text
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == made.output_text
    assert events[-1].response.usage.output_tokens == made.usage.output_tokens > 0
    tool = {"type": "function", "name": "weather", "parameters": TOOLS[0]["function"]["parameters"]}
    made = client.responses.create(model="tiny", input="?", tools=[tool], tool_choice="required", max_output_tokens=300)
    assert {*json.loads(made.output[0].arguments)} == {"days", "unit"} and made.output[0].type == "function_call"
    after = client.responses.create(
        model="tiny",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "?"}]},
            made.output[0].model_dump(),
            {"type": "function_call_output", "call_id": made.output[0].call_id, "output": "sunny"},
        ],
        max_output_tokens=3,
    )
    assert after.usage.output_tokens <= 3


def test_models_and_tokens(server: Server, client: openai.OpenAI, tmp_path: Path) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "paretobit"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'; this server has tiny"):
        client.models.retrieve("gpt")
    import httpx

    said = httpx.post(f"{server.url}/tokenize", json={"content": "The river"}).json()
    assert httpx.post(f"{server.url}/detokenize", json={"tokens": said["tokens"]}).json() == {"content": "The river"}
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    meter = httpx.get(f"{server.url}/meter").json()
    assert meter["resident_bytes"] > 1e6 and meter["joules"] > 0 and meter["energy"] in ("measured", "modelled")
    assert meter["models"]["tiny"]["generated_tokens"] > 0 and meter["models"]["tiny"]["running"] == 0
    figures = httpx.get(f"{server.url}/metrics").text
    assert 'paretobit_prefix_lookups_total{hit="yes",model="tiny"}' in figures
    with pytest.raises(openai.BadRequestError, match="makes no embeddings"):
        client.embeddings.create(model="tiny", input="x")
