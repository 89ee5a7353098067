"""The packed folder: lazy, exact, honest about its size, and strict about what it holds."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

import paretobit as pb
from paretobit.arch.spec import EMBED, FINAL_NORM
from paretobit.artifact import CARD, CONFIG, NEEDED, PLAN, RESULTS, TENSORS, Artifact
from paretobit.checkpoint import open_model
from paretobit.errors import ParetobitError
from paretobit.qtensor import QTensor
from paretobit.scheme import parse
from paretobit.sizes import parts
from paretobit.tensorfile import ALIGNMENT, DTYPES, SafetensorsFile
from paretobit.work import MANIFEST
from tests.commands import contents

MATRIX = "model.layers.0.mlp.down_proj.weight"  # (64, 96): the last group of 64 has 32 columns


@pytest.fixture(scope="module")
def packed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model at three bits by RTN. Read only."""
    out = tmp_path_factory.mktemp("packed") / "small"
    pb.quantize(str(model), to="w3g64", method="rtn", out=str(out))
    return out


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    """The same, to spoil."""
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def test_it_opens_as_a_model_of_the_same_shape(packed: Path, model: Path) -> None:
    made, source = open_model(packed), open_model(model)
    assert isinstance(made, Artifact) and made.name == "small"
    assert made.names() == source.names() == list(source.arch.shapes())
    assert [made.shape(name) for name in made.names()] == [source.shape(name) for name in source.names()]
    assert (made.arch, made.config, made.bits16) == (source.arch, source.config, source.bits16)
    assert made.companions == source.companions


@pytest.mark.parametrize(
    "rows",
    [slice(0, 1), slice(5, 9), slice(30, 34), slice(32, 33), slice(60, 64), slice(3, 3), slice(64, 64), slice(None)],
)
@pytest.mark.parametrize("name", [EMBED, MATRIX])
def test_rows_are_rows_of_the_whole(packed: Path, name: str, rows: slice) -> None:
    made = Artifact(packed)
    whole, part = made.read(name), made.read(name, rows)
    assert whole.dtype == part.dtype == np.float32 and whole.shape == made.shape(name)
    assert np.array_equal(part, whole[rows])


def test_rows_read_nothing_but_their_tiles(copy: Path) -> None:
    file, whole = SafetensorsFile(copy / TENSORS), Artifact(copy).read(MATRIX)
    raw = bytearray((copy / TENSORS).read_bytes())
    for suffix in (".codes", ".zero"):  # the second of two tiles becomes all ones: no zero point has a fourth bit
        info = file.tensors[MATRIX + suffix]
        half = (info.end - info.start) // 2
        raw[file.data_start + info.start + half : file.data_start + info.end] = b"\xff" * half
    (copy / TENSORS).write_bytes(raw)
    made = Artifact(copy)
    assert np.array_equal(made.read(MATRIX, slice(0, 32)), whole[:32])
    for rows in (slice(32, 33), slice(31, 33), slice(None)):
        with pytest.raises(ParetobitError, match="zero point 15 on a grid of 8 levels; hint: "):
            made.read(MATRIX, rows)


def test_reading_is_dequantizing(packed: Path) -> None:
    q = Artifact(packed).qtensor(MATRIX)
    scale, zero = (np.repeat(x.astype(np.float32), 64, axis=1)[:, :96] for x in (q.scale, q.zero))
    assert np.array_equal(Artifact(packed).read(MATRIX), scale * (q.codes - zero))


def test_vectors_are_kept_exactly_in_sixteen_bits_where_that_is_exact(packed: Path, model: Path) -> None:
    made, source = Artifact(packed), open_model(model)
    for name in source.names():
        if len(source.shape(name)) == 1:
            assert np.array_equal(made.read(name), source.read(name))
            assert made.file.tensors[name].dtype == "BF16" and str(made.schemes[name]) == "bf16"


def test_opening_reads_no_tensor(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for reader in ("map", "read_raw", "read_float32"):
        monkeypatch.setattr(SafetensorsFile, reader, lambda *a, **k: pytest.fail("a tensor was read"))
    made = Artifact(packed)
    assert made.size_bytes and made.bits_per_weight and made.nbytes(EMBED)


def test_sizes_are_bytes_on_disk(packed: Path) -> None:
    made = Artifact(packed)
    sizes = {path.name: path.stat().st_size for path in packed.iterdir()}
    assert set(NEEDED) == {TENSORS, PLAN, CONFIG, MANIFEST} <= set(sizes)
    assert made.size_bytes == sum(sizes[name] for name in NEEDED)
    assert made.size_bytes + made.other_bytes == sum(sizes.values())
    assert made.parameters == sum(math.prod(shape) for shape in made.arch.shapes().values())
    assert made.bits_per_weight == 8 * made.size_bytes / made.parameters
    header = made.file.data_start
    assert sum(made.nbytes(name) for name in made.names()) + header == sizes[TENSORS]
    assert header % ALIGNMENT == 0


def test_packed_arrays_lie_on_cache_lines(packed: Path) -> None:
    file = Artifact(packed).file
    for name, info in file.tensors.items():
        whole = 64 if name.endswith((".codes", ".scale")) else DTYPES[info.dtype].itemsize
        assert (file.data_start + info.start) % whole == 0, name
    kinds = [name.rpartition(".")[2] for name in file.tensors]
    assert {"codes", "scale", "zero", "weight"} == set(kinds)


def test_a_tensor_takes_what_its_scheme_says() -> None:
    # 64 rows of 96 codes of 3 bits = 36 bytes; two groups: two halves, and two zero points of 4 bits = one byte.
    assert [p.nbytes for p in parts(parse("w3g64"), (64, 96))] == [64 * 36, 64 * 4, 64]
    assert [p.shape for p in parts(parse("w3g64"), (64, 96))] == [(2, 32 * 36), (2, 2, 32), (2, 2, 16)]
    # 96 codes of three levels take five units of 20 columns, a byte for five codes.
    assert [p.nbytes for p in parts(parse("w1.58"), (64, 96))] == [64 * 20, 64 * 2]
    # A row more is a tile more; groups of 24 columns are two units of 16.
    assert [p.nbytes for p in parts(parse("w5g24z"), (65, 96))] == [96 * 4 * 20, 96 * 4 * 2, 96 * 4]
    assert [p.nbytes for p in parts(parse("bf16"), (64, 96))] == [64 * 96 * 2]


def test_the_hash_covers_what_logits_depend_on(copy: Path) -> None:
    before = Artifact(copy).hash
    (copy / RESULTS).write_text("")
    (copy / CARD).write_text("another card")
    (copy / "tokenizer.json").write_bytes(b"{}")
    assert Artifact(copy).hash == before
    tensors = bytearray((copy / TENSORS).read_bytes())
    at = SafetensorsFile(copy / TENSORS)
    tensors[at.data_start + at.tensors[MATRIX + ".scale"].start] ^= 1
    (copy / TENSORS).write_bytes(tensors)
    assert Artifact(copy).hash != before


def test_an_artifact_can_be_quantized_again(packed: Path, tmp_path: Path) -> None:
    pb.quantize(str(packed), to="bf16", out=str(tmp_path / "wide"))
    wide, made = Artifact(tmp_path / "wide"), Artifact(packed)
    assert wide.companions == made.companions
    for name in made.names():
        # bf16 has 8 significant bits: rounding costs at most 2^-8 of the value.
        assert np.allclose(wide.read(name), made.read(name), rtol=2.0**-8, atol=0), name


def test_files_come_out_the_same_every_time(packed: Path, model: Path, tmp_path: Path) -> None:
    pb.quantize(str(model), to="w3g64", method="rtn", out=str(tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(packed)


def test_the_card_says_how_it_was_made(packed: Path) -> None:
    card, made = (packed / CARD).read_text(), Artifact(packed)
    assert f"{made.size_bytes} bytes" in card and f"{made.bits_per_weight:.3f} bits per weight" in card
    assert "14 matrices: w3g64 by rtn" in card and "1 matrices: w4g64 by rtn" in card
    assert f"- {EMBED}: w4g64 instead of w3g64" in card
    assert made.manifest["model"]["hash"] in card
    assert "`paretobit quantize tiny --plan plan.json -o OUT`" in card


@pytest.mark.parametrize("file", NEEDED)
def test_a_missing_file_is_named(copy: Path, file: str) -> None:
    (copy / file).unlink()
    with pytest.raises(ParetobitError, match=f"copy: {file} is missing; hint: "):
        Artifact(copy)


def test_a_scale_that_is_not_finite_is_named_when_it_is_read(copy: Path) -> None:
    file = SafetensorsFile(copy / TENSORS)
    raw = bytearray((copy / TENSORS).read_bytes())
    at = file.data_start + file.tensors[MATRIX + ".scale"].start + 2 * (32 + 3)  # tile 0, group 1, row 3
    raw[at : at + 2] = np.float16("inf").tobytes()
    (copy / TENSORS).write_bytes(raw)
    made = Artifact(copy)
    assert made.read(MATRIX, slice(0, 3)).shape == (3, 96)
    with pytest.raises(ParetobitError, match=rf"{MATRIX}\.scale is not finite.*hint:"):
        made.read(MATRIX)


def test_stored_tensors_must_be_those_of_the_plan(copy: Path) -> None:
    facts = json.loads((copy / PLAN).read_text())
    facts["layers"][MATRIX]["scheme"] = "w4g64"
    (copy / PLAN).write_text(json.dumps(facts))
    with pytest.raises(
        ParetobitError, match=rf"{MATRIX}\.codes holds U8 \(2, 1152\), the plan calls for U8 \(2, 1536\)"
    ):
        Artifact(copy)
    facts["layers"][MATRIX]["scheme"] = "w3g64s"  # the codes fit, and the zero points are left over
    (copy / PLAN).write_text(json.dumps(facts))
    with pytest.raises(ParetobitError, match=rf"unknown tensor {MATRIX}\.zero; hint:"):
        Artifact(copy)


def test_a_group_far_wider_than_the_row_costs_nothing(model: Path, tmp_path: Path) -> None:
    """`w4g99999999` says the same as `w4` of a row; whoever repeats a scale so many times runs out of memory."""
    pb.quantize(str(model), to="w4g99999999s", embed="bf16", method="rtn", out=str(tmp_path / "out"))
    pb.quantize(str(model), to="w4", embed="bf16", method="rtn", out=str(tmp_path / "same"))
    wide, plain = Artifact(tmp_path / "out"), Artifact(tmp_path / "same")
    for name in plain.names():
        assert np.array_equal(wide.read(name), plain.read(name))
    assert isinstance(wide.qtensor(MATRIX), QTensor) and wide.shape(FINAL_NORM) == (64,)
