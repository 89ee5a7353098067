"""Damaged and malicious artifacts: whatever the bytes are, a reader answers with a ParetobitError or with the model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import paretobit as pb
from paretobit import packing
from paretobit.artifact import CONFIG, NEEDED, PLAN, TENSORS, Artifact
from paretobit.checkpoint import open_model
from paretobit.errors import ParetobitError
from paretobit.reports.card import write_card
from paretobit.tensorfile import SafetensorsFile
from paretobit.work import MANIFEST
from tests.checkpoints import tiny_llama_folder
from tests.commands import Command
from tests.hostile.corruptions import change_header

TEXTS = (MANIFEST, PLAN, CONFIG)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with every kind of stored tensor: three levels, 255 levels, zero points, bf16, fp32. Read only."""
    folder = tmp_path_factory.mktemp("packed")
    model = tiny_llama_folder(folder / "model", num_hidden_layers=1)
    pb.quantize(str(model), to="w1.58", method="rtn", out=str(folder / "first"))
    facts = json.loads((folder / "first" / PLAN).read_text())
    for i, name in enumerate(facts["layers"]):
        facts["layers"][name]["scheme"] = ("w1.58g16", "w8", "w3g64", "w2g16", "fp32")[i % 5]
    (folder / "plan.json").write_text(json.dumps(facts))
    pb.quantize(str(model), plan=str(folder / "plan.json"), out=str(folder / "out"))
    return folder / "out"


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def read_everything(folder: Path) -> None:
    """All that inspect, eval and the card do with an artifact's files."""
    made = Artifact(folder)
    for name in made.names():
        assert np.isfinite(made.read(name)).all()
    assert json.dumps(pb.inspect_artifact(str(folder)).to_json())
    write_card(folder)
    assert made.hash and made.companions and made.bits16


def refused(folder: Path) -> str:
    with pytest.raises(ParetobitError, match=r"; hint: ") as caught:
        read_everything(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000
    return str(caught.value)


def test_the_undamaged_one_is_read(copy: Path) -> None:
    read_everything(copy)


@pytest.mark.parametrize("file", NEEDED)
def test_any_truncation_is_refused(copy: Path, file: str) -> None:
    whole = (copy / file).read_bytes()
    random = np.random.default_rng(len(file))
    for size in {0, 1, 7, 8, 9, len(whole) - 3, *random.integers(0, len(whole) - 3, 25).tolist()}:
        (copy / file).write_bytes(whole[:size])
        assert file in refused(copy), size


@pytest.mark.parametrize("file", NEEDED)
def test_a_flipped_bit_is_refused_or_reads_as_something(copy: Path, file: str) -> None:
    """A weight's bit has no wrong value, so the only demand is that nothing but a ParetobitError comes out."""
    whole = (copy / file).read_bytes()
    random = np.random.default_rng(len(file))
    end = SafetensorsFile(copy / file).data_start if file == TENSORS else len(whole)
    for at in [*random.integers(0, end, 60), *random.integers(0, len(whole), 60)]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(random.integers(8))
        (copy / file).write_bytes(damaged)
        with suppress(ParetobitError):
            read_everything(copy)


def test_random_bytes_are_refused(copy: Path) -> None:
    random = np.random.default_rng(0)
    for file in NEEDED:
        whole = (copy / file).read_bytes()
        for size in (1, 100, len(whole)):
            (copy / file).write_bytes(random.bytes(size))
            assert file in refused(copy)
        (copy / file).write_bytes(whole)


def test_files_of_another_model_are_refused(packed: Path, copy: Path, tmp_path: Path) -> None:
    other = tiny_llama_folder(tmp_path / "model", num_hidden_layers=2)
    pb.quantize(str(other), to="w3g64", method="rtn", out=str(tmp_path / "other"))
    for file in NEEDED:
        shutil.copy(tmp_path / "other" / file, copy / file)
        refused(copy)
        shutil.copy(packed / file, copy / file)
    read_everything(copy)


ABSURD: tuple[object, ...] = (
    None, True, -1, 0, 2**40, 10**30, 1e308, float("inf"), float("nan"), "", "x", "w3g64", "\ud800", "\x1b[2J", "[/b]",
    "y" * 100_000, [], [None], {}, {"name": 1}, [[[[]]]], json.loads("[" * 90 + "]" * 90),
)  # fmt: skip


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of every field, however deep."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(facts: dict, path: tuple, value: object) -> dict:
    facts = json.loads(json.dumps(facts))
    inside = facts
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return facts


@pytest.mark.parametrize("file", TEXTS)
def test_absurd_values_in_every_field(copy: Path, file: str) -> None:
    facts = json.loads((copy / file).read_text())
    for path in places(facts):
        for value in ABSURD:
            (copy / file).write_text(json.dumps(replaced(facts, path, value)))
            try:
                read_everything(copy)
            except ParetobitError as why:
                assert "\n" not in str(why) and len(str(why)) < 2000, (path, value)
            except Exception as why:
                raise AssertionError(f"{file}: {path} = {str(value)[:50]!r}") from why


# Fields that somebody prints or computes with: not one wrong value may pass. (file, path): values that are right.
NEEDS: dict[tuple[str, tuple], tuple] = {
    (MANIFEST, ("kind",)): (),
    (MANIFEST, ("format",)): (True,),  # JSON's true equals 1
    (MANIFEST, ("model",)): (),
    (MANIFEST, ("model", "name")): ("", "x", "w3g64", "[/b]", "y" * 100_000),
    (MANIFEST, ("model", "bytes_16bit")): (2**40, 10**30),
    (MANIFEST, ("model", "hash")): (),
    (MANIFEST, ("calibration",)): (),
    (MANIFEST, ("fingerprint",)): (),
    (MANIFEST, ("fingerprint", "inputs")): ("", "x", "w3g64", "[/b]", "y" * 100_000),
    (MANIFEST, ("fallbacks",)): ([],),
    (PLAN, ("version",)): (),
    (PLAN, ("model",)): (),
    (PLAN, ("layers",)): (),
    (PLAN, ("layers", "model.embed_tokens.weight")): (),
    (PLAN, ("layers", "model.embed_tokens.weight", "scheme")): (),
    (PLAN, ("layers", "model.embed_tokens.weight", "params")): ({}, {"name": 1}),
    (PLAN, ("transforms",)): ([],),
    (CONFIG, ("model_type",)): (),
    (CONFIG, ("hidden_size",)): (),
    (CONFIG, ("num_hidden_layers",)): (True,),
    (CONFIG, ("vocab_size",)): (),
}


@pytest.mark.parametrize(("file", "path"), NEEDS.keys())
def test_wrong_values_of_needed_fields_are_refused(copy: Path, file: str, path: tuple) -> None:
    facts = json.loads((copy / file).read_text())
    right = NEEDS[file, path]
    for value in ABSURD:
        if not any(value is r or (type(value) is type(r) and value == r) for r in right):
            (copy / file).write_text(json.dumps(replaced(facts, path, value)))
            assert refused(copy), (path, value)


@pytest.mark.parametrize(
    "text", [b"{" * 200_000, b'{"a":' * 100_000, b"[" * 500, b"[1]", b'"x"', b"null", b"\xff\xfe{}"]
)
@pytest.mark.parametrize("file", TEXTS)
def test_absurd_json(copy: Path, file: str, text: bytes) -> None:
    (copy / file).write_bytes(text)
    assert file in refused(copy)


def flat(info: dict) -> None:
    info["shape"] = [int(np.prod(info["shape"]))]


SHAPES: dict[str, Callable[[dict], None]] = {
    "transposed": lambda info: info["shape"].reverse(),
    "flat": flat,
    "one more axis": lambda info: info["shape"].insert(0, 1),
    "a scalar": lambda info: info.update(shape=[]),
    "a row less": lambda info: info["shape"].__setitem__(0, info["shape"][0] - 1),
    "no rows": lambda info: info["shape"].__setitem__(0, 0),
    "2^62 rows": lambda info: info["shape"].__setitem__(0, 1 << 62),
    "signed": lambda info: info.update(dtype={"U8": "I8", "F16": "I16", "BF16": "U16", "F32": "I32"}[info["dtype"]]),
    "another float": lambda info: info.update(
        dtype={"U8": "BOOL", "F16": "BF16", "BF16": "F16", "F32": "U32"}[info["dtype"]]
    ),
}


@pytest.mark.parametrize("damage", SHAPES.values(), ids=SHAPES.keys())
def test_wrong_shapes_and_types_are_refused(copy: Path, damage: Callable[[dict], None]) -> None:
    whole, tried = (copy / TENSORS).read_bytes(), 0
    for name, info in SafetensorsFile(copy / TENSORS).tensors.items():
        if len(info.shape) > 1 and info.shape != info.shape[::-1]:  # nothing else has a shape to lose

            def change(header: dict, name: str = name) -> None:
                damage(header[name])

            change_header(copy / TENSORS, change)
            refused(copy)
            (copy / TENSORS).write_bytes(whole)
            tried += 1
    assert tried > 15


# Wrong in every byte of an array: what is wrong, its suffix, the byte, on how many levels.
NO_DIGITS = next(byte for byte in range(256) if 243 * byte % 256 >= 243)
WRONG = (
    (".codes", NO_DIGITS, (3,)), (".codes", 255, (255,)), (".zero", 0x08, (8,)), (".zero", 0x80, (8,)),
)  # fmt: skip


def spoil(copy: Path, at: int, value: int) -> None:
    """One byte of the tensors' data becomes `value`; the tensors are refused and whole again."""
    path = copy / TENSORS
    raw = bytearray(path.read_bytes())
    at += SafetensorsFile(path).data_start
    old, raw[at] = raw[at], value
    path.write_bytes(raw)
    assert refused(copy)
    raw[at] = old
    path.write_bytes(raw)


@pytest.mark.parametrize(("suffix", "value", "levels"), WRONG)
def test_bytes_that_no_packer_writes_are_refused_when_read(
    copy: Path, suffix: str, value: int, levels: tuple[int, ...]
) -> None:
    """Ternary bytes without digits, code 255 of 255 levels, zero points of 8 and more on 8 levels."""
    made = Artifact(copy)
    names = [name for name, scheme in made.schemes.items() if scheme.weight.levels in levels]
    for name in names:
        info = made.file.tensors[name + suffix]
        for at in (info.start, (info.start + info.end) // 2, info.end - 1):
            spoil(copy, at, value)
    assert names


@pytest.mark.parametrize("value", [0x7C, 0x7E, 0xFC])
def test_scales_that_are_not_finite_are_refused_when_read(copy: Path, value: int) -> None:
    made = Artifact(copy)
    for name, scheme in made.schemes.items():
        if scheme.weight.levels:
            spoil(copy, made.file.tensors[name + ".scale"].end - 1, value)


def test_padding_that_is_not_zero_is_refused_when_read(copy: Path) -> None:
    """Bytes in which no code and no scale has a part: those of rows that fill the last tile."""
    made, tried = Artifact(copy), 0
    for name, scheme in made.schemes.items():
        if not scheme.weight.levels:
            continue
        (rows, columns), grid = made.shape(name), scheme.weight
        codes = np.full((rows, columns), grid.levels - 1, np.uint8)
        scale = np.full((rows, grid.groups(columns)), 0xFFFF, np.uint16).view(np.float16)
        for suffix, full in {".codes": packing.pack(codes, grid), ".scale": packing.pack_scale(scale)}.items():
            padding = np.flatnonzero(full.reshape(-1).view(np.uint8) == 0)
            for at in padding[:: max(1, len(padding) // 5)]:
                spoil(copy, made.file.tensors[name + suffix].start + int(at), 1)
                tried += 1
    assert tried > 4


def test_what_fell_back_is_printed_as_it_stands(copy: Path, command: Command) -> None:
    """Brackets are no markup, and what a terminal would obey is refused."""
    facts = json.loads((copy / MANIFEST).read_text())
    entry = {"name": "[/b]", "asked": "[red]", "stored": ":smile:", "why": "[link=http://x]"}
    (copy / MANIFEST).write_text(json.dumps({**facts, "fallbacks": [entry]}))
    assert "[/b]: :smile: instead of [red] ([link=http://x])" in command("inspect", copy).out
    for value in ("\x1b[2J", "\n", "\u202e", "\ud800", 7, None):
        (copy / MANIFEST).write_text(json.dumps({**facts, "fallbacks": [{**entry, "why": value}]}))
        assert "fallbacks: why is not a str" in command("inspect", copy).error


def test_strange_files_in_the_folder_do_not_matter(copy: Path) -> None:
    (copy / "results.jsonl").write_bytes(b'{"metric": "torn')
    (copy / "subfolder").mkdir()
    (copy / "link").symlink_to("nowhere")
    read_everything(copy)
    (copy / "results.jsonl").write_bytes(b"[]\n")
    assert "results.jsonl" in refused(copy)
    assert open_model(copy).names()
