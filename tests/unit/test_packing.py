"""The bytes: numpy and C++ against each other, against whole-number arithmetic and the golden file."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretobit import native, packing
from paretobit.errors import ParetobitError

LEVELS = (2, 3, 4, 8, 16, 32, 64, 255)
GOLDEN = Path(__file__).parents[1] / "golden" / "packing.json"
BOTH = pytest.mark.parametrize("module", [packing, native], ids=["numpy", "native"])


def random_codes(levels: int, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, levels, (rows, columns), dtype=np.uint8)


@BOTH
def test_bytes_are_the_golden_ones(module):
    for case in json.loads(GOLDEN.read_text()):
        codes = np.array(case["codes"], np.uint8)
        packed = module.pack(codes, case["levels"])
        assert packed.tobytes().hex() == case["packed"]
        assert (module.unpack(packed, case["levels"], codes.shape[1]) == codes).all()


def test_golden_file_is_what_its_maker_writes():
    import runpy

    made = runpy.run_path(str(GOLDEN.with_name("make_packing.py")))["cases"]()
    assert made == json.loads(GOLDEN.read_text())
    assert {case["levels"] for case in made} == set(LEVELS)


@given(st.sampled_from(LEVELS), st.integers(0, 4), st.integers(1, 70), st.integers(0, 2**32))
def test_numpy_and_native_agree_and_come_back(levels, rows, columns, seed):
    codes = random_codes(levels, rows, columns, seed)
    packed = packing.pack(codes, levels)
    assert packed.shape == (rows, packing.row_bytes(levels, columns))
    assert (native.pack(codes, levels) == packed).all()
    assert (packing.unpack(packed, levels, columns) == codes).all()
    assert (native.unpack(packed, levels, columns) == codes).all()


@given(st.sampled_from(LEVELS), st.integers(1, 40), st.data())
def test_any_bytes_give_the_same_codes_or_the_same_refusal(levels, columns, data):
    width = packing.row_bytes(levels, columns)
    row = data.draw(st.binary(min_size=width, max_size=width))
    packed = np.frombuffer(row, np.uint8)[None]

    def attempt(module):
        try:
            return module.unpack(packed, levels, columns).tobytes()
        except ParetobitError:
            return "refused"

    found = attempt(packing)
    assert attempt(native) == found
    if found != "refused":  # accepted bytes are the only ones that mean these codes
        assert packing.pack(np.frombuffer(found, np.uint8)[None], levels).tobytes() == row


@pytest.mark.parametrize("levels", LEVELS)
def test_rows_beyond_one_chunk_and_many_threads(levels, monkeypatch):
    codes = random_codes(levels, 200, 4099)
    packed = native.pack(codes, levels, threads=1)
    monkeypatch.setattr(packing, "CHUNK", 3 * 4099)
    assert (packing.pack(codes, levels) == packed).all()
    assert (native.pack(codes, levels, threads=5) == packed).all()
    assert (native.unpack(packed, levels, 4099, threads=5) == codes).all()
    assert (packing.unpack(packed, levels, 4099) == codes).all()


@BOTH
def test_views_and_read_only_arrays(module):
    codes = random_codes(8, 6, 30)
    packed = module.pack(codes[::2, 3:24], 8)
    assert (packed == module.pack(codes[::2, 3:24].copy(), 8)).all()
    packed.flags.writeable = False
    assert (module.unpack(packed[1:], 8, 21) == codes[2::2, 3:24]).all()


@BOTH
@pytest.mark.parametrize("levels", LEVELS)
def test_codes_outside_the_grid_are_refused(module, levels):
    codes = random_codes(levels, 3, 20)
    codes[2, 19] = levels
    with pytest.raises(ParetobitError, match=f"code {levels} on a grid of {levels} levels.*hint: clip"):
        module.pack(codes, levels)


@BOTH
@pytest.mark.parametrize(
    ("levels", "columns", "row"),
    [
        (3, 5, [243]),
        (3, 10, [0, 255]),
        (3, 40, [0, 0, 0, 250, 0, 0, 0, 0]),  # inside the fast loop
        (3, 4, [81]),  # the fifth trit is filling
        (255, 3, [0, 255, 1]),
        (8, 3, [0, 2]),  # bit 9 is filling
        (2, 1, [2]),
        (64, 11, [0] * 8 + [4]),  # 66 bits
    ],
)
def test_bytes_that_no_packer_writes_are_refused(module, levels, columns, row):
    packed = np.array([row], np.uint8)
    with pytest.raises(ParetobitError, match="hint: the packed file is damaged"):
        module.unpack(packed, levels, columns)
    # the neighbouring good row is fine: the refusal is about that one byte
    assert module.unpack(np.zeros_like(packed), levels, columns).sum() == 0


@BOTH
@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.pack(np.zeros((2, 3), np.int8), 8),
        lambda m: m.pack(np.zeros(3, np.uint8), 8),
        lambda m: m.pack(np.zeros((2, 0), np.uint8), 8),
        lambda m: m.pack(np.zeros((2, 3), np.uint8), 7),
        lambda m: m.unpack(np.zeros((2, 3), np.uint8), 256, 3),
        lambda m: m.unpack(np.zeros((2, 3), np.uint8), 8, 9),
        lambda m: m.unpack(np.zeros((2, 3), np.uint8), 8, 0),
        lambda m: m.unpack(np.zeros((2, 3), np.uint8), 8, -8),
        lambda m: m.unpack(np.zeros((2, 3), np.uint8), 8, 2**64 + 8),
        lambda m: m.unpack(np.zeros((2, 3), np.uint16), 8, 8),
    ],
)
def test_wrong_shapes_types_and_levels_are_refused(module, call):
    with pytest.raises(ParetobitError):
        call(module)


@pytest.mark.parametrize("levels", LEVELS)
def test_row_bytes_is_the_fewest_whole_bytes(levels):
    states = 243 if levels == 3 else 256
    for columns in range(1, 60):
        size = packing.row_bytes(levels, columns)
        if levels == 3:
            assert 5 * (size - 1) < columns <= 5 * size
        else:
            bits = (levels - 1).bit_length()
            assert 8 * (size - 1) < columns * bits <= 8 * size
        assert states**size >= levels**columns
