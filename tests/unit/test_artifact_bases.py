"""Matrices on the trellis and in rotated bases: what an artifact gives back, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paretobit.arch.spec import EMBED, FINAL_NORM, HEAD
from paretobit.artifact import PLAN, TENSORS, Artifact
from paretobit.errors import ParetobitError
from paretobit.planfile import check_covers, taps
from paretobit.rotation import Rotation
from paretobit.sizes import tensor_bytes
from tests.packed import Shelf

Q, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"
SCHEMES = {"embed": "w4t", "lm_head": "w3t", "q_proj": "w1t", "down": "w2t"}
SOME = ["model.layers.0.attn_in", "embed_out"]
ROWS = [slice(0, 1), slice(5, 9), slice(60, 70), slice(63, 64), slice(64, 64), slice(130, 300), slice(None)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def rotated(shelf: Shelf) -> Artifact:
    return shelf.trellis("llama, untied", SCHEMES, [{"method": "rotate", "seed": 9}])


def test_rotations_are_those_of_the_taps(shelf: Shelf, rotated: Artifact) -> None:
    for tap in taps(rotated.arch):
        for name in tap.consumers:
            found, wanted = rotated.rotation(name), Rotation.of(tap.width, 9, tap.name)
            assert found is not None and found.order == wanted.order and (found.signs == wanted.signs).all()
    assert rotated.rotation(FINAL_NORM) is None
    some = shelf.trellis("llama, untied", SCHEMES, [{"method": "rotate", "taps": SOME}])
    turned = [name for name in some.names() if some.rotation(name) is not None]
    assert turned == [EMBED, *(Q.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj"))]
    tied = shelf.trellis("llama", SCHEMES, [{"method": "rotate"}]).rotation(EMBED)
    assert tied is not None and (tied.signs == Rotation.of(tied.width, 0, "head_in").signs).all()


def test_a_matrix_is_read_in_the_models_basis(rotated: Artifact) -> None:
    for name in (EMBED, HEAD, Q, DOWN, Q.replace("q_proj", "v_proj")):
        turned = rotated.rotation(name)
        assert turned is not None
        whole, wanted = rotated.read(name), turned.inverse(rotated.qtensor(name).dequant())
        assert whole.dtype == np.float32 and whole.tobytes() == wanted.tobytes()
        for rows in ROWS:
            assert np.array_equal(rotated.read(name, rows), whole[rows])


def test_stored_rows_come_in_whole_rings(rotated: Artifact) -> None:
    whole = rotated.qtensor(EMBED)
    for rows in (slice(0, 64), slice(64, 192), slice(128, None), slice(64, 64)):
        part = rotated.qtensor(EMBED, rows)
        assert (part.codes == whole.codes[rows]).all() and (part.scale == whole.scale[rows]).all()
    for rows in (slice(0, 63), slice(1, 64), slice(32, 96)):
        with pytest.raises(ParetobitError, match="cut rings of 64 rows; hint: take whole rings"):
            rotated.qtensor(EMBED, rows)


def test_a_trellis_costs_its_bits_and_a_scale_a_row(rotated: Artifact) -> None:
    vocab, width = rotated.shape(EMBED)
    rows, columns = -(-vocab // 64) * 64, -(-width // 16) * 16
    assert rotated.nbytes(EMBED) == tensor_bytes(rotated.schemes[EMBED], (vocab, width)) == rows * (columns // 2 + 2)


@pytest.fixture
def copy(rotated: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rotated.folder, tmp_path / "copy"))


def spoil(folder: Path, at: int, value: int) -> None:
    data = bytearray((folder / TENSORS).read_bytes())
    data[at] = value
    (folder / TENSORS).write_bytes(data)


def test_padding_that_is_not_zero_is_refused(copy: Path) -> None:
    made = Artifact(copy)
    assert made.shape(EMBED)[0] % 64  # so the last tile is filled up
    for suffix, what in ((".scale", "scales"), (".codes", "codes")):
        end = made.file.data_start + made.file.tensors[EMBED + suffix].end - 1  # of the last lane of the last set
        before = (copy / TENSORS).read_bytes()[end]
        spoil(copy, end, 1)
        with pytest.raises(ParetobitError, match=f"the padding of packed {what} is not 0; hint"):
            Artifact(copy).read(EMBED)
        spoil(copy, end, before)
    Artifact(copy).read(EMBED)


@pytest.mark.parametrize("scheme", ["w3t", "w4", "w4g64", "w3t4"])
def test_another_scheme_than_the_stored_one_is_refused(copy: Path, scheme: str) -> None:
    facts = json.loads((copy / PLAN).read_text())
    facts["layers"][EMBED]["scheme"] = scheme
    (copy / PLAN).write_text(json.dumps(facts))
    with pytest.raises(ParetobitError):
        Artifact(copy).read(EMBED)


@pytest.mark.parametrize(
    ("transforms", "named"),
    [
        ([{"method": "rotate", "taps": ["model.layers.9.attn_in"]}], r"model\.layers\.9\.attn_in, which is no tap"),
        ([{"method": "rotate", "taps": [Q]}], "which is no tap"),
        ([{"method": "rotate", "taps": ["head_in", "head_in"]}], "head_in is transformed twice"),
        ([{"method": "rotate"}, {"method": "rotate", "seed": 1, "taps": ["head_in"]}], "head_in is transformed twice"),
    ],
)
def test_taps_that_the_model_does_not_have_are_refused(copy: Path, transforms: list, named: str) -> None:
    facts = json.loads((copy / PLAN).read_text())
    (copy / PLAN).write_text(json.dumps({**facts, "transforms": transforms}))
    with pytest.raises(ParetobitError, match=f"{named}.*; hint: "):
        Artifact(copy)


def test_only_an_embedding_of_its_own_has_a_tap(shelf: Shelf) -> None:
    for family, fits in (("llama, untied", True), ("llama", False)):
        plan = replace(shelf(family, "w4g32").plan, transforms=({"method": "rotate", "taps": ["embed_out"]},))
        if fits:
            check_covers(plan, shelf(family, "w4g32").arch, "plan")
        else:
            with pytest.raises(ParetobitError, match="embed_out, which is no tap"):
                check_covers(plan, shelf(family, "w4g32").arch, "plan")
