"""Energy by counters, on a made-up tree of the system's files, and by the model; each says which of the two it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from paretobit.errors import ParetobitError
from paretobit.evals import energy
from paretobit.evals.energy import MEASURED, MODELLED, Meter, carbon, counters
from paretobit.profile import Power

LIMIT = 262_143_328_850


class Machine:
    """Counters in files, and a clock; every domain draws watts of its own while idle and while working."""

    def __init__(self, root: Path, domains: dict[str, str]) -> None:
        self.folder, self.now, self.watts = root / "sys/class/powercap", 0.0, dict.fromkeys(domains, 0.0)
        for number, name in domains.items():
            zone = self.folder / f"intel-rapl:{number}"
            zone.mkdir(parents=True)
            (zone / "name").write_text(f"{name}\n")
            (zone / "max_energy_range_uj").write_text(f"{LIMIT}\n")
            (zone / "energy_uj").write_text("0\n")

    def set(self, number: str, microjoules: int) -> None:
        (self.folder / f"intel-rapl:{number}/energy_uj").write_text(f"{microjoules}\n")

    def run(self, seconds: float, **watts: float) -> None:
        self.now += seconds
        for path in self.folder.iterdir():
            name = (path / "name").read_text().strip().split("-")[0]
            joules = watts.get(name, 0.0) * seconds
            value = int((path / "energy_uj").read_text()) + round(joules * 1e6)
            (path / "energy_uj").write_text(f"{value % (LIMIT + 1)}\n")


def test_packages_and_memories_are_counted_and_their_parts_are_not(tmp_path: Path) -> None:
    names = {"0": "package-0", "0:0": "core", "0:1": "dram", "0:2": "uncore", "1": "package-1", "2": "psys"}
    Machine(tmp_path, names)
    assert sorted(counter.name for counter in counters(tmp_path)) == ["dram", "package", "package"]


def test_work_is_what_is_drawn_above_idle(tmp_path: Path) -> None:
    """10 + 2 W idle; 35 + 5 W at work, ten pieces in 2 s: (40 - 12) · 2 / 10 J each."""
    machine = Machine(tmp_path, {"0": "package-0", "0:0": "core", "0:1": "dram"})
    meter = Meter(
        counters(tmp_path),
        clock=lambda: machine.now,
        sleep=lambda seconds: machine.run(seconds, package=10, dram=2, core=9),
    )
    found = meter.measure(lambda: machine.run(2.0, package=35, dram=5, core=30), 10, 4, 1e9, runs=3)
    assert found.method == MEASURED
    assert found.joules.n == 3
    assert found.joules.median == pytest.approx(5.6)
    assert found.seconds.median == pytest.approx(0.2)
    assert found.idle_watts is not None
    assert found.idle_watts.median == pytest.approx(12.0)
    assert found.source == "RAPL, package and dram, idle subtracted"


def test_a_counter_that_starts_over_loses_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"0": "package-0"})
    machine.set("0", LIMIT - 5_000_000)
    meter = Meter(counters(tmp_path), clock=lambda: machine.now, sleep=lambda seconds: machine.run(seconds, package=1))
    found = meter.measure(lambda: machine.run(1.0, package=11), 1, 1, 0, runs=1)
    assert found.joules.median == pytest.approx(10.0)


def test_without_counters_the_figure_says_that_it_is_modelled(tmp_path: Path) -> None:
    now = [0.0]

    def work() -> None:
        now[0] += 3.0

    meter = Meter(counters(tmp_path), power=Power(4.0, 1e-10, "not measured"), clock=lambda: now[0])
    found = meter.measure(work, 30, 2, 1e9, runs=2)
    assert found.method == MODELLED
    assert found.joules.median == pytest.approx(4.0 * 2 * 0.1 + 0.1)
    assert found.idle_watts is None
    assert found.source == "4 W a busy core and 100 pJ a byte from memory, not measured"
    assert found.to_json()["method"] == "modelled"


def test_counters_that_only_root_may_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(tmp_path, {"0": "package-0"})
    (counter,) = counters(tmp_path)
    counter.path.unlink()
    counter.path.mkdir()  # unreadable, also for root
    with pytest.raises(ParetobitError, match=r"energy_uj cannot be read: .*; hint: sudo chmod a\+r"):
        Meter([counter], sleep=lambda seconds: None).measure(lambda: None, 1, 1, 0)


def test_carbon_goes_by_the_countrys_grid() -> None:
    assert carbon(3.6e6, "IND") == pytest.approx(713, abs=1)
    assert carbon(3.6e6, "FRA") == pytest.approx(56, abs=1)
    with pytest.raises(ParetobitError, match="no carbon intensity of the grid 'XXX'; hint: "):
        carbon(1, "XXX")


def test_a_missing_table_names_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "MIX", "codecarbon/no-such-file.json")
    with pytest.raises(ParetobitError, match=r"hint: pip install 'paretobit\[energy\]'"):
        carbon(1, "IND")
