"""The bytes: numpy and C++ against each other, against whole-number arithmetic and the golden file."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed import trellis_codes

from paretobit import native, packing, trellis
from paretobit.errors import ParetobitError
from paretobit.packing import LEVELS, Layout
from paretobit.scheme import TRELLIS_BITS, Grid, parse

GROUPS = (None, 16, 24, 64)
RAGGED = ((1, 1), (31, 15), (32, 16), (33, 17), (40, 20), (18, 64), (70, 100), (64, 192))
GOLDEN = Path(__file__).parents[1] / "golden" / "packing.json"
BOTH = pytest.mark.parametrize("module", [packing, native], ids=["numpy", "native"])
RINGS = tuple(f"w{bits}t" for bits in TRELLIS_BITS)
EVERY = pytest.mark.parametrize("levels", LEVELS)


def grid_of(levels: int, group: int | None = None) -> Grid:
    return Grid("affine", 8, levels, group, "stored")


def golden(key: str) -> list[dict]:
    """The cases of affine grids ("levels") or of trellises ("bits")."""
    return [case for case in json.loads(GOLDEN.read_text()) if key in case]


def random_codes(levels: int, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, levels, (rows, columns), dtype=np.uint8)


def code_bits(levels: int) -> int:
    return (levels - 1).bit_length()


@BOTH
def test_bytes_are_the_golden_ones(module):
    for case in json.loads(GOLDEN.read_text()):
        shape = tuple(case["shape"])
        grid = grid_of(case["levels"], case["group"]) if "levels" in case else parse(f"w{case['bits']}t").weight
        codes = np.frombuffer(bytes.fromhex(case["codes"]), np.uint8).reshape(shape)
        packed = module.pack(codes, grid)
        assert packed.tobytes().hex() == case["packed_codes"]
        assert (module.unpack(packed, grid, shape) == codes).all()


@BOTH
def test_the_example_of_the_documentation(module):
    packed = module.pack(np.array([[1, 2, 3, 4, 5, 6], [9, 10, 11, 12, 13, 14]], np.uint8), grid_of(16))
    assert packed.tobytes() == bytes.fromhex("51620304d9ea0b0c") + bytes(248)
    ternary = np.zeros((1, 20), np.uint8)
    ternary[0, ::4] = 2, 1, 0, 1, 2
    assert module.pack(ternary, grid_of(3)).tobytes() == b"\xcc" + bytes(127)
    column = np.zeros((64, 1), np.uint8)
    column[[0, 16, 32, 48, 1], 0] = 1, 2, 3, 0, 1
    ring = parse("w2t").weight
    assert module.pack(column, ring).tobytes() == bytes.fromhex("6c00000040") + bytes(251)
    levels = trellis.levels(column, 2, np.arange(32, dtype=np.uint8))
    assert levels[1, 0] == 0x1 + 16 + 0xB


def test_zero_points_and_scales_are_the_golden_ones():
    for case in golden("levels"):
        zero, scale = np.array(case["zero"], np.uint8), np.array(case["scale"], "<u2").view("<f2")
        packed = packing.pack_zero(zero, case["levels"])
        assert packed.tobytes().hex() == case["packed_zero"]
        assert (packing.unpack_zero(packed, case["levels"], zero.shape) == zero).all()
        packed = packing.pack_scale(scale)
        assert packed.tobytes().hex() == case["packed_scale"]
        assert (packing.unpack_scale(packed, scale.shape) == scale).all()


def test_scales_of_rings_are_the_golden_ones():
    for case in golden("bits"):
        scale = np.array(case["scale"], "<u2").view("<f2")
        packed = packing.pack_scale(scale, 64)
        assert packed.tobytes().hex() == case["packed_scale"]
        assert (packing.unpack_scale(packed, scale.shape, 64) == scale).all()


def test_golden_file_is_what_its_maker_writes():
    import runpy

    maker = runpy.run_path(str(GOLDEN.with_name("make_packing.py")))
    made = [*maker["cases"](), *maker["ring_cases"]()]
    assert made == json.loads(GOLDEN.read_text())
    assert {case["levels"] for case in golden("levels")} == set(LEVELS)
    assert {case["bits"] for case in golden("bits")} == set(TRELLIS_BITS)


@EVERY
@pytest.mark.parametrize("group", GROUPS)
def test_ragged_shapes_agree_and_come_back(levels, group):
    grid = grid_of(levels, group)
    for shape in RAGGED:
        codes, at = random_codes(levels, *shape), Layout.of(grid, shape)
        packed = packing.pack(codes, grid)
        assert packed.shape == (at.tiles, at.tile_bytes)
        assert (native.pack(codes, grid) == packed).all()
        assert (packing.unpack(packed, grid, shape) == codes).all()
        assert (native.unpack(packed, grid, shape) == codes).all()


@pytest.mark.parametrize("scheme", RINGS)
def test_ragged_rings_agree_and_come_back(scheme):
    grid = parse(scheme).weight
    for shape in (*RAGGED, (0, 3), (64, 16), (65, 33), (129, 20)):
        codes, at = trellis_codes(np.random.default_rng(0), shape, grid.bits), Layout.of(grid, shape)
        packed = packing.pack(codes, grid)
        assert (
            packed.shape == (at.tiles, at.tile_bytes) == (-(-shape[0] // 64), -(-shape[1] // 16) * int(128 * grid.bits))
        )
        for module in (packing, native):
            assert (module.pack(codes, grid) == packed).all()
            assert (module.unpack(packed, grid, shape) == codes).all()


@BOTH
@pytest.mark.parametrize("scheme", RINGS)
def test_what_no_packer_of_rings_writes_is_refused(module, scheme):
    """From all zeros, one bit at a time: what is accepted changes one code; nothing else, the padding, is accepted."""
    grid, shape = parse(scheme).weight, (50, 5)
    packed, seen = packing.pack(np.zeros(shape, np.uint8), grid), set()
    for at in range(8 * packed.size):
        packed[0, at // 8] = 1 << at % 8
        try:
            codes = module.unpack(packed, grid, shape)
        except ParetobitError as why:
            assert "padding" in str(why)
        else:
            ((row,), (column,)) = codes.nonzero()
            seen.add((row, column, codes[row, column]))
        packed[0, at // 8] = 0
    width = trellis.widths(grid.bits)
    assert seen == {(r, c, 1 << k) for r in range(50) for c in range(5) for k in range(width[r // 16])}
    for row in range(0, 50, 16):
        codes = np.zeros(shape, np.uint8)
        codes[row, 1] = levels = 1 << width[row // 16]
        with pytest.raises(ParetobitError, match=f"code {levels} on a grid of {levels} levels"):
            module.pack(codes, grid)


@given(st.sampled_from(LEVELS), st.integers(0, 70), st.integers(1, 70), st.integers(1, 80), st.integers(0, 2**32))
def test_numpy_and_native_agree_and_come_back(levels, rows, columns, group, seed):
    codes, grid = random_codes(levels, rows, columns, seed), grid_of(levels, group)
    packed = packing.pack(codes, grid)
    assert (native.pack(codes, grid) == packed).all()
    assert (packing.unpack(packed, grid, codes.shape) == codes).all()
    assert (native.unpack(packed, grid, codes.shape) == codes).all()


@given(st.sampled_from(LEVELS), st.integers(1, 34), st.integers(1, 40), st.integers(0, 2**32), st.data())
def test_any_bytes_give_the_same_codes_or_the_same_refusal(levels, rows, columns, seed, data):
    grid, shape = grid_of(levels, 16), (rows, columns)
    packed = packing.pack(random_codes(levels, rows, columns, seed), grid)
    for _ in range(data.draw(st.integers(1, 3))):
        packed.reshape(-1)[data.draw(st.integers(0, packed.size - 1))] = data.draw(st.integers(0, 255))

    def attempt(module):
        try:
            return module.unpack(packed, grid, shape)
        except ParetobitError:
            return None

    found, other = attempt(packing), attempt(native)
    assert (found is None) == (other is None)
    if found is not None:  # accepted bytes are the only ones that mean these codes
        assert (found == other).all() and (packing.pack(found, grid) == packed).all()


@BOTH
@pytest.mark.parametrize("levels", [n for n in LEVELS if n != 3])
def test_every_bit_belongs_to_one_code_or_is_refused(module, levels):
    """From all zeros, one bit at a time: what is accepted changes one code; nothing else, the padding, is accepted."""
    grid, shape, bits = grid_of(levels), (18, 5), code_bits(levels)
    packed, seen = packing.pack(np.zeros(shape, np.uint8), grid), set()
    for at in range(8 * packed.size):
        packed[0, at // 8] = 1 << at % 8
        try:
            codes = module.unpack(packed, grid, shape)
        except ParetobitError as why:
            assert "padding" in str(why)
        else:
            ((row,), (column,)) = codes.nonzero()
            seen.add((row, column, codes[row, column]))
        packed[0, at // 8] = 0
    assert seen == {(r, c, 1 << k) for r in range(18) for c in range(5) for k in range(bits)}


@BOTH
def test_ternary_bytes_are_the_243_that_stand_for_five_digits(module):
    grid, shape = grid_of(3), (32, 20)  # a whole unit: every byte is five codes
    packed, found = np.zeros((1, 128), np.uint8), {}
    for byte in range(256):
        packed[0, 77] = byte
        try:
            codes = module.unpack(packed, grid, shape)
        except ParetobitError as why:
            assert "a ternary byte stands for no five digits" in str(why)
        else:  # byte 64 + 13 of the unit: row 16 + 3, columns 1, 5, 9, 13, 17
            assert codes.sum() == codes[19, 1::4].sum()
            found[byte] = int(codes[19, 1::4] @ np.array([81, 27, 9, 3, 1]))
    assert found == {256 * n // 243: n for n in range(243)}


@EVERY
def test_zero_points_come_back_and_nothing_else_is_read(levels):
    for shape in ((0, 2), (1, 1), (32, 3), (33, 2), (64, 1), (70, 5)):
        zero = random_codes(levels, *shape)
        packed = packing.pack_zero(zero, levels)
        assert packed.shape == (-(-shape[0] // 32), shape[1], 4 * packing.zero_bits(levels))
        assert (packing.unpack_zero(packed, levels, shape) == zero).all()
    packed, seen = packing.pack_zero(np.zeros((18, 2), np.uint8), levels), set()
    flat = packed.reshape(-1)
    for at in range(8 * flat.size):
        flat[at // 8] = 1 << at % 8
        try:
            zero = packing.unpack_zero(packed, levels, (18, 2))
        except ParetobitError as why:
            assert "hint: the packed file is damaged" in str(why)
        else:
            ((row,), (group,)) = zero.nonzero()
            seen.add((row, group, zero[row, group]))
        flat[at // 8] = 0
    assert seen == {(r, g, 1 << k) for r in range(18) for g in range(2) for k in range(code_bits(levels))}


def test_scales_come_back_bit_by_bit():
    words = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 16)  # every half there is
    for rows in (1, 32, 33, 4096):
        scale = words[:rows].view(np.float16)
        tiled = packing.pack_scale(scale)
        assert tiled.shape == (-(-rows // 32), 16, 32) and tiled.dtype == np.float16
        assert packing.unpack_scale(tiled, scale.shape).tobytes() == scale.tobytes()
    tiled = packing.pack_scale(words[:33].view(np.float16))
    tiled[1, 15, 31] = -0.0  # a padding row
    with pytest.raises(ParetobitError, match="the padding of packed scales is not 0; hint: "):
        packing.unpack_scale(tiled, (33, 16))


@EVERY
def test_matrices_beyond_one_chunk_and_many_threads(levels, monkeypatch):
    codes, grid = random_codes(levels, 200, 4099), grid_of(levels, 64)
    packed = native.pack(codes, grid, threads=1)
    monkeypatch.setattr(packing, "CHUNK", 3 * 32 * 4099)
    assert len(list(Layout.of(grid, codes.shape).chunks())) > 2
    assert (packing.pack(codes, grid) == packed).all()
    assert (native.pack(codes, grid, threads=5) == packed).all()
    assert (native.unpack(packed, grid, codes.shape, threads=5) == codes).all()
    assert (packing.unpack(packed, grid, codes.shape) == codes).all()


@BOTH
def test_views_and_read_only_arrays(module):
    codes, grid = random_codes(8, 140, 30), grid_of(8, 16)
    packed = module.pack(codes[::2, 3:24], grid)
    assert (packed == module.pack(codes[::2, 3:24].copy(), grid)).all()
    packed.flags.writeable = False
    assert (module.unpack(packed[1:], grid, (38, 21)) == codes[64::2, 3:24]).all()


@BOTH
@EVERY
def test_codes_outside_the_grid_are_refused(module, levels):
    for shape, at in (((3, 20), (2, 19)), ((64, 60), (40, 3))):
        codes = random_codes(levels, *shape)
        codes[at] = levels
        with pytest.raises(ParetobitError, match=f"code {levels} on a grid of {levels} levels.*hint: clip"):
            module.pack(codes, grid_of(levels))


def test_zero_points_outside_the_grid_are_refused():
    for levels in LEVELS:
        with pytest.raises(ParetobitError, match=f"zero point {levels} on a grid of {levels} levels.*hint: clip"):
            packing.pack_zero(np.full((1, 1), levels, np.uint8), levels)


@BOTH
def test_code_255_of_255_levels_is_refused(module):
    packed = module.pack(random_codes(255, 40, 33), grid_of(255))
    packed[0, 100] = 255
    with pytest.raises(ParetobitError, match=r"code 255 on a grid of 255 levels; hint: the packed file is damaged"):
        module.unpack(packed, grid_of(255), (40, 33))


@BOTH
@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.pack(np.zeros((2, 3), np.int8), grid_of(8)),
        lambda m: m.pack(np.zeros(3, np.uint8), grid_of(8)),
        lambda m: m.pack(np.zeros((2, 0), np.uint8), grid_of(8)),
        lambda m: m.pack(np.zeros((2, 3), np.uint8), grid_of(7)),
        lambda m: m.pack(np.zeros((2, 3), np.uint8), grid_of(8, 0)),
        lambda m: m.pack(np.zeros((2, 3), np.uint8), grid_of(8, -16)),
        lambda m: m.pack(np.zeros((2, 3), np.uint8), Grid("trellis", 5, 256, None, "mid")),
        lambda m: m.pack(np.zeros((2, 30), np.uint8), Grid("trellis", 2, 256, 16, "mid")),
        lambda m: m.pack(np.zeros((2, 3), np.uint8), parse("bf16").weight),
        lambda m: m.unpack(np.zeros((1, 192), np.uint8), grid_of(256), (2, 3)),
        lambda m: m.unpack(np.zeros((1, 192), np.uint8), grid_of(8), (2, 17)),
        lambda m: m.unpack(np.zeros((1, 192), np.uint8), grid_of(8, 1), (2, 3)),
        lambda m: m.unpack(np.zeros((1, 192), np.uint8), grid_of(8), (33, 3)),
        lambda m: m.unpack(np.zeros((1, 192), np.uint8), grid_of(8), (0, 3)),
        lambda m: m.unpack(np.zeros((1, 192), np.uint8), grid_of(8), (-1, 3)),
        lambda m: m.unpack(np.zeros((1, 192), np.uint8), grid_of(8), (2, 0)),
        lambda m: m.unpack(np.zeros((1, 192), np.uint8), grid_of(8), (2, -8)),
        lambda m: m.unpack(np.zeros((1, 192), np.uint8), grid_of(8), (2, 2**64 + 8)),
        lambda m: m.unpack(np.zeros((1, 192), np.uint16), grid_of(8), (2, 3)),
        lambda m: m.unpack(np.zeros(192, np.uint8), grid_of(8), (2, 3)),
    ],
)
def test_wrong_shapes_types_and_grids_are_refused(module, call):
    assert (module.unpack(np.zeros((1, 192), np.uint8), grid_of(8), (2, 3)) == 0).all()
    with pytest.raises(ParetobitError, match="; hint: "):
        call(module)


@EVERY
def test_whole_units_cost_their_bits_and_a_part_costs_a_unit(levels):
    bits, unit = (1.6, 20) if levels == 3 else (code_bits(levels), 16)
    for group in (None, unit, 4 * unit):
        at = Layout.of(grid_of(levels, group), (64, 12 * unit))
        assert at.tiles * at.tile_bytes * 8 == round(64 * 12 * unit * bits)
    whole = Layout.of(grid_of(levels), (32, unit)).tile_bytes
    assert Layout.of(grid_of(levels), (1, 1)).tile_bytes == whole
    assert Layout.of(grid_of(levels), (32, unit + 1)).tile_bytes == 2 * whole
    assert Layout.of(grid_of(levels, unit + 1), (32, unit + 4)).tile_bytes == 3 * whole
