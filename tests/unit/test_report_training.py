"""How a model was trained, as the report reads it: curves by brute force, and a file that nobody vouches for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paretobit as pb
from paretobit.artifact import TRAINING
from paretobit.errors import ParetobitError
from paretobit.reports import training
from paretobit.reports.training import Look, Stretch
from tests.commands import Command
from tests.reports import charts, pack, parse, table


def step(number: int, loss: float = 1.0, **changes: object) -> dict:
    return {"step": number, "tokens": 512 * number, "loss": loss, **changes}


def look(number: int, **changes: object) -> dict:
    return {"step": number, "scheme": "w2", "over_steps": 25, "range_drift": 0.25, **changes}


def block(number: float, **changes: object) -> dict:
    return {"step": 0, "block": number, "error_before": 0.5, "error_after": 0.25, **changes}


def write(folder: Path, *rows: object, end: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / TRAINING).write_text(lines + end)
    return folder


def test_curves_are_means_of_stretches(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).uniform(0, 3, 1000)
    rows = [step(i + 1, loss) for i, loss in enumerate(losses)]
    found = training.read(write(tmp_path, *rows, end='{"step": 1001, "tok'))  # a kill cut the last line short
    assert found is not None and found.steps == 1000 and len(found.curve) == 143
    for i, at in enumerate(found.curve):
        part = losses[7 * i : 7 * i + 7]
        assert at.loss == pytest.approx(part.mean()) and at.tokens == 512 * min(7 * i + 7, 1000)


def test_looks_belong_to_their_steps_and_schemes(tmp_path: Path) -> None:
    rows = [look(0, over_steps=0, levels=[0.5, 0.5]), look(0, scheme="w4t", over_steps=0), step(1), step(2)]
    rows += [look(2, changed=0.125, levels=[0.25, 0.75], over_steps=2), look(2, scheme="w4t", changed=0, over_steps=2)]
    found = training.read(write(tmp_path, *rows))
    assert found is not None and found.curve == (Stretch(512, 1.0), Stretch(1024, 1.0))
    assert found.looks["w2"] == (
        Look(0, 0, None, (0.5, 0.5), 0.25), Look(1024, 2, 0.125, (0.25, 0.75), 0.25)
    )  # fmt: skip
    assert found.looks["w4t"][1] == Look(1024, 2, 0.0, (), 0.25)


def test_nothing_was_trained(tmp_path: Path) -> None:
    assert training.read(tmp_path) is None
    assert training.read(write(tmp_path / "empty")) is None


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["[1]"], "line 1"),
        (["{"], "line 1"),
        ([step(1), "\0"], "line 2"),
        ([{"tokens": 5, "loss": 1}], "step is missing"),
        ([step(1, float("nan"))], "loss is nan"),
        ([step(1, loss="1")], "loss is '1'"),
        ([step(1, tokens=-1)], "tokens is -1"),
        ([step(1, tokens=True)], "tokens is True"),
        ([step(2), step(1)], "tokens fall at step 1"),
        ([step(1), look(2)], "a look at step 2"),
        ([step(1), look(1, scheme="w" * 41)], "scheme is not a text"),
        ([step(1), look(1, changed=1.5)], "changed is 1.5"),
        ([step(1), look(1, levels=[0.5, "x"])], "a level's share is 'x'"),
        ([step(1), look(1, levels=[0] * 65)], "levels is not a list of at most 64"),
        ([step(1), look(1, range_drift=-1)], "range_drift is -1"),
        ([step(1), look(1, over_steps=1.5)], "over_steps is 1.5"),
        ([block(0, error_after=-1.0)], "error_after is -1"),
        ([block(0.5)], "block is 0.5"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, rows: list, said: str) -> None:
    with pytest.raises(ParetobitError, match=r"training\.jsonl") as failed:
        training.read(write(tmp_path, *rows))
    assert said in failed.value.message and "delete training.jsonl" in (failed.value.hint or "")


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / TRAINING).mkdir()
    with pytest.raises(ParetobitError, match="is not a file"):
        training.read(tmp_path)


def test_the_page_shows_it(model: Path, text: Path, tmp_path: Path, command: Command) -> None:
    out, plain = tmp_path / "trained", pack(model, tmp_path / "plain")
    pb.train(str(model), to="w2g16s", data=str(text), steps=6, init="rtn", half=False, out=str(out))
    assert TRAINING not in pb.Artifact(out).companions  # it is no part of the model: nobody exports it
    done = command("report", out, plain, "-o", tmp_path / "page.html")
    assert done.code == 0, done.err
    page = parse((tmp_path / "page.html").read_text())
    (shown,) = [s for s in page.all("section") if any(h.text == "Training" for h in s.all("h2"))]
    head, *rows = table(shown.all("table")[0])
    found = [dict(zip(head, row, strict=True)) for row in rows]
    assert {row["model"] for row in found} == {"trained"} and {row["scheme"] for row in found} == {"w2g16s", "w4g16s"}
    assert all(row["steps"] == "6" and "in 6 steps" in row["codes that changed at last"] for row in found)
    specs = charts(page)
    losses = [json.loads(line)["loss"] for line in (out / TRAINING).read_text().splitlines() if '"loss"' in line]
    drawn = [row["y"] for row in specs["chart-loss"]["data"]["values"]]
    assert drawn == pytest.approx(losses) and len(drawn) == 6
    assert len(specs["chart-changes"]["data"]["values"]) == 2

    (out / TRAINING).write_text('{"step": "<script>"}\n')
    bad = command("report", out, "-o", tmp_path / "page.html")
    assert bad.code == 2 and "training.jsonl: step is" in bad.err and "hint:" in bad.err
    (out / TRAINING).unlink()
    assert command("report", out, "-o", tmp_path / "page.html").code == 0
    assert "chart-loss" not in charts(parse((tmp_path / "page.html").read_text()))


def test_the_page_shows_blocks_that_were_trained_by_themselves(
    model: Path, text: Path, tmp_path: Path, command: Command
) -> None:
    out, page = tmp_path / "trained", tmp_path / "page.html"
    how: dict[str, Any] = {"data": str(text), "steps": 2, "half": False}
    pb.train(str(model), to="w2g16s", init="rtn", blocks=2, out=str(out), **how)
    assert command("report", out, "-o", page).code == 0
    drawn = charts(parse(page.read_text()))["chart-blocks"]["data"]["values"]
    found = training.read(out)
    assert found is not None and len(found.blocks) == pb.Artifact(out).arch.layers
    ends = [(at.number, when, y) for at in found.blocks for when, y in (("before", at.before), ("after", at.after))]
    assert [(row["block"], row["when"], row["y"]) for row in drawn] == ends

    pb.train(str(model), to="w2g16s", init="rtn", out=str(tmp_path / "whole"), **how)
    assert command("report", tmp_path / "whole", "-o", page).code == 0
    assert "chart-blocks" not in charts(parse(page.read_text()))
