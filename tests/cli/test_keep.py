"""--keep: what is made keeps the share on text that nothing was calibrated on, and is the smallest tried that does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paretobit.artifact import Artifact
from paretobit.checkpoint import open_model
from paretobit.compress import corpus
from paretobit.evals.divergence import compare
from paretobit.evals.tasks import evaluate_task, read_task
from paretobit.reports.results import read
from paretobit.verbs import wishes
from paretobit.verbs.evaluate import evaluate, open_decoder
from paretobit.verbs.quantize import quantize
from tests.commands import Command, contents
from tests.processes import kill_until_done

TEXT = {"tokens": 1024}
pytestmark = pytest.mark.usefixtures("shared_cache")


@pytest.fixture(scope="module")
def made(model: Path, text: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARETOBIT_CACHE", str(cache))
        quantize(str(model), keep="90%", metric="same_top1", calib=str(text), out=str(out), **TEXT)
    return out


def test_the_share_is_kept_on_text_that_was_not_seen(model: Path, text: Path, made: Path) -> None:
    """Measured again, by the decoder on the windows that calibration left."""
    source = open_model(str(model))
    windows = corpus.unseen(source, str(text), TEXT["tokens"], 0, "cpu").ids
    found = compare(open_decoder(Artifact(made), "cpu")[0], windows, open_decoder(source, "cpu")[0])
    share, _ = found.share("same_top1")
    assert share is not None
    assert share >= 0.9
    (row,) = read(made / "results.jsonl")
    assert (row.metric, row.n) == ("same_top1", len(windows))
    assert row.value == pytest.approx(share)
    card = (made / "README.md").read_text()
    assert "- asked for: 90% of same_top1 kept\n" in card
    assert "--keep 90% --metric same_top1" in card
    assert Artifact(made).plan.budget == {"same_top1": 0.9}


def test_more_that_is_kept_takes_more_bytes(model: Path, text: Path, made: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    fit = quantize(str(model), keep="94%", metric="same_top1", calib=str(text), out=out, **TEXT)
    assert fit.size_bytes > Artifact(made).size_bytes
    assert "of same_top1 on" in fit.notes[0]


def test_the_same_wish_again_has_nothing_to_do(
    model: Path, text: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(made)
    quantize(str(model), keep="90%", metric="same_top1", calib=str(text), out=str(made), **TEXT)
    assert "nothing to do" in capsys.readouterr().err
    assert contents(made) == before


def test_the_plan_replays_to_the_same_tensors(model: Path, text: Path, made: Path, tmp_path: Path) -> None:
    quantize(str(model), plan=str(made / "plan.json"), calib=str(text), out=str(tmp_path / "out"))
    for name in ("model.safetensors", "plan.json", "paretobit.json"):
        assert (tmp_path / "out" / name).read_bytes() == (made / name).read_bytes()


def test_a_limit_beside_it_holds(model: Path, text: Path, made: Path, tmp_path: Path, command: Command) -> None:
    size = Artifact(made).size_bytes
    wish = ("quantize", model, "--keep", "90%", "--metric", "same_top1", "--calib", text, "--tokens", 1024)
    roomy = quantize(
        str(model), keep="90%", metric="same_top1", fit=(str(size + 4000),), calib=str(text),
        out=str(tmp_path / "out"), **TEXT,
    )  # fmt: skip
    assert roomy.size_bytes <= size + 4000
    error = command(*wish, "--fit", size // 2, "-o", tmp_path / "none").error
    assert "--keep 90% --metric same_top1 cannot be met: the best tried has" in error
    assert "hint: --keep " in error
    assert not (tmp_path / "none").exists()


def test_a_task_may_be_what_is_kept(model: Path, text: Path, tmp_path: Path) -> None:
    """Pairs of which the original itself likes the good one better: it is always right."""
    logits, tokenizer = open_decoder(open_model(str(model)), "cpu")
    words = text.read_text().split()
    pairs = [(" ".join(words[i : i + 9]), " ".join(words[i + 9 : i + 18])) for i in range(0, 1440, 18)]
    task = tmp_path / "own.jsonl"

    def write() -> None:
        task.write_text("".join(json.dumps({"sentence_good": a, "sentence_bad": b}) + "\n" for a, b in pairs))

    write()
    right = evaluate_task(read_task(task), tokenizer, logits).candidate["acc"]
    pairs = [(a, b) if good else (b, a) for (a, b), good in zip(pairs, right, strict=True)]
    write()
    out = tmp_path / "out"
    quantize(str(model), keep="80%", metric=f"task:{task}", calib=str(text), out=str(out), **TEXT)
    (row,) = read(out / "results.jsonl")
    (again,) = evaluate(str(out), against=str(model), tasks=(str(task),)).tasks
    assert row.metric == "own retained"
    assert row.value == pytest.approx(again.retained[0])
    assert row.value >= 0.8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--keep", "95"), "is no share"),
        (("--keep", "95%", "--metric", "wit"), "--metric wit is unknown"),
        (("--keep", "95%", "--to", "w3t"), "--keep and --to exclude each other"),
        (("--keep", "95%", "--check", "nowhere.txt"), "nowhere.txt: no such file"),
        (("--keep", "95%", "--metric", "task:nowhere.jsonl"), "nowhere.jsonl: no such file"),
        (("--metric", "perplexity", "--to", "w3t"), "--metric says how --keep is measured"),
        (("--check", "x.txt", "--fit", "60kB"), "--check says how --keep is measured"),
    ],
)
def test_wishes_that_cannot_be_meant_say_so(
    command: Command, model: Path, tmp_path: Path, arguments: tuple, said: str
) -> None:
    assert said in command("quantize", model, *arguments, "-o", tmp_path / "out").error
    assert not (tmp_path / "out").exists()


def test_what_lies_at_the_place_is_not_lost_after_the_search(
    command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before the work, not after it."""
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/one.txt").write_text("dear")
    monkeypatch.setattr(wishes, "planner_for", lambda *_: pytest.fail("worked first"))
    assert "already holds" in command("quantize", model, "--keep", "95%", "-o", tmp_path / "letters").error


def test_a_killed_search_goes_on_and_ends_in_the_same_bytes(model: Path, text: Path, tmp_path: Path) -> None:
    arguments = ("quantize", model, "--keep", "90%", "--metric", "same_top1", "--calib", text, "--tokens", 1024)
    kills = kill_until_done(arguments, tmp_path, 4)
    assert kills >= 3
    assert contents(tmp_path / "killed/out") == contents(tmp_path / "whole/out")
    assert not any((tmp_path / "killed/cache").rglob("candidates"))
