"""Limits of time and energy: what is chosen stays within them on a machine whose speed is known, and uses them."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from paretobit import hardware
from paretobit.artifact import Artifact
from paretobit.checkpoint import open_model
from paretobit.checkpoint.base import Checkpoint
from paretobit.evals import blank
from paretobit.pace import predict
from paretobit.planfile import Plan, read_plan
from paretobit.profile import FIXED, Hardware, Power, Speeds
from paretobit.scheme import parse
from paretobit.speed import Spread
from paretobit.verbs.plan import Frontier, plan
from paretobit.verbs.quantize import SCHEMES, quantize
from tests.commands import Command

TEXT = {"tokens": 2048}
SLOWER = 1.3  # than the profile says
NS = {scheme: 20.0 * parse(scheme).weight.bits for scheme in SCHEMES.split(",")}


@pytest.fixture(autouse=True)
def machine(shared_cache: None, monkeypatch: pytest.MonkeyPatch) -> Hardware:
    """This machine, as it never was: 20 ns a bit of a weight and 0.1 ms a token beside, and really slower than that."""
    here = hardware.describe()

    def teams(values: dict) -> dict:
        return {name: {here.cores: value} for name, value in values.items()}

    fixed = dict.fromkeys(FIXED, 0.0) | {"token": 1e5}
    speeds = Speeds(
        {1: 10.0}, {1: 10.0}, {1: 100.0}, teams(NS), teams(NS), {}, teams(fixed), teams(dict.fromkeys(FIXED, 0.0))
    )
    made = replace(here, speeds=speeds, power=Power(2.0, 1e-9, "made up"))
    hardware.save_profile(made)

    def timed(source: Checkpoint, plan: Plan, threads: int, prompt: int) -> Spread:
        return Spread.of([SLOWER * predict(source.arch, plan, made, threads).ms_per_token])

    monkeypatch.setattr(blank, "measured_ms", timed)
    return made


@pytest.fixture
def frontier(model: Path, text: Path) -> Frontier:
    return plan(str(model), calib=str(text), **TEXT)


def really(out: Path, machine: Hardware) -> tuple[float, float]:
    """(ms, J) a token of a packed model on the made-up machine."""
    made = Artifact(out)
    ms = SLOWER * predict(made.arch, made.plan, machine, machine.cores).ms_per_token
    nbytes = sum(made.nbytes(name) for name in made.plan.layers)
    return ms, 2.0 * machine.cores * 1e-3 * ms + 1e-9 * nbytes


def test_the_frontier_tells_time_and_energy(frontier: Frontier, command: Command) -> None:
    times = [row.ms_per_token for row in frontier.rows]
    assert times == sorted(times)  # type: ignore[type-var]
    joules = [row.joules_per_token for row in frontier.rows]
    assert joules == sorted(joules)  # type: ignore[type-var]
    assert frontier.machine is not None
    assert "joules modelled: 2 W a busy core" in frontier.machine


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_what_fits_a_time_takes_it_and_no_more(
    model: Path, text: Path, tmp_path: Path, frontier: Frontier, machine: Hardware, share: float
) -> None:
    """The machine is slower than its profile says: what was timed corrects it."""
    first, last = (SLOWER * (frontier.rows[i].ms_per_token or 0) for i in (0, -1))
    wanted = round(first + share * (last - first), 2)
    quantize(str(model), fit=(f"{wanted}ms",), calib=str(text), out=str(tmp_path / "out"), **TEXT)
    ms, _ = really(tmp_path / "out", machine)
    assert 0.9 * wanted < ms < 1.05 * wanted
    made = Artifact(tmp_path / "out").plan
    assert made.budget == {"ms_per_token": wanted}
    assert made.hardware == machine.hash
    assert made.predicted["ms_per_token"] == pytest.approx(ms, rel=0.05)
    assert f"- asked for: {wanted:g} ms a token" in (tmp_path / "out/README.md").read_text()


def test_energy_is_a_limit_too(model: Path, text: Path, tmp_path: Path, frontier: Frontier, machine: Hardware) -> None:
    wanted = (frontier.rows[0].joules_per_token or 0) * 2
    quantize(str(model), fit=(f"{wanted:.6f}J",), calib=str(text), out=str(tmp_path / "out"), **TEXT)
    _, joules = really(tmp_path / "out", machine)
    assert 0.85 * wanted < joules < 1.05 * wanted


def test_two_limits_hold_together(
    model: Path, text: Path, tmp_path: Path, frontier: Frontier, machine: Hardware
) -> None:
    """Whichever binds."""
    size = frontier.rows[6].size_bytes
    slow = SLOWER * (frontier.rows[6].ms_per_token or 0)
    for ms in (0.7 * slow, 3 * slow):
        out = tmp_path / f"{ms:.3f}"
        quantize(str(model), fit=(f"{ms:.4f}ms", str(size)), calib=str(text), out=str(out), **TEXT)
        assert really(out, machine)[0] < 1.05 * ms
        assert Artifact(out).size_bytes <= size


def test_what_cannot_be_met_names_the_limit_and_the_nearest(
    model: Path, text: Path, tmp_path: Path, frontier: Frontier, command: Command, machine: Hardware
) -> None:
    asked = ("quantize", model, "--calib", text, "--tokens", 2048, "-o", tmp_path / "out")
    error = command(*asked, "--fit", "0.2ms").error
    assert "--fit 0.2ms cannot be met: the least that tiny can take is" in error
    least = error.rpartition("hint: --fit ")[2].partition(",")[0]
    assert least.endswith("ms")
    quantize(str(model), fit=(least,), calib=str(text), out=str(tmp_path / "least"), **TEXT)
    assert really(tmp_path / "least", machine)[0] <= 1.05 * float(least.removesuffix("ms"))
    # Fast enough by the profile, and not in truth.
    between = 1.1 * (frontier.rows[0].ms_per_token or 0)
    assert "cannot be met: the least that tiny can take is" in command(*asked, "--fit", f"{between:.4f}ms").error
    assert not (tmp_path / "out").exists()


def test_the_same_wish_leads_to_the_same_plan(
    model: Path, text: Path, tmp_path: Path, frontier: Frontier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are measured once: a neighbour's load the next day changes nothing."""
    wish = {"fit": ("4ms",), "calib": str(text), **TEXT}
    plan(str(model), out=str(tmp_path / "a.json"), **wish)
    monkeypatch.setattr(blank, "measured_ms", lambda *_, **__: pytest.fail("timed again"))
    plan(str(model), out=str(tmp_path / "b.json"), **wish)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_size_alone_hangs_on_no_machine(
    model: Path, text: Path, tmp_path: Path, frontier: Frontier, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(str(model), fit=("50kB",), out=str(tmp_path / "a.json"), calib=str(text), **TEXT)
    monkeypatch.setattr(hardware, "load_profile", lambda *_: None)
    plan(str(model), fit=("50kB",), out=str(tmp_path / "b.json"), calib=str(text), **TEXT)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_profile_from_before_a_scheme_came_is_made_anew_where_it_is_needed(
    model: Path, text: Path, tmp_path: Path, frontier: Frontier, machine: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paretobit.verbs import probe

    assert machine.speeds is not None
    fewer = {name: value for name, value in machine.speeds.ns_per_weight.items() if name != "w1.5t"}
    speeds = replace(machine.speeds, ns_per_weight=fewer, cached_ns_per_weight=fewer)
    hardware.save_profile(replace(machine, speeds=speeds))
    monkeypatch.setattr(probe, "probe", lambda: pytest.fail("probed"))
    assert plan(str(model), calib=str(text), **TEXT).machine is None
    monkeypatch.setattr(probe, "probe", lambda: Namespace(hardware=machine))
    found = plan(str(model), fit=("5ms",), out=str(tmp_path / "plan.json"), calib=str(text), **TEXT)
    assert found.rows[0].ms_per_token is not None


def test_another_machine_by_name(
    model: Path, text: Path, tmp_path: Path, frontier: Frontier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a published device there is a bound: bytes over bandwidth. Nothing is timed here."""
    monkeypatch.setattr(blank, "measured_ms", lambda *_, **__: pytest.fail("timed here"))
    found = plan(str(model), machine="pi5", calib=str(text), **TEXT)
    assert "at least, from published bandwidth" in (found.machine or "")
    source = open_model(str(model))
    for row in found.rows:
        assert row.ms_per_token is not None
        assert row.ms_per_token > 0
    limit = 1.5 * (found.rows[0].ms_per_token or 0)
    file = tmp_path / "plan.json"
    made = plan(str(model), machine="pi5", fit=(f"{limit:.6f}ms",), out=str(file), calib=str(text), **TEXT)
    decided = read_plan(file.read_bytes(), "plan")
    pi5 = hardware.find("pi5")
    assert predict(source.arch, decided, pi5, pi5.cores).ms_per_token <= 1.001 * limit
    assert decided.hardware == pi5.hash
    assert made.rows[0].ms_measured is None


def test_a_machine_that_nobody_knows_is_refused(command: Command, model: Path, text: Path) -> None:
    error = command("plan", model, "--for", "abacus", "--calib", text, "--tokens", 2048).error
    assert "no device is called 'abacus'" in error


def test_times_are_shown(command: Command, model: Path, text: Path, machine: Hardware) -> None:
    done = command("plan", model, "--calib", text, "--tokens", 2048)
    assert done.code == 0
    assert "ms a token" in done.out
    assert f"{machine.cores} threads" in done.out
    rows = json.loads(command("plan", model, "--calib", text, "--tokens", 2048, "--json").out)["rows"]
    assert all(row["ms_per_token"] > 0 for row in rows)
