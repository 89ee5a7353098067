"""The comparison with llama.cpp, without it: what is exported, who takes turns, what is printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import install_size, runtime
from bench.peers import llama_cpp
from bench.peers.gguf_export import export
from bench.peers.llama_cpp import Match, Peer, Theirs, Turns, bandwidths, file_reads, play, table
from paretobit import open_model
from paretobit.errors import ParetobitError
from paretobit.evals.latency import token_ids
from paretobit.evals.memory import Resident
from paretobit.speed import Spread
from tests.checkpoints import tiny_llama_folder

CHILD = Path(llama_cpp.__file__).with_name("llama_cpp_child.py")


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_exported_file_reads_back_to_the_bit(tmp_path: Path, model_type: str, tied: bool) -> None:
    """fp16 holds the tiny weights exactly; the reader undoes llama.cpp's order of rows and its norms."""
    source = open_model(tiny_llama_folder(tmp_path / "model", model_type=model_type, tied=tied))
    export(source, tmp_path / "whole.gguf")
    back = open_model(tmp_path / "whole.gguf")
    assert back.arch == source.arch
    for name in source.names():
        np.testing.assert_array_equal(back.read(name), source.read(name), err_msg=name)
    matrices = [name for name in source.names() if len(source.shape(name)) == 2]
    everything = sum(np.prod(source.shape(name)) * (2 if name in matrices else 4) for name in source.names())
    looked_up = 0 if tied else 2 * np.prod(source.shape("model.embed_tokens.weight"))
    assert file_reads(tmp_path / "whole.gguf") == everything - looked_up


def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path: Path) -> None:
    windowed = tiny_llama_folder(tmp_path / "a", model_type="mistral", sliding_window=7)
    with pytest.raises(ParetobitError, match="some layers see 7 positions only"):
        export(open_model(windowed), tmp_path / "a.gguf")


class Player:
    def __init__(self, name: str, seconds: float, calls: list[str]) -> None:
        self.name, self.nbytes, self.read_bytes = name, 1000, 2_000_000_000
        self.seconds, self.calls = seconds, calls

    def turn(self, prompt: int, tokens: int) -> tuple[float, float]:
        self.calls.append(f"{self.name}{prompt}/{tokens}")
        return self.seconds * prompt, self.seconds * tokens * 10


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened in which order; nobody waits, and memory reads 40 GB/s."""
    found: list[str] = []

    def read_speed(threads: int) -> Spread:
        found.append(f"read{threads}")
        return Spread.of([40.0])

    monkeypatch.setattr(llama_cpp, "read_speed", read_speed)
    monkeypatch.setattr(llama_cpp, "PAUSE", 0)
    return found


@pytest.fixture
def match(calls: list[str]) -> Match:
    ours, theirs, best = play(
        [Player("a", 0.01, calls), Player("b", 0.03, calls), Player("c", 0.02, calls)], 2, 16, 4, 3
    )
    return Match("tiny", 4000, 2, ours, (theirs, best))


def test_contestants_take_turns_in_rotating_order(match: Match, calls: list[str]) -> None:
    assert calls[:3] == ["a8/2", "b8/2", "c8/2"]
    turns = [["read2", f"{name}16/4"] for name in "abcbcacab"]
    assert calls[3:] == [call for turn in turns for call in turn]


def test_ratios(match: Match) -> None:
    theirs, best = match.theirs
    assert match.best() is best and match.bits(best) == 2.0
    assert match.ours.prefill.median == pytest.approx(100) and match.ours.decode.median == pytest.approx(10)
    assert match.ours.share.median == pytest.approx(0.5)  # 2 GB a token, 10 tokens/s, 40 GB/s
    assert match.decode_ratio(theirs).median == pytest.approx(3) and match.prefill_ratio(best).median == pytest.approx(
        2
    )


def test_a_ratio_is_of_the_same_round() -> None:
    """The machine slows down by four, both alike: no spread at all."""
    ours = Turns("a", 1, 1, 8, 4, (1.0, 4.0), (2.0, 8.0), (1.0, 1.0))
    theirs = Turns("b", 1, 1, 8, 4, (3.0, 12.0), (4.0, 16.0), (1.0, 1.0))
    found = Match("tiny", 8, 1, ours, (theirs,))
    assert found.decode_ratio(theirs) == Spread(2.0, 2.0, 2.0, 2)
    assert found.prefill_ratio(theirs) == Spread(3.0, 3.0, 3.0, 2)


def test_table(match: Match) -> None:
    lines = table([match]).splitlines()
    assert len(lines) == 2 + 3 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| tiny | 2 | a | 0.0 | 2.00 | 10.0 (10.0–10.0) | 50% | 100 (100–100) |  |")
    assert lines[3].endswith("| 3.00 (3.00–3.00) | 3.00 (3.00–3.00) |")
    assert bandwidths([match]) == "read bandwidth in between: 2 threads 40.0 (40.0–40.0) GB/s"
    rows = json.loads(json.dumps(match.to_json()))["rows"]
    assert [row["name"] for row in rows] == ["a", "b", "c"] and "decode_ratio" not in rows[0]
    assert rows[2]["decode_ratio"]["median"] == pytest.approx(2)


STUB = """
import ctypes
from types import SimpleNamespace
LLAMA_FTYPE_MOSTLY_Q8_0 = 7
llama_token = ctypes.c_int32
fed = []
def llama_log_callback(f): return f
def llama_log_set(f, data): pass
def llama_backend_init(): pass
class Params(ctypes.Structure): _fields_ = [("ftype", ctypes.c_int)]
def llama_model_quantize_default_params(): return Params()
def llama_model_quantize(source, out, params):
    open(out, "wb").write(open(source, "rb").read() * params._obj.ftype); return 0
def llama_model_default_params(): return None
def llama_context_default_params(): return SimpleNamespace()
def llama_model_load_from_file(path, params): return None if b"none" in path else path
def llama_init_from_model(model, params): return params
def llama_free(context): pass
def llama_model_free(model): pass
def llama_get_memory(context): return None
def llama_memory_clear(memory, data): fed.clear()
def llama_batch_get_one(array, count): return list(array)
def llama_decode(context, batch): fed.append(batch); return 0
def llama_synchronize(context): pass
def llama_model_get_vocab(model): return None
def llama_vocab_n_tokens(vocab): return 300
def llama_get_logits_ith(context, i): return [context.n_ctx, context.n_threads, len(fed)] + [0] * 300
def llama_print_system_info(): return b"stub"
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter whose llama_cpp is a stub that counts."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "llama_cpp.py").write_text(STUB)
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/stub exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def test_the_peer_answers(python: Path, tmp_path: Path) -> None:
    with Peer(python) as peer:
        assert peer.call("about") == "stub"
        (tmp_path / "whole").write_bytes(b"abc")
        peer.call("quantize", str(tmp_path / "whole"), str(tmp_path / "Q8_0"), "Q8_0")
        assert (tmp_path / "Q8_0").read_bytes() == b"abc" * 7
        peer.call("load", "model", 2, 64)
        prompt_s, decode_s = peer.call("round", [1, 2, 3], [4, 5])
        assert prompt_s > 0 and decode_s > 0
        assert peer.call("logits", [1, 2])[:3] == [64, 2, 1]  # one batch in a cache emptied before
        with pytest.raises(SystemExit, match="does not load none"):
            peer.call("load", "none", 2, 64)
        assert peer.call("about") == "stub"  # an error is an answer too
    with pytest.raises(SystemExit, match="the peer ended"):
        Peer(Path("/bin/true")).call("about")


def test_a_file_takes_its_turns(python: Path, tmp_path: Path) -> None:
    source = open_model(tiny_llama_folder(tmp_path / "model"))
    export(source, tmp_path / "Q8_0.gguf")
    with Peer(python) as peer:
        found = Theirs(peer, tmp_path / "Q8_0.gguf", 1, 64, 300)
        assert found.name == "llama.cpp Q8_0" and found.nbytes == (tmp_path / "Q8_0.gguf").stat().st_size
        assert all(seconds > 0 for seconds in found.turn(16, 3))
        assert peer.call("logits", token_ids(300, 2))[0] == 64


def test_quantized_files_are_made_once(python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETOBIT_CACHE", str(tmp_path / "cache"))
    source = open_model(tiny_llama_folder(tmp_path / "model"))
    with pytest.raises(SystemExit, match="computes something else"):
        llama_cpp.peer_files(source, ["Q8_0"], python)  # logits that count calls
    monkeypatch.setattr(llama_cpp, "check_logits", lambda *given: None)
    made = llama_cpp.peer_files(source, ["Q8_0"], python)["Q8_0"]
    assert [path.name for path in made.parent.iterdir()] == ["Q8_0.gguf"]
    assert llama_cpp.peer_files(source, ["Q8_0"], Path("/bin/false"))["Q8_0"] == made


def test_promises(match: Match, capsys: pytest.CaptureFixture[str]) -> None:
    turns = (match.ours, *match.theirs)
    names = ("paretobit w8", "llama.cpp Q8_0", "llama.cpp Q4_K_M")
    renamed = [Turns(name, *list(vars(t).values())[1:]) for name, t in zip(names, turns, strict=True)]
    found = Match("big", 4000, 2, renamed[0], tuple(renamed[1:]))
    share, decode, prefill = runtime.big_lines(found, "w8")
    assert str(share) == "MISSED share of the read bandwidth, w8, 2 threads, big: 50 (50–50) %, wanted ≥ 85 %"
    assert decode.met and str(decode).startswith(
        "met    decode ÷ llama.cpp Q8_0, w8, 2 threads, big: 3.00 (3.00–3.00) ×"
    )
    assert "prefill 16 ÷ llama.cpp Q4_K_M" in prefill.what and prefill.met  # the faster of the two
    best, _ = runtime.small_lines(found, "w8")
    assert "decode ÷ llama.cpp Q4_K_M" in best.what and best.found.startswith("2.00")


def test_memory_promises() -> None:
    mb = 1_000_000
    total, ours = runtime.judge_memory("w8", Resident(200 * mb, 0, 0), Resident(70 * mb, 0, 0), 100 * mb, 4 * mb)
    assert total.met and total.wanted.startswith("≤ 214.0 MB (file 100.0 + cache 4.0 + 110 MB)")
    assert not ours.met and ours.found.startswith("26.0 MB above 70.0")


def test_start_promises() -> None:
    assert runtime.judge_start("w8", Spread(0.5, 0.4, 0.9, 3), 0.5, "start").met
    assert not runtime.judge_start("w8", Spread(0.51, 0.4, 0.9, 3), 0.5, "start").met


def test_install_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def pip(command: list[object], **options: object) -> None:
        folder = Path(str(command[command.index("--wheel-dir") + 1]))
        folder.mkdir()
        (folder / "a-1-py3-none-any.whl").write_bytes(b"x" * 1_500_000)
        (folder / "b-1-py3-none-any.whl").write_bytes(b"x" * 2_000_000)
        (folder / "note.txt").write_bytes(b"x" * 9_000_000)

    monkeypatch.setattr(install_size.venv, "create", lambda *given, **options: None)
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(sys, "argv", ["install_size"])
    install_size.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["2.00", "1.50", "3.50"] and lines[-1].endswith("under 40 MB")
    assert runtime.install_line().met
