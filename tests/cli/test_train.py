"""train, from the command line to a packed model that runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoints import CORPUS

import paretobit as pb
from paretobit.arch.spec import EMBED
from paretobit.artifact import Artifact
from paretobit.compress.model import Decoder
from paretobit.runtime.session import Session
from tests.commands import Command, contents


def logged(out: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def losses(out: Path) -> list[float]:
    return logged(out, "loss")


def run(*arguments: object, processes: int = 1, wait: bool = True) -> subprocess.Popen:
    start: list[object] = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", processes, "-m"]
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    made = subprocess.Popen([*map(str, start), "paretobit", *map(str, arguments)], env=quiet, text=True,
                            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    if wait:
        _, errors = made.communicate(timeout=200)
        assert made.returncode == 0, errors
    return made


@pytest.mark.parametrize(
    ("to", "embed"), [("w1", "w2"), ("w1.58", "w4"), ("w2", "w4"), ("w3", "w4"), ("w4", "w6"), ("w2t", "w4t")]
)
def test_every_width_ends_as_a_model_that_runs(
    model: Path, text: Path, tmp_path: Path, command: Command, to: str, embed: str
) -> None:
    out = tmp_path / "out"
    done = command("train", model, "--to", to, "--data", text, "--steps", 12, "--rate", 2e-3, "--no-half", "-o", out)
    assert done.code == 0, done.err
    assert re.search(r"training .*: 50 %, KL \d+\.\d{3}, \d+ tokens/s, about \d+ s left", done.err)
    packed = Artifact(out)
    assert {str(layer.scheme) for layer in packed.plan.layers.values()} == {to, embed}
    assert {layer.method for layer in packed.plan.layers.values()} == {"paths" if to.endswith("t") else "paretoq"}
    seen = losses(out)
    assert len(seen) == 12 and np.mean(seen[-3:]) < np.mean(seen[:3])
    ids = np.random.default_rng(0).integers(0, packed.arch.vocab, (2, 40))
    theirs, ours = Decoder(packed).logits(ids), Session(packed, activations="fp32").logits(ids)
    assert np.abs(ours - theirs).max() < 4 * 2**-11 * np.abs(theirs).max()  # the cache is fp16
    assert command("run", out, "The town", "-n", 4).code == 0
    assert json.loads(command("inspect", out, "--json").out)["size_bytes"] == packed.size_bytes


def test_training_beats_the_rounding_it_starts_from(model: Path, text: Path, tmp_path: Path, quick: None) -> None:
    """On the text that both saw, as what is tested is the training, not what it teaches."""
    rounded, trained = tmp_path / "rounded", tmp_path / "trained"
    pb.quantize(str(model), to="w2", calib=str(text), tokens=4096, out=str(rounded))
    pb.train(str(model), to="w2", data=str(text), tokens=4096, steps=60, rate=1e-3, half=False, out=str(trained))
    found = {}
    for out in (rounded, trained):
        made = pb.evaluate(str(out), against=str(model), text=str(text), windows=6).to_json()
        found[out] = made["kl_divergence"]["mean"]
    assert found[trained] < 0.6 * found[rounded]


def test_the_same_command_is_done_and_another_is_refused(
    model: Path, text: Path, tmp_path: Path, command: Command
) -> None:
    given = ("train", model, "--to", "w3", "--data", text, "--steps", 3, "-o", tmp_path / "out")
    assert command(*given).code == 0
    before = contents(tmp_path / "out")
    assert "nothing to do" in command(*given).err and contents(tmp_path / "out") == before
    assert "already holds another result" in command(*given[:-3], 4, *given[-2:]).error


def test_a_killed_training_goes_on_and_ends_in_the_same_bytes(model: Path, text: Path, tmp_path: Path) -> None:
    given = ("train", model, "--to", "w2", "--data", text, "--steps", 40, "--init", "weights")
    run(*given, "-o", tmp_path / "whole")
    process = run(*given, "-o", tmp_path / "killed", wait=False)
    log, end = tmp_path / "killed.work/training.jsonl", time.monotonic() + 100
    while not (log.exists() and log.read_text().count("loss") > 5):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists(), "the kill came after the end"
    run(*given, "-o", tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("blocks", [0, 8])
def test_two_processes_learn_like_one(model: Path, text: Path, tmp_path: Path, blocks: int) -> None:
    """The same windows in every step: the loss curves are one, but for sums in another order."""
    data = ("--data", text, "--steps", 12, "--batch", 4, "--blocks", blocks)
    given = ("train", model, "--to", "w2", *data, "--init", "weights", "--no-half")
    run(*given, "-o", tmp_path / "one")
    run(*given, "-o", tmp_path / "two", processes=2)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 12 and one[0] == pytest.approx(two[0], rel=2e-3 if blocks else 1e-6)
    # a code that lay on a tie may flip, and moves a loss of this tiny model in the fourth digit
    np.testing.assert_allclose(two, one, rtol=2e-3)
    assert one[-1] < one[0]
    assert contents(tmp_path / "two").keys() == contents(tmp_path / "one").keys()
    errors = [logged(tmp_path / name, "error_after") for name in ("one", "two")]
    assert bool(blocks) == bool(errors[0])
    np.testing.assert_allclose(errors[1], errors[0], rtol=2e-3)


@pytest.mark.parametrize("to", ["fp32", "w2", "w1.58"])
def test_born_quantized(text: Path, tmp_path: Path, command: Command, to: str) -> None:
    config, out = tmp_path / "config.json", tmp_path / "out"
    config.write_text(json.dumps({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}))
    given = ("--from-scratch", config, "--to", to, "--data", text, "--steps", 30, "--rate", 3e-3)
    assert command("train", *given, "-o", out).code == 0
    packed, seen = Artifact(out), losses(out)
    assert packed.arch.vocab == 257 and packed.arch.shapes()[EMBED] == (257, 64)
    assert seen[0] == pytest.approx(np.log(257), rel=0.05) and seen[-1] < 0.8 * seen[0]
    assert command("run", out, "The town", "-n", 4).code == 0


def test_a_new_model_with_a_vocabulary_of_its_own(text: Path, tmp_path: Path, command: Command) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 290})
    )
    done = command(
        "train", "--from-scratch", config, "--to", "w4", "--data", text, "--steps", 2, "-o", tmp_path / "out"
    )
    assert done.code == 0, done.err
    tokenizer = json.loads((tmp_path / "out/tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) == 290 and tokenizer["model"]["merges"]


def test_a_plan_is_trained(model: Path, text: Path, tmp_path: Path, command: Command) -> None:
    """Any mixture: the plan of another training, edited."""
    given = ("--data", text, "--steps", 2, "-o")
    assert command("train", model, "--to", "w2", *given, tmp_path / "a").code == 0
    plan = json.loads((tmp_path / "a/plan.json").read_text())
    name = "model.layers.0.mlp.down_proj.weight"
    plan["layers"][name]["scheme"] = "w4g32s"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert command("train", model, "--plan", tmp_path / "plan.json", *given, tmp_path / "b").code == 0
    assert str(Artifact(tmp_path / "b").plan.layers[name].scheme) == "w4g32s"
    assert "replay it with paretobit train" in command(
        "quantize", model, "--plan", tmp_path / "plan.json", "--calib", text, "-o", tmp_path / "c"
    ).error  # fmt: skip
    plan["layers"][name]["scheme"] = "w4g32"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    done = command("train", model, "--plan", tmp_path / "plan.json", *given, tmp_path / "c")
    assert f"{name} cannot be trained on w4g32; hint: train it on w4g32s" in done.error


@pytest.mark.parametrize(
    ("to", "more", "turned"),
    [
        ("w2", (), True),
        ("w2", ("--transform", "none"), False),
        ("w4", (), False),
        ("w4", ("--transform", "rotate"), True),
    ],
)
def test_few_bits_are_trained_in_the_rotated_basis(
    model: Path, text: Path, tmp_path: Path, command: Command, to: str, more: tuple, turned: bool
) -> None:
    given = ("train", model, "--to", to, "--data", text, "--steps", 1, "--init", "rtn", *more)
    assert command(*given, "-o", tmp_path / "out").code == 0
    assert [t["method"] for t in Artifact(tmp_path / "out").plan.transforms] == ["rotate"] * turned


BAD = [
    (("--to", "w2"), "how long"),
    (("--to", "w2", "--steps", 5, "--time", "5m"), "how long"),
    (("--to", "w2", "--time", "soon"), "no span of time"),
    (("--to", "w2", "--steps", 0), "how long"),
    (("--steps", 5), "say one of --to and --plan"),
    (("--to", "w2g64", "--steps", 5), "train it on w2g64s"),
    (("--to", "w2", "--steps", 5, "--batch", 0), "out of range"),
    (("--to", "w2", "--steps", 5, "--blocks", 1), "leave --blocks out"),
    (("--to", "w2", "--steps", 5, "--blocks", 8, "--no-distill"), "no original to learn from"),
    (("--to", "w2", "--steps", 5, "--batch", 500), "give more text, or a smaller --batch"),
    (("--to", "w2", "--steps", 5, "--rate", 7), "out of range"),
    (("--to", "w2", "--steps", 5, "--transform", "awq"), "choose from rotate, none"),
    (("--plan", "plan.json", "--steps", 5, "--transform", "rotate"), "--plan already decides"),
    (("--to", "w2", "--steps", 5, "--init", "luck"), "choose from rounded, rtn, weights"),
    (("--to", "w2", "--steps", 5, "--set", "paretoq.start=x"), "choose from max, mean"),
    (("--to", "w2", "--steps", 5, "--set", "gptq.damp=1"), "unknown method 'gptq'"),
    (("--to", "w2t", "--steps", 5, "--set", "paretoq.start=max"), "no tensor is trained by it"),
    (("--to", "w2", "--steps", 5, "--from-scratch", "x.json"), "say what to train"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=lambda x: " ".join(map(str, x)) if isinstance(x, tuple) else "")
def test_bad_wishes(model: Path, text: Path, tmp_path: Path, command: Command, given: tuple, message: str) -> None:
    assert message in command("train", model, "--data", text, *given, "-o", tmp_path / "out").error
    assert not (tmp_path / "out").exists()


def test_bad_beginnings(text: Path, tmp_path: Path, command: Command) -> None:
    config = tmp_path / "config.json"

    def error(about: dict[str, object], *more: object) -> str:
        config.write_text(json.dumps(about))
        given = ("--from-scratch", config, "--to", "w2", "--steps", 2, *more)
        return command("train", *given, "-o", tmp_path / "out").error

    assert "nothing to say yet; hint: give --data FILE" in error({})
    data = ("--data", text)
    assert "holds not every byte" in error({"vocab_size": 200}, *data)
    assert "no positive number" in error({"hidden_size": "wide"}, *data)
    assert "no original to learn from" in error({}, *data, "--distill")
    assert "model_type" in error({"model_type": "dreamt"}, *data)
    (tmp_path / "short.txt").write_text(CORPUS)
    assert "one window needs 512" in error({}, "--data", tmp_path / "short.txt")
