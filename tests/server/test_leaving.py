"""Clients that leave, killed or not: their slots are free at once. A server that leaves finishes what it said."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import paretobit as pb
from paretobit.errors import ParetobitError
from paretobit.server.launch import Server
from tests.served import idle, packed, running, slow_down

ENDLESS = {"model": "tiny", "prompt": "The river", "max_tokens": 450, "logit_bias": {"0": -100, "2": -100}}
LISTENER = """
import socket, sys
port, body = int(sys.argv[1]), sys.argv[2].encode()
raw = socket.create_connection(("127.0.0.1", port))
head = "POST /v1/completions HTTP/1.1\\r\\nhost: localhost\\r\\ncontent-type: application/json\\r\\ncontent-length: "
raw.sendall(f"{head}{len(body)}\\r\\n\\r\\n".encode() + body)
while raw.recv(1000).count(b"data:") == 0:
    pass
print("listening", flush=True)
while raw.recv(1000):
    pass
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def server(out: Path) -> Iterator[Server]:
    with running(out, parallel=2) as served:
        slow_down(served, 0.01)
        yield served


def kill_listeners(server: Server, count: int) -> None:
    engine = server.catalogue.models["tiny"].engine
    body = json.dumps({**ENDLESS, "stream": True})
    for _ in range(count):
        command = [sys.executable, "-S", "-c", LISTENER, str(server.port), body]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as listener:
            assert listener.stdout.readline() == b"listening\n"
            assert engine.load[0] == 1
            listener.kill()
        end = time.monotonic() + 2  # of the four and a half seconds that the answer takes
        while engine.load != (0, 0):
            assert time.monotonic() < end, "the slot of a client that was killed is not free"
            time.sleep(0.002)


def test_killed_clients_free_their_slots(server: Server) -> None:
    kill_listeners(server, 8)


@pytest.mark.slow
def test_a_hundred_killed_clients_free_their_slots(server: Server) -> None:
    kill_listeners(server, 100)


def test_who_waits_for_a_whole_answer_may_leave_too(server: Server) -> None:
    engine = server.catalogue.models["tiny"].engine
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=ENDLESS, timeout=0.3)
    end = time.monotonic() + 2
    while engine.load != (0, 0):
        assert time.monotonic() < end
        time.sleep(0.002)


def test_who_does_not_read_holds_up_nobody(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        body = json.dumps({**ENDLESS, "stream": True, "logprobs": 20}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: "
        raw.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
        answer = httpx.post(f"{server.url}/v1/completions", json={**ENDLESS, "max_tokens": 20}, timeout=20)
        assert answer.json()["usage"]["completion_tokens"] == 20
    idle(server)


def test_a_server_that_is_told_to_stop_finishes_its_answers(out: Path) -> None:
    lines: list[str] = []
    with running(out) as server:
        slow_down(server, 0.005)
        thread = threading.Thread(target=lambda: lines.extend(read(server)))
        thread.start()
        while not lines and server.catalogue.models["tiny"].engine.load == (0, 0):
            time.sleep(0.005)
        server.stop()
        thread.join(30)
    assert lines[-1] == "data: [DONE]" and '"finish_reason":"length"' in lines[-2]


def read(server: Server) -> list[str]:
    asked = {**ENDLESS, "max_tokens": 100, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=asked, timeout=30) as answer:
        return [line for line in answer.iter_lines() if line]


def test_the_command(out: Path, tmp_path: Path) -> None:
    code = "import sys; from paretobit.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "serve", str(out), "--port", "0", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stderr.readline().startswith("loading; http://127.0.0.1:")
        url = run.stderr.readline().split()[-1]
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "tiny"
        run.send_signal(signal.SIGTERM)
        out_text, err = run.communicate(timeout=30)
    assert out_text == "" and "Traceback" not in err


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from paretobit.cli import main; main(['serve', 'OUT'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (
        done.returncode == 2 and done.stderr == "error: serving needs uvicorn; hint: pip install 'paretobit[serve]'\n"
    )


def test_a_model_that_cannot_be_loaded_ends_it(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paretobit.server import launch

    def broken(*arguments: object) -> None:
        raise ParetobitError("it is broken", hint="pack it again")

    monkeypatch.setattr(launch, "load", broken)
    with pytest.raises(ParetobitError, match="it is broken"):
        pb.serve(str(out), port=0).run()


def crowd(out: Path, minutes: float, clients: int) -> None:
    """Clients that come, go and send nonsense: whoever gets an answer gets the one that the model gives alone."""
    from bench.server import Load

    with running(out, parallel=8, queue=2 * clients, cache_mb=4) as server:
        load = Load(str(out), server.url, minutes, clients)
        load.run()
        idle(server)
        engine = server.catalogue.models["tiny"].engine
        assert engine.model.session.kv_bytes <= 4e6
    assert load.check() == 0 and min(load.counts[kind] for kind in ("finished", "left", "nonsense")) > 0, load.counts


def test_a_crowd(out: Path) -> None:
    crowd(out, 0.05, 12)


@pytest.mark.slow
def test_a_large_crowd(out: Path) -> None:
    crowd(out, 3, 64)
