"""bench and probe: what scripts rely on, what people read, what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import paretobit as pb
from paretobit import hardware, native, speed
from paretobit.errors import ParetobitError
from paretobit.evals import energy, fixed
from paretobit.evals.energy import Energy, Meter, counters
from paretobit.evals.latency import Latency, Round
from paretobit.evals.memory import Resident
from paretobit.kv import cache_bytes, parse
from paretobit.profile import ASSUMED_POWER, FIXED
from paretobit.reports.results import read
from paretobit.runtime.session import Session
from paretobit.speed import Spread
from paretobit.verbs import bench as bench_verb
from paretobit.verbs import probe as probe_verb
from paretobit.verbs.bench import Bench, Run, parse_threads
from paretobit.verbs.probe import thread_counts
from tests.commands import Command
from tests.unit.test_evals_energy import Machine

KEYS = {
    "prefill_tokens_per_s", "decode_tokens_per_s", "time_to_first_token_s", "resident_bytes", "bandwidth_gb_s", "isa",
    "threads", "ms_per_token",
}  # fmt: skip
ENERGY = Energy(Spread.of([0.004]), "modelled", "by a book", Spread.of([0.01]))


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on a few megabytes: here it only matters that it is done."""
    monkeypatch.setattr(speed, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(speed, "MOST_READ_BYTES", 1 << 20)
    monkeypatch.setattr(speed, "MATRIX_BYTES", 1 << 20)
    monkeypatch.setattr(fixed, "LARGE", fixed.Small(64, 128, 2))
    for name in ("TOKENS", "ROUNDS", "FAR_TOKENS", "FAR_ROUNDS"):
        monkeypatch.setattr(fixed, name, 1)
    read_seconds, multiply_seconds = native.read_seconds, native.multiply_seconds
    monkeypatch.setattr(native, "read_seconds", lambda nbytes, threads, limit: read_seconds(nbytes, threads, 0.0))
    monkeypatch.setattr(
        native, "multiply_seconds", lambda *given, **options: multiply_seconds(*given, **{**options, "limit": 0.0})
    )


@pytest.fixture(scope="module")
def packed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "small"
    pb.quantize(str(model), to="w4g64", method="rtn", out=str(out))
    return out


@pytest.fixture
def no_counters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that counts no energy, whatever this one does."""
    monkeypatch.setattr(energy.counters, "__defaults__", (tmp_path,))


def test_bench_json(packed: Path, command: Command, no_counters: None) -> None:
    done = command("bench", packed, "--threads", "2,1", "--tokens", 3, "--prompt", 5, "--rounds", 1, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert set(found) >= KEYS and found["isa"] == native.isa()
    assert [run["threads"] for run in found["runs"]] == [2, 1]
    assert found["threads"] == 2 and all(found[name] == value for name, value in found["runs"][0].items())
    made = pb.Artifact(packed)
    weights = sum(made.nbytes(name) for name in made.names())
    for run in found["runs"]:
        assert (run["prompt_tokens"], run["tokens"], run["bytes_per_token"]) == (5, 3, weights)
        assert run["bandwidth_gb_s"] == pytest.approx(weights * run["decode_tokens_per_s"] / 1e9)
        assert run["resident_bytes"] >= run["resident_own_bytes"] + run["resident_file_bytes"] > 1e6
        assert run["time_to_first_token_s"] > 0
        assert run["ms_per_token"] * run["decode_tokens_per_s"] == pytest.approx(1000)
        joules = ASSUMED_POWER.joules(run["ms_per_token"] / 1e3, run["threads"], weights)
        assert run["joules_per_token"] == pytest.approx(joules)
        assert (run["energy_method"], run["energy_source"]) == ("modelled", str(ASSUMED_POWER))
        assert "gco2e_per_million_tokens" not in run
        assert all(run["spreads"][name]["median"] == run[name] for name in run["spreads"])
    assert "measuring small" in done.err
    rows = [row for row in read(packed / "results.jsonl") if row.command.startswith("paretobit bench THIS --threads 2")]
    kept = {row.metric: row.value for row in rows}
    assert kept["decode_tokens_per_s"] == found["decode_tokens_per_s"] and set(kept) >= KEYS - {"isa", "threads"}
    assert kept["joules_per_token_modelled"] == found["joules_per_token"] and "joules_per_token" not in kept
    assert {row.metric: row.unit for row in rows}["ms_per_token"] == "ms"
    assert "| decode_tokens_per_s |" in (packed / "README.md").read_text()


@pytest.mark.parametrize("threads", ["", "0", "1,", "two", "-1", "1,99999", "²"])
def test_bench_refuses_odd_threads(packed: Path, threads: str, command: Command) -> None:
    assert "not numbers of threads" in command("bench", packed, "--threads", threads).error


def test_bench_refuses_what_it_cannot_measure(packed: Path, tmp_path: Path, command: Command) -> None:
    assert "do not fit a context of 512" in command("bench", packed, "--prompt", 600).error
    assert "paretobit.json is missing" in command("bench", tmp_path).error


def test_threads() -> None:
    assert parse_threads(None, 6) == (6,)
    assert parse_threads("4, 1,4", 6) == (4, 1)
    assert [thread_counts(cores) for cores in (1, 2, 6, 8)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8)]


def printed(shown: object) -> str:
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def test_bench_as_people_read_it() -> None:
    rounds = (Round(0.5, 2.0, 10.0), Round(0.25, 1.0, 20.0), Round(0.5, 2.0, 10.0))
    latency = Latency(2, 100, 20, 400_000_000, rounds)
    start = Spread.of([0.25])
    runs = (Run(latency, start, Resident(3_500_000, 1, 2), ENERGY), Run(latency, start, None, ENERGY))
    text = printed(bench_verb.show(Bench("small", "avx2", "a cpu", 5_000_000, runs, "4", 6_000_000, "IND")))
    first, second = (line for line in text.splitlines() if line.strip().startswith("2 "))
    # 100 tokens in 0.5 s; 20 in 2 s; 400 MB a token at 10 tokens/s of 10 GB/s
    for figure in ("200.0 (200.0–400.0)", "10.0 (10.0–20.0)", "4.0 (4.0–8.0)", "40%", "0.500 (0.250–0.500)", "0.25 ("):
        assert figure in first and figure in second
    assert "3.5 MB" in first and "unknown" in second
    assert "Medians of 3 rounds" in text and "400.0 MB of weights" in text
    # 2 s for 20 tokens; 0.004 J each, a million of them 4000 J; the grid of India 713 g a kWh of 3.6 MJ
    assert "100.000" in first and "Energy: modelled (by a book)." in text
    assert "CO2 equivalent of a million tokens, grid IND: 0.793 g (2 threads), 0.793 g (2 threads); modelled." in text


def test_bench_measures_energy_where_the_system_counts_it(packed: Path, tmp_path: Path) -> None:
    """10 W idle; 30 W at work, which takes as long as the clock says: a second for each token fed."""
    machine = Machine(tmp_path, {"0": "package-0"})
    session = Session(pb.Artifact(packed), threads=1)
    fed: list[int] = []
    feed = session.feed

    def slow_feed(slot: int, tokens: list[int]) -> object:
        fed.append(session.length(slot))
        machine.run(1.0, package=30)
        return feed(slot, tokens)

    session.feed = slow_feed  # type: ignore[method-assign]
    meter = Meter(counters(tmp_path), clock=lambda: machine.now, sleep=lambda seconds: machine.run(seconds, package=10))
    latency = Latency(1, 5, 3, 1000, (Round(1.0, 1.0, 1.0),) * 2)
    found = bench_verb.decode_energy(session, latency, meter)
    assert (found.method, found.joules.n) == ("measured", 2)
    assert found.joules.median == pytest.approx(20.0)
    assert fed == [0, 5, 6, 7, 5, 6, 7]  # a prompt of five, then twice the three tokens after it


def test_a_grid_that_nobody_knows_is_refused_before_the_work(packed: Path, command: Command) -> None:
    done = command("bench", packed, "--grid", "XXX")
    assert "no carbon intensity of the grid 'XXX'" in done.error and "measuring" not in done.err


def test_bench_on_a_grid(packed: Path, command: Command, no_counters: None) -> None:
    done = command("bench", packed, "--tokens", 3, "--prompt", 5, "--rounds", 1, "--grid", "IND", "--json")
    found = json.loads(done.out)
    assert found["grid"] == "IND"
    assert found["gco2e_per_million_tokens"] == pytest.approx(energy.carbon(1e6 * found["joules_per_token"], "IND"))
    assert found["runs"][0]["gco2e_per_million_tokens"] == found["gco2e_per_million_tokens"]


def test_probe(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    path = tmp_path / "machine.json"
    done = command("probe", "-o", path, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["available"] == list(native.available()) and found["path"] == str(path)
    saved = json.loads(path.read_text())
    assert {name: found[name] for name in saved} == saved and saved["isa"] == native.isa()
    made = hardware.load_profile(path)
    assert made is not None and made.hash == hardware.describe().hash == saved["hash"] and made.speeds is not None
    assert set(made.speeds.ns_per_weight) == set(made.speeds.cached_ns_per_weight) == set(speed.SCHEMES)
    assert all(set(times) == {1, 2} for times in made.speeds.ns_per_weight.values())
    assert set(made.speeds.read_gb_s) == set(made.speeds.cached_read_gb_s) == {1, 2}
    assert max(made.speeds.distance) >= 1 << 20 and all(0 <= x <= 1 for x in made.speeds.distance[1 << 20].values())
    for table in (made.speeds.fixed_ns, made.speeds.far_fixed_ns):
        assert set(table) == set(FIXED) and all(set(times) == {1, 2} for times in table.values())
    assert any(times[1] > 0 for times in made.speeds.fixed_ns.values())
    assert "probing: 100 %" in done.err and "about 0 s left" in done.err
    text = printed(probe_verb.show(pb.probe(out=str(path))))
    assert all(scheme in text for scheme in speed.SCHEMES) and f"saved as {path}" in text


def test_probe_keeps_the_profile_in_the_cache(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 1)
    assert command("probe").code == 0
    made = hardware.load_profile()
    assert made is not None and made.speeds is not None and set(made.speeds.read_gb_s) == {1}


def test_probe_says_where_it_cannot_write(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SCHEMES", ("w2", "w8"))
    (tmp_path / "file").touch()
    assert "there is a file in the way" in command("probe", "-o", tmp_path / "file" / "p.json").error
    with pytest.raises(ParetobitError):
        pb.probe(out=str(tmp_path / "file" / "p.json"))


def test_bench_of_a_small_cache_says_so(packed: Path, command: Command) -> None:
    words = ("bench", packed, "--threads", 1, "--prompt", 300, "--tokens", 4, "--rounds", 1)
    found = {kv: json.loads(command(*words, "--kv", kv, "--json").out) for kv in ("16", "4")}
    arch = pb.Artifact(packed).arch
    for kv, told in found.items():
        sizes = (arch.layers, arch.kv_heads, arch.head_dim, 304)
        assert (told["kv"], told["kv_bytes"]) == (kv, cache_bytes(parse(kv), *sizes))
    commands = [row.command for row in read(packed / "results.jsonl")]
    assert any(line.endswith("--rounds 1 --kv 4") for line in commands)
    assert "16, 8, 4, 3 or 2" in command("bench", packed, "--kv", "1").error
