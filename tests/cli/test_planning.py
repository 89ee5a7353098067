"""Wishes and plans: what --fit makes is never larger than asked, uses what there is, and can be replayed."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from paretobit import costs
from paretobit.arch.spec import EMBED
from paretobit.artifact import Artifact
from paretobit.checkpoint import open_model
from paretobit.compress import bank, sensitivity
from paretobit.costs import Costs
from paretobit.errors import ParetobitError
from paretobit.planfile import cut, read_plan, taps
from paretobit.sizes import tensor_bytes
from paretobit.verbs import planning
from paretobit.verbs.costing import Measured
from paretobit.verbs.merge import merge
from paretobit.verbs.plan import Frontier, plan
from paretobit.verbs.quantize import quantize
from tests.commands import Command, contents
from tests.processes import kill_until_done

BITS16 = 161_920  # of the tiny model
TEXT = {"tokens": 2048}
pytestmark = pytest.mark.usefixtures("shared_cache")


@pytest.fixture(scope="module")
def frontier(model: Path, text: Path, cache: Path) -> Frontier:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARETOBIT_CACHE", str(cache))
        return plan(str(model), calib=str(text), **TEXT)


def test_the_frontier_falls_and_stays_within_its_sizes(frontier: Frontier) -> None:
    sizes = [row.size_bytes for row in frontier.rows]
    costs = [row.kl_divergence for row in frontier.rows]
    assert len(sizes) > 8
    assert sizes == sorted(sizes)
    assert costs == sorted(costs, reverse=True)
    assert frontier.bytes_16bit == BITS16
    for row in frontier.rows:
        assert sum(row.weights.values()) == pytest.approx(1)
        assert row.gap <= 1e-4


@pytest.mark.parametrize("wish", ["40000", "44kB", "78%", "4.5bpw", "60 kB"])
def test_what_fits_is_never_larger_and_wastes_little(
    model: Path, text: Path, tmp_path: Path, wish: str, frontier: Frontier
) -> None:
    limit = {"40000": 40_000, "44kB": 44_000, "78%": 0.22 * BITS16, "4.5bpw": 4.5 * BITS16 / 16, "60 kB": 60_000}[wish]
    fit = quantize(str(model), fit=(wish,), calib=str(text), out=str(tmp_path / "out"), **TEXT)
    made = Artifact(tmp_path / "out")
    assert made.size_bytes == fit.size_bytes <= limit
    # The least step up that is left: a matrix on the next scheme. Nothing so small may still fit.
    shapes = made.arch.shapes()
    spare = limit - made.size_bytes
    assert spare < max(tensor_bytes(made.plan.layers[name].scheme, shapes[name]) for name in made.plan.layers)
    assert made.size_bytes > 0.9 * limit
    assert made.plan.budget == {"bytes": float(int(limit))}
    card = (tmp_path / "out/README.md").read_text()
    assert f"- asked for: at most {int(limit)} bytes\n" in card
    assert f"- kl_divergence expected by the plan: {made.plan.predicted['kl_divergence']:.4g}\n" in card
    assert "--plan plan.json --calib calibration.txt -o OUT`" in card
    assert made.manifest["fallbacks"] == []


def test_the_plan_is_the_one_that_quantize_takes_and_replays_to_the_same_bytes(
    model: Path, text: Path, tmp_path: Path, frontier: Frontier
) -> None:
    file = tmp_path / "plan.json"
    shown = plan(str(model), fit=("50kB",), out=str(file), calib=str(text), **TEXT)
    quantize(str(model), fit=("50kB",), calib=str(text), out=str(tmp_path / "a"), **TEXT)
    quantize(str(model), plan=str(file), calib=str(text), out=str(tmp_path / "b"))  # its tokens stand in the plan
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert read_plan(file.read_bytes(), "plan.json") == Artifact(tmp_path / "a").plan
    assert shown.rows[0].size_bytes == Artifact(tmp_path / "a").size_bytes
    assert shown.rows[0].mixture_measured is not None


def test_a_plan_made_with_a_text_asks_for_it(
    command: Command, model: Path, text: Path, tmp_path: Path, frontier: Frontier
) -> None:
    file = tmp_path / "plan.json"
    plan(str(model), fit=("50kB",), out=str(file), calib=str(text), **TEXT)
    error = command("quantize", model, "--plan", file, "-o", tmp_path / "out").error
    assert "the plan was made with calibration.txt; hint: add --calib FILE" in error


def test_what_was_asked_beside_a_scheme_stands_in_the_plan(model: Path, text: Path, tmp_path: Path) -> None:
    """A packed model's own plan.json replays to its bytes without a word about text, inputs or recovery."""
    asked = {"to": "w3t", "tokens": 1024, "seed": 3, "inputs": "full", "recover": False}
    quantize(str(model), out=str(tmp_path / "a"), **asked)
    again = str(tmp_path / "a/plan.json")
    quantize(str(model), plan=again, out=str(tmp_path / "b"))
    made = contents(tmp_path / "a")
    replayed = contents(tmp_path / "b")
    assert made["model.safetensors"] == replayed["model.safetensors"]
    assert made["plan.json"] == replayed["plan.json"]
    quantize(str(model), plan=again, seed=4, out=str(tmp_path / "c"))
    assert contents(tmp_path / "c")["model.safetensors"] != made["model.safetensors"]


def test_more_bytes_are_never_worse(frontier: Frontier, model: Path, text: Path) -> None:
    measured = [
        plan(str(model), fit=(f"{kilobytes}kB",), calib=str(text), **TEXT).rows[0].mixture_measured
        for kilobytes in (36, 48, 64)
    ]
    assert measured == sorted(measured, reverse=True)  # type: ignore[type-var]


def test_a_table_serves_every_later_wish(
    model: Path, text: Path, frontier: Frontier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(sensitivity, "measure", refuse)
    monkeypatch.setattr(bank.apply, "round_all", refuse)
    assert plan(str(model), calib=str(text), **TEXT) == frontier


def test_costs_of_shards_come_together(
    model: Path, text: Path, tmp_path: Path, command: Command, frontier: Frontier
) -> None:
    """The windows of the whole table, split over two machines; only the tokens drawn at each position differ."""
    for i in range(2):
        plan(str(model), shard=f"{i}/2", out=str(tmp_path / f"s{i}"), calib=str(text), **TEXT)
    both = [str(tmp_path / "s0"), str(tmp_path / "s1")]
    assert merge(*both, out=str(tmp_path / "costs")).tokens == TEXT["tokens"]
    merge(*both[::-1], out=str(tmp_path / "again"))
    assert contents(tmp_path / "costs") == contents(tmp_path / "again")
    found = plan(str(model), costs=str(tmp_path / "costs"), calib=str(text), **TEXT)
    assert [row.size_bytes for row in found.rows] == pytest.approx([row.size_bytes for row in frontier.rows], rel=0.02)
    ours, whole = ([row.kl_divergence for row in each.rows] for each in (found, frontier))
    assert ours == pytest.approx(whole, rel=0.3)
    assert ours != whole
    assert "share a window" in command("merge", both[0], both[0], "-o", tmp_path / "twice").error
    other = command("plan", model, "--costs", tmp_path / "costs", "--schemes", "w2t,w4t", "--calib", text)
    assert "of other schemes" in other.error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--shard", "0/2"), "--shard measures costs into a folder"),
        (("--shard", "0/2", "-o", "x", "--fit", "60kB"), "--shard measures costs into a folder"),
        (("--shard", "9/9", "-o", "x"), "is not a shard"),
        (("--shard", "8/9", "-o", "x"), "is empty"),
        (("--costs", "nowhere"), "nowhere"),
    ],
)
def test_shards_that_cannot_be_say_so(
    command: Command, model: Path, text: Path, arguments: tuple, said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert said in command("plan", model, *arguments, "--calib", text, "--tokens", 2048).error
    assert not (tmp_path / "x").exists()


def test_matrices_that_are_tied_are_stored_alike_and_do_no_better(
    model: Path, text: Path, tmp_path: Path, frontier: Frontier
) -> None:
    out = tmp_path / "plan.json"
    for tied in (True, False):
        plan(str(model), calib=str(text), tied=tied, fit=("44kB",), out=str(out), **TEXT)
        made = read_plan(out.read_text(), "plan")
        reading = [tap.consumers for tap in taps(cut(open_model(str(model)).arch, made))]
        alike = [{made.layers[name].scheme for name in names} for names in reading]
        assert all(len(schemes) == 1 for schemes in alike) == tied
    tied = plan(str(model), calib=str(text), tied=True, **TEXT)
    free = {row.bits_per_weight: row.kl_divergence for row in frontier.rows}
    for row in tied.rows[1:]:
        near = [kl for bits, kl in free.items() if bits <= row.bits_per_weight * 1.02]
        assert min(near) <= row.kl_divergence * 1.05


def test_predictions_are_corrected_by_what_was_measured() -> None:
    """Costs that are told to be too small by other factors in the blocks than at the ends: measurements find them, and
    without any nothing moves."""
    random = np.random.default_rng(0)
    names = (EMBED, *(f"t{i}" for i in range(20)))
    seen = random.random((3, 21, 3)).astype(np.float32)
    table = Costs("m", {}, names, ("w2t", "w4t", "w8"), seen, np.zeros_like(seen))
    true = table.mean() * [2.0, 1.1, 1]
    true[0] = table.mean()[0] * [3, 1.2, 1]
    measured = []
    for _ in range(40):
        picks = random.integers(0, 3, 21)
        chosen = {name: table.schemes[pick] for name, pick in zip(names, picks, strict=True)}
        measured.append((chosen, float(true[np.arange(21), picks].sum())))
    unmoved = costs.factors(table, [])
    assert unmoved == pytest.approx(np.array([[1.12, 1, 1], [1.5, 1.07, 1]]))
    found = costs.factors(table, measured)
    assert found[0] == pytest.approx([2, 1.1, 1], rel=0.06)
    assert found[1] == pytest.approx([3, 1.2, 1], rel=0.25)
    spread = [factor / before for factor, before in zip(found[1], unmoved[1], strict=True)]
    assert spread[0] > 1.3


def test_luck_is_taken_out_of_costs_and_what_is_no_luck_stays() -> None:
    """Matrices of one size and three schemes, four times apart, each off by up to three times: nearer to the truth
    without it. A matrix that one scheme represents exactly keeps its costs, and so does the embedding."""
    random = np.random.default_rng(0)
    names = (EMBED, *(f"t{i}" for i in range(40)))
    size = np.exp(random.normal(0, 1, (41, 1)))
    true = size * [16, 4, 1, 0.25, 0.06]
    seen = true * np.exp(random.uniform(-1.1, 1.1, true.shape))
    seen[1, 2], seen[2, 3] = 0, true[2, 3] / 1000
    schemes, twice = ("w1t", "w2t", "w3t", "w4t", "w5"), np.repeat(seen[None], 2, 0)
    found = Costs("m", {}, names, schemes, twice, np.zeros_like(twice)).typical()
    assert found[[0, 1]] == pytest.approx(seen[[0, 1]])
    assert found[2, 3] == pytest.approx(seen[2, 3])
    before, after = (np.abs(np.log(each[3:] / true[3:])).mean() for each in (seen, found))
    assert after < 0.7 * before
    apart = np.log(found[3:, :-1] / found[3:, 1:])
    assert np.ptp(apart, axis=0).max() < 1e-9


def test_what_is_expected_of_a_packed_model_and_the_sum_it_allows_are_inverse() -> None:
    """Costs add up, nats of packed models do so less and less; none has more than the most there can be."""
    sums = [0.0, 0.01, 0.3, 2.0, 40.0]
    nats = [costs.carried_out(added) for added in sums]
    assert [costs.allowed(value) for value in nats] == pytest.approx(sums)
    assert nats == sorted(nats)
    assert costs.carried_out(0.02) / 0.02 > costs.carried_out(0.9) / 0.9
    assert costs.allowed(1.01 * costs.CARRIED_OUT[0] / costs.CARRIED_OUT[1]) == float("inf")


def bank_that_has(times: dict[str, float], seen: list[dict[str, str]]):
    """A measurement of the bank's tensors: what is predicted of each scheme, so many times."""

    def divergence(measured: Measured, schemes: dict[str, str]) -> float:
        table = measured.table.costs
        factor = costs.factors(table, []) * [times.get(scheme, 1) for scheme in table.schemes]
        at = [(i, table.schemes.index(schemes[name])) for i, name in enumerate(table.names)]
        seen.append(schemes)
        return sum(table.mean()[i, j] * factor[costs.side(table.names[i]), j] for i, j in at)

    return divergence


def test_only_what_is_far_from_expected_corrects_the_choice(
    model: Path, text: Path, frontier: Frontier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three bits that are a sixth worse than predicted move nothing: one scheme and one choice are looked at. When they
    are ten times worse, another choice is made, with few of them, and no more is expected of it than is measured."""
    rows, looked_at = {}, {}
    for worse in (1, 1.17, 10):
        monkeypatch.setattr(Measured, "divergence", bank_that_has({"w3t": worse}, looked_at.setdefault(worse, [])))
        rows[worse] = plan(str(model), fit=("36kB",), calib=str(text), **TEXT).rows[0]
    assert rows[1.17].kl_divergence == rows[1].kl_divergence
    assert looked_at[1] == looked_at[1.17]
    assert len(looked_at[1]) <= 2
    assert rows[1].weights["w3t"] > 0.2
    assert rows[10].weights.get("w3t", 0) < 0.1
    assert len(looked_at[10]) > 2
    assert rows[10].mixture == pytest.approx(rows[10].mixture_measured, rel=planning.USUAL)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--fit", "1kB"), "--fit 1kB cannot be met: the matrices of tiny alone take"),
        (("--fit", "20kB"), "--fit 20kB cannot be met: the least that tiny can take is"),
        (("--fit", "60 parsecs"), "is no size"),
        (("--fit", "60kB", "--fit", "2bpw"), "bytes is limited twice"),
        (("--fit", "60kB", "--to", "w3t"), "--fit and --to exclude each other"),
        (("--fit", "60kB", "--embed", "w8"), "--fit and --embed exclude each other"),
        (("--fit", "60kB", "--set", "trellis.damp=1"), "--fit and --set exclude each other"),
        (("--fit", "60kB", "--schemes", "w2t,w7"), "7 bits are not supported"),
        (("--fit", "60kB", "--schemes", ""), "'' is not a scheme"),
        ((), "say one of --to, --fit, --keep and --plan"),
    ],
)
def test_wishes_that_cannot_be_met_say_so(
    command: Command, model: Path, text: Path, tmp_path: Path, frontier: Frontier, arguments: tuple, said: str
) -> None:
    done = command("quantize", model, *arguments, "--calib", text, "--tokens", 2048, "-o", tmp_path / "out")
    assert said in done.error
    assert not (tmp_path / "out").exists()


def test_the_nearest_that_can_be_had_is_named_and_can_be_had(
    model: Path, text: Path, tmp_path: Path, frontier: Frontier
) -> None:
    with pytest.raises(ParetobitError, match="hint: --fit [0-9]+kB") as why:
        quantize(str(model), fit=("20kB",), calib=str(text), out=str(tmp_path / "out"), **TEXT)
    least = why.value.hint.split()[1].removesuffix(",").removesuffix("kB")
    assert quantize(
        str(model), fit=(f"{least}kB",), calib=str(text), out=str(tmp_path / "out"), **TEXT
    ).size_bytes <= 1000 * int(least)


def test_a_wish_out_of_reach_is_refused_before_the_work(
    command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "planner_for", lambda *_: pytest.fail("worked first"))
    assert "alone take" in command("plan", model, "--fit", "97%").error


def test_the_plan_of_what_is_to_be_kept(model: Path, text: Path, tmp_path: Path, frontier: Frontier) -> None:
    """More that is kept takes more bytes, and the plan says what it was made for."""
    shares, rows = ("80%", "95%"), []
    for share in shares:
        made = plan(str(model), keep=share, metric="perplexity", out=str(tmp_path / share), calib=str(text), **TEXT)
        rows.append(made.rows[0])
    assert rows[0].size_bytes < rows[1].size_bytes
    assert rows[0].kl_divergence > rows[1].kl_divergence
    assert read_plan((tmp_path / "95%").read_bytes(), "plan").budget == {"perplexity": 0.95}
    # -ln(0.95) is 0.9 nats' worth of it, by the first guess.
    assert 0.8 < rows[1].kl_divergence / (0.0513 / 0.9) < 1.06


def test_one_plan_needs_one_size(command: Command, model: Path, tmp_path: Path) -> None:
    assert "add --fit 60MB" in command("plan", model, "-o", tmp_path / "p.json").error


def test_what_can_be_had_is_drawn(model: Path, text: Path, tmp_path: Path, command: Command) -> None:
    told = ("plan", model, "--calib", text, "--tokens", 2048, "--draw")
    assert command(*told, tmp_path / "a.svg").code == 0
    drawn = ElementTree.parse(tmp_path / "a.svg").getroot()
    words = {element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"w1t", "w8", "MB, embedding included"} <= words
    assert command(*told, tmp_path / "b.svg").code == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert command(*told, tmp_path / "c.PNG").code == 0
    assert (tmp_path / "c.PNG").read_bytes().startswith(b"\x89PNG")
    assert "c.jpg is not the name of a picture; hint: name one" in command(*told, tmp_path / "c.jpg").error
    assert "no/c.svg: no such folder; hint: make it first" in command(*told, tmp_path / "no" / "c.svg").error
    assert "at every size; hint: leave --fit" in command(*told, tmp_path / "d.svg", "--fit", "44kB").error
    assert len(contents(tmp_path)) == 3


def test_the_table_is_shown_and_told_as_json(command: Command, model: Path, text: Path, frontier: Frontier) -> None:
    done = command("plan", model, "--calib", text, "--tokens", 2048, "--json")
    assert done.code == 0
    assert [row["size_bytes"] for row in json.loads(done.out)["rows"]] == [row.size_bytes for row in frontier.rows]
    shown = command("plan", model, "--calib", text, "--tokens", 2048).out
    assert f"{frontier.rows[3].bits_per_weight:.3f}" in shown
    assert "--fit SIZE" in shown


def test_a_killed_wish_goes_on_and_ends_in_the_same_bytes(model: Path, text: Path, tmp_path: Path) -> None:
    """Killed again and again, at moments spread over rounding the bank, costs, measuring and quantizing."""
    arguments = ("quantize", model, "--fit", "50kB", "--calib", text, "--tokens", 1024)
    kills = kill_until_done(arguments, tmp_path, 3)  # taking the bank's files over is one step, and counts many
    assert kills >= 2
    assert contents(tmp_path / "killed/out") == contents(tmp_path / "whole/out")
