"""The command: what it says, what it refuses, and that nothing half written ever stands where the export goes."""

from __future__ import annotations

import errno
import importlib.util
import json
import signal
from pathlib import Path

import numpy as np
import pytest

import paretobit as pb
from paretobit.artifact import Artifact
from paretobit.exporters import find, names
from tests.commands import Command, Outcome, contents
from tests.packed import Shelf
from tests.processes import Running

FORMATS = ("compressed-tensors", "gguf", "hf", "onnx")


def target(form: str) -> str:
    return f"out{find(form).SUFFIX}"


def test_formats_are_the_files_of_their_folder() -> None:
    assert tuple(names()) == FORMATS


def test_it_says_what_it_wrote(shelf: Shelf, tmp_path: Path, command: Command) -> None:
    packed = shelf("llama", "w4g32")
    done = command("export", packed.folder, "--to", "compressed-tensors", "-o", tmp_path / "a" / "ct")
    assert done.code == 0 and "kB for compressed-tensors; tensors: " in done.out
    assert "note: 6 tensors: not quantized in this format, stored as float16" in done.out
    told = json.loads(command("export", packed.folder, "--to", "gguf", "-o", tmp_path / "m.gguf", "--json").out)
    assert told["size_bytes"] == (tmp_path / "m.gguf").stat().st_size and told["kl_divergence"] is None
    assert told["tensors"] == {"Q8_0": 1, "Q5_0": 14, "F32": 5} and told["lossy"] == [] == told["notes"]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--to", "mlx"), "--to mlx is unknown; hint: choose from compressed-tensors, gguf, hf, onnx"),
        (("--to", "gguf", "-o", "m.bin"), "-o m.bin does not name a file; hint: choose another, such as model.gguf"),
        (("--to", "hf", "--int8"), "hf has no static 8-bit activations"),
        (("--to", "gguf", "--dtype", "float16"), "--dtype float16 is not one of gguf's; hint: choose from float32"),
        (("--to", "hf", "--text", "x.txt"), "--text is for --lossy and --int8"),
        (("--to", "gguf", "--bits", "8"), "--bits 8 is for --lossy"),
        (("--to", "onnx", "--lossy", "--bits", "9"), "--bits 9 is for --lossy, and at most 8"),
    ],
)
def test_bad_options(
    shelf: Shelf, arguments: tuple, what: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = () if "-o" in arguments else ("-o", "out.gguf" if "gguf" in arguments else "out")
    assert what in command("export", shelf("llama", "w4g32").folder, *arguments, *out).error
    assert not any(path.name.startswith(("out", "m.")) for path in tmp_path.iterdir())


def test_only_packed_models_are_exported(model: Path, tmp_path: Path, command: Command) -> None:
    assert (
        "is not a packed model; hint: quantize it first"
        in command("export", model, "--to", "hf", "-o", tmp_path / "o").error
    )


def test_a_missing_package_is_named(
    shelf: Shelf, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("gguf", "onnx") else there(name))
    for form, package in (("gguf", "gguf"), ("onnx", "onnx")):
        told = command("export", shelf("llama", "w4g32").folder, "--to", form, "-o", tmp_path / target(form)).error
        assert f"needs {package}" in told.replace("the ", "").replace(" package", "") and "paretobit[export]" in told


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_in_the_way(shelf: Shelf, model: Path, form: str, tmp_path: Path, command: Command) -> None:
    packed, path = shelf("llama", "w4g32"), tmp_path / target(form)
    ask = ("export", packed.folder, "--to", form, "-o", path)
    assert command(*ask).code == 0
    first = contents(tmp_path)
    assert "is there already; hint: choose another -o, or add --overwrite" in command(*ask).error
    assert command("export", shelf("llama", "w3g32").folder, *ask[2:], "--overwrite").code == 0
    assert contents(tmp_path) != first
    assert command(*ask, "--overwrite").code == 0
    assert contents(tmp_path) == first  # the same bytes again, and nothing beside them
    mine = path.with_name(f"{path.name}.work")
    mine.mkdir()
    (mine / "letter.txt").write_text("mine")
    assert "holds letter.txt, which is not paretobit's; hint: " in command(*ask, "--overwrite").error
    assert contents(mine) == {"letter.txt": b"mine"} and command(*ask[:-1], tmp_path / f"new{path.suffix}").code == 0
    other = tmp_path / f"other{find(form).SUFFIX}"
    if find(form).SUFFIX:
        other.mkdir()
        assert "is in the way, and is no file" in command(*ask[:-1], other, "--overwrite").error
    else:
        other.mkdir()
        (other / "letter.txt").write_text("mine")
        assert "holds no exported model; hint: choose another -o" in command(*ask[:-1], other, "--overwrite").error
        assert "holds no exported model" in command(*ask[:-1], packed.folder, "--overwrite").error
        assert "holds no exported model" in command(*ask[:-1], model, "--overwrite").error
        assert contents(other) == {"letter.txt": b"mine"} and Artifact(packed.folder).hash == packed.hash


@pytest.mark.parametrize("form", ["gguf", "onnx"])  # a file and a folder
def test_a_kill_or_a_full_disk_anywhere(shelf: Shelf, form: str, tmp_path: Path) -> None:
    """At seeded places the process is killed or told that the disk is full: the final name stays free, or what stood
    there stays; afterwards the same command does its work and clears away what was left."""
    packed = shelf("gemma3, as published", "w8g32")

    def run(name: str, **how: int) -> tuple[int, str, int]:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        ask = ("export", packed.folder, "--to", form, "-o", place / target(form))
        ended = Running(*ask, watch=place, log=tmp_path / f"{name}.log", **how).end()  # type: ignore[arg-type]
        return ended.code, ended.err, ended.touched

    code, err, touched = run("whole")
    assert code == 0, err
    files = contents(tmp_path / "whole")
    for at in np.random.default_rng(2).choice(np.arange(2, touched), 2, replace=False):
        for name, how in (("kill", {"signal_number": signal.SIGKILL}), ("full", {"error": errno.ENOSPC})):
            place = tmp_path / f"{name}{at}"
            code, err, _ = run(place.name, at=int(at), **how)
            assert code != 0 or contents(place) == files
            if name == "full" and code:
                assert "the disk is full; hint: " in Outcome(code, "", err).error
            final = place / target(form)
            if final.exists():
                work = f"{final.name}.work"
                assert {name: data for name, data in contents(place).items() if work not in name} == files
            code, err, _ = run(place.name)
            assert code == 0 or "is there already" in err
            assert contents(place) == files
    code, err, _ = run("small", largest=20_000)
    assert "file too large; hint: " in Outcome(code, "", err).error and not any((tmp_path / "small").iterdir())


def test_python_is_the_same_as_the_command(shelf: Shelf, tmp_path: Path, command: Command) -> None:
    packed = shelf("llama", "w4g32")
    done = pb.export(str(packed.folder), to="onnx", path=str(tmp_path / "a"))
    told = json.loads(command("export", packed.folder, "--to", "onnx", "-o", tmp_path / "b", "--json").out)
    assert {**done.to_json(), "path": ""} == {**told, "path": "", "lossy": (), "notes": ()}
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
