"""What the server does not take: unknown fields by their names, what is too large, wrong keys, and who crawls."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import paretobit as pb
from paretobit.errors import ParetobitError
from paretobit.server import guard, listen
from paretobit.server.launch import Server
from tests.served import idle, packed, running, slow_down

USER = {"role": "user", "content": "The river"}
CHAT = {"model": "tiny", "messages": [USER], "max_tokens": 2}
TEXT = {"model": "tiny", "prompt": "The river", "max_tokens": 2}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def server(out: Path) -> Iterator[Server]:
    with running(out, parallel=2) as served:
        yield served


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def error(answer: httpx.Response, status: int = 400) -> dict:
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert {*found} == {"error"} and {*found["error"]} == {"message", "type", "param", "code"}
    return found["error"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        *[({name: 1}, name) for name in ("frequency", "store", "metadata", "reasoning_effort", "best_of", "functions")],
        ({"messages": [{**USER, "mood": "gay"}]}, "messages[0].mood"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages[0].content[0].image_url"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{**USER, "tool_call_id": "x"}]}, "messages[0].tool_call_id"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 2, "max_completion_tokens": 2}, "max_tokens"),
        ({"stop": [""]}, "stop[0]"),
        ({"logit_bias": {"x": 1}}, None),
        ({"logit_bias": {"1": 101}}, None),
        ({"logit_bias": {"300": 1}}, None),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": True}}, "stream_options.x"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": [{"type": "web"}]}, "tools[0].type"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "regex", "regex": "(("}}, "response_format.regex"),
        ({"response_format": {"type": "grammar", "grammar": "start: nothing"}}, "response_format.grammar"),
        ({"tools": [TOOL], "response_format": {"type": "regex", "regex": "a"}}, "response_format"),
        *[
            ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
             "response_format.json_schema")
            for schema in ({"type": "strin"}, {"type": "string", "pattern": "(("}, {"$ref": "http://x/y"},
                           {"type": "array", "uniqueItems": True}, {"type": "string", "format": "no"},
                           {"type": "object", "description": "x" * 70_000})
        ],
    ],
)  # fmt: skip
def test_a_chat_that_is_refused_says_why(http: httpx.Client, change: dict, param: str | None) -> None:
    why = error(http.post("/v1/chat/completions", json={**CHAT, **change}))
    assert param is None or why["param"] == param or why["param"].startswith(param), why
    assert why["message"] and why["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": []}, None),
        ({"prompt": [[]]}, None),
        ({"prompt": ""}, None),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 100_000}, None),
        ({"messages": [USER]}, "messages"),
    ],
)
def test_a_completion_that_is_refused_says_why(http: httpx.Client, change: dict, param: str | None) -> None:
    why = error(http.post("/v1/completions", json={**TEXT, **change}))
    assert param is None or (why["param"] or "").startswith(param), why


def test_what_is_too_long_has_the_code_that_clients_look_for(http: httpx.Client) -> None:
    why = error(http.post("/v1/completions", json={**TEXT, "prompt": "x" * 5000}))
    assert why["code"] == "context_length_exceeded" and "512" in why["message"]


def test_nulls_are_what_is_left_out(http: httpx.Client) -> None:
    nulls = dict.fromkeys(("stop", "seed", "tools", "logit_bias", "response_format", "store", "user"))
    assert http.post("/v1/chat/completions", json={**CHAT, **nulls}).status_code == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a":' * 5000, b'{"model": "\\ud800"}', b"NaN"]
)
def test_what_is_no_request(http: httpx.Client, body: bytes) -> None:
    error(http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"}))


def test_addresses_and_methods(http: httpx.Client) -> None:
    error(http.get("/nothing"), 404)
    error(http.get("/v1/chat/completions"), 405)
    error(http.get("/metrics"), 404)  # was not asked for
    for path in ("/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "//etc/passwd"):
        assert http.get(path).status_code == 404
    error(http.post("/v1/chat/completions", content="x", headers={"content-type": "text/plain"}), 415)
    assert http.options("/v1/chat/completions", headers={"origin": "http://evil"}).status_code == 405  # no CORS
    assert "access-control-allow-origin" not in http.get("/health", headers={"origin": "http://evil"}).headers


def test_sizes(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MOST_BODY", 1000)
    error(http.post("/v1/chat/completions", json={**CHAT, "user": "x" * 2000}), 413)

    def parts() -> Iterator[bytes]:
        yield from [b" " * 400] * 4

    json_kind = {"content-type": "application/json"}
    error(http.post("/v1/chat/completions", content=parts(), headers=json_kind), 413)
    with socket.create_connection(("127.0.0.1", http.base_url.port), timeout=20) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 40_000)
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


def test_who_sends_too_slowly_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    for begun in (b"", b"GET /health HTTP/1.1\r\nhost: loc"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
            raw.sendall(begun)
            assert raw.recv(100) == b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        raw.sendall(
            b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n"
            b"content-type: application/json\r\n\r\n{"
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 408")


def test_answers_do_not_wait_for_acknowledgements(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Head and body are two writes: without TCP_NODELAY the second comes 40 ms late."""
    made, seen = listen.Patient.connection_made, []

    def noticed(self: listen.Patient, transport: asyncio.Transport) -> None:
        peer = transport.get_extra_info("socket")
        seen.append(peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(self, transport)

    monkeypatch.setattr(listen.Patient, "connection_made", noticed)
    with httpx.Client(base_url=http.base_url, timeout=30) as client:
        assert client.get("/health").status_code == 200
    assert seen and all(seen)


def test_names_of_others(http: httpx.Client) -> None:
    error(http.get("/health", headers={"host": "evil.example"}), 403)
    for name in ("localhost", "localhost:99", "127.0.0.1:8080", "[::1]:8080", "[::1]"):
        assert http.get("/health", headers={"host": name}).status_code == 200


def test_keys(out: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# of the house\nsecret-one\n\nsecret-two\nclé\n", encoding="utf-8")
    with running(out, api_key_file=str(keys)) as server, httpx.Client(base_url=server.url) as http:
        for header in ({}, {"authorization": "Bearer secret"}, {"authorization": "secret-one"},
                       {"authorization": "Bearer # of the house"}, {"authorization": "Bearer \xe9"}):  # fmt: skip
            raw = {name: value.encode("latin-1") for name, value in header.items()}
            error(http.post("/v1/chat/completions", json=CHAT, headers=raw), 401)
            error(http.get("/v1/models", headers=raw), 401)
        for key in ("secret-one", "secret-two", "clé"):
            raw = {"authorization": f"Bearer {key}".encode()}
            answer = http.post("/v1/chat/completions", json=CHAT, headers=raw)
            assert answer.status_code == 200
        assert http.get("/health").status_code == http.get("/").status_code == 200
        assert http.get("/health", headers={"host": "example.org"}).status_code == 200  # the key is what counts


def test_settings_that_are_refused(out: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("# nothing\n")
    for options, what in (
        ({"host": "0.0.0.0"}, "lets others in without a key; hint: give --api-key-file"),
        ({"api_key_file": str(empty)}, "holds no key"),
        ({"api_key_file": str(tmp_path / "none")}, "none"),
        ({"parallel": 0}, "--parallel 0 is out of range"),
        ({"port": 70000}, "--port 70000"),
        ({"host": "no.such.host.example", "insecure": True}, "cannot listen"),
        ({"draft": str(tmp_path)}, "hint"),
    ):
        with pytest.raises(ParetobitError, match=what):
            pb.serve(str(out), **{"port": 0, **options})
    with pytest.raises(ParetobitError, match="two models are called tiny"):
        pb.serve(str(out), str(out))
    with pytest.raises(ParetobitError, match="no packed model is named"):
        pb.serve()


# Bodies that went wrong on their way


def mangled(valid: bytes, chance: random.Random) -> bytes:
    """`valid`, changed in a place or in a value."""
    if chance.random() < 0.5:
        body = bytearray(valid)
        for _ in range(chance.randrange(1, 5)):
            at = chance.randrange(len(body)) if body else 0
            kind = chance.randrange(4)
            if kind == 0:
                body[at : at + 1] = bytes([chance.randrange(256)])
            elif kind == 1:
                del body[at : at + chance.randrange(1, 20)]
            elif kind == 2:
                body[at:at] = bytes(chance.choices(b'{}[],:"\\0eE-+.null', k=chance.randrange(1, 8)))
            else:
                body = body[: max(1, at)]
        return bytes(body)
    tree = json.loads(valid)
    odd = [None, True, -1, 0, 1e308, 2**70, "", "x" * 999, "\u0000", [], {}, [[]], {"a": {}}, [None], "\ud83d\ude00"]
    spots: list[tuple[object, object]] = []

    def walk(node: object) -> None:
        pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in list(pairs):
            spots.append((node, key))
            walk(value)

    walk(tree)
    for _ in range(chance.randrange(1, 3)):
        node, key = chance.choice(spots)
        node[key] = copy.deepcopy(chance.choice(odd))
    return json.dumps(tree).encode()


def bombard(server: Server, count: int) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}}}
    valid = [
        ("/v1/chat/completions", {
            **CHAT, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "stop": ["a", "b"], "seed": 1, "n": 2,
            "presence_penalty": 0.1, "frequency_penalty": 0.1, "repetition_penalty": 1.1, "logit_bias": {"5": 1},
            "logprobs": True, "top_logprobs": 2, "tools": [TOOL], "tool_choice": "auto", "user": "me",
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [
                {"type": "text", "text": "Hello"}]}],
        }),
        ("/v1/completions", {**TEXT, "echo": True, "logprobs": 2, "prompt": [[5, 6], [7]], "stream": True,
                             "stream_options": {"include_usage": True}}),
        ("/v1/responses", {"model": "tiny", "input": [{"role": "user", "content": "Hi"}], "max_output_tokens": 2,
                           "text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}}),
        ("/tokenize", {"content": "Hello", "add_special": False}),
        ("/detokenize", {"tokens": [1, 2, 3]}),
    ]  # fmt: skip
    chance, seen = random.Random(7), {}
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for _ in range(count):
            path, body = chance.choice(valid)
            sent = mangled(json.dumps(body).encode(), chance)
            answer = http.post(path, content=sent, headers={"content-type": "application/json"})
            assert answer.status_code in (200, 400, 404, 413), (path, sent, answer.text)
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            if answer.status_code != 200:
                error(answer, answer.status_code)
            elif "event-stream" in answer.headers["content-type"]:
                assert '"server_error"' not in answer.text, sent
        assert http.get("/health").status_code == 200
    idle(server)
    assert min(seen[200], seen[400]) > count // 50, seen


def test_malformed_bodies(server: Server) -> None:
    bombard(server, 120)


@pytest.mark.slow
def test_ten_thousand_malformed_bodies(server: Server) -> None:
    bombard(server, 10_000)


def test_a_full_queue(out: Path) -> None:
    endless = {**TEXT, "max_tokens": 400, "logit_bias": {"0": -100, "2": -100}, "stream": True}
    with running(out, parallel=1, queue=1) as server, httpx.Client(base_url=server.url, timeout=30) as http:
        slow_down(server)
        with http.stream("POST", "/v1/completions", json=endless) as first:
            next(first.iter_lines())
            with http.stream("POST", "/v1/completions", json=endless):
                refused = http.post("/v1/completions", json=TEXT)
        why = error(refused, 429)
        assert int(refused.headers["retry-after"]) >= 1 and why["code"] == "queue_full"
        idle(server)
        assert http.post("/v1/completions", json=TEXT).status_code == 200


def test_health_while_loading(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from paretobit.server import launch

    go, load = threading.Event(), launch.load

    def slowly(*arguments: object) -> object:
        go.wait(30)
        return load(*arguments)

    monkeypatch.setattr(launch, "load", slowly)
    server = pb.serve(str(out), port=0).server
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + 20
        with httpx.Client(base_url=server.url) as http:
            answer = http.get("/health")
            assert answer.status_code == 503 and answer.json() == {"status": "loading"}
            error(http.post("/v1/completions", json=TEXT), 503)
            go.set()
            while http.get("/health").status_code == 503:
                assert time.monotonic() < end
                time.sleep(0.02)
    finally:
        go.set()
        server.stop()
        thread.join(30)
