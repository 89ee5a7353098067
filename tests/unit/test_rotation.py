"""Rotations: Hadamard matrices, the map they make, its float32 numbers on every ISA, and what is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from paretobit import native, rotation
from paretobit.errors import ParetobitError
from paretobit.rotation import Rotation, hadamard, is_constructible, order_of

ISAS = native.available()
UNIT = 2.0**-24  # unit roundoff of float32
# Odd ones, blocks of every size below sixteen, one block, many blocks, dense factors of every construction.
WIDTHS = (1, 2, 3, 4, 6, 8, 16, 24, 32, 47, 48, 64, 112, 128, 151, 192, 256, 368, 512, 576, 640, 832, 896, 1024, 1152,
          1216, 1472, 1536, 1856, 2048, 2752, 4096, 4864, 5504, 5632, 6912, 11008, 12288, 16384)  # fmt: skip


def numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Magnitudes that differ by 2^16, so that sums depend on their order, and zeros of both signs."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape) * 2.0 ** rng.integers(-8, 9, shape)).astype(np.float32)
    return np.where(rng.random(shape) < 0.1, np.float32(-0.0), np.where(rng.random(shape) < 0.1, np.float32(0), x))


def exact(r: Rotation) -> np.ndarray:
    """R in float64, from Kronecker products alone; Sylvester's entry (i, j) is minus one to the common bits' number."""
    index = np.arange(r.block)
    common = index[:, None] & index
    sylvester = 1 - 2 * (sum(common >> bit for bit in range(r.block.bit_length())) & 1)
    outer = np.eye(r.width // r.block) if r.order == 1 else r.factor().astype(np.float64)
    return np.kron(outer, sylvester) * r.signs / np.sqrt(r.order * r.block)


def operations(r: Rotation) -> int:
    """Roundings on the way from an input to an output: order / 4 + 1 in the dense factor, one a butterfly, the scale's
    own and its product's."""
    return (r.order // 4 + 1 if r.order > 1 else 0) + (r.block.bit_length() - 1) + 2


@pytest.mark.parametrize("order", [m for m in range(1, rotation.MOST_ORDER + 1) if is_constructible(m)])
def test_constructed_matrices_are_hadamard(order: int) -> None:
    h = hadamard(order).astype(np.int64)
    assert h.shape == (order, order) and (np.abs(h) == 1).all()
    assert (h @ h.T == order * np.eye(order, dtype=np.int64)).all()


@pytest.mark.parametrize(
    ("width", "order"),
    [(1, 1), (151, 1), (48, 1), (2048, 1), (576, 36), (640, 20), (1152, 36), (1536, 12), (5632, 44), (6912, 108),
     (896, 28), (4864, 76), (11008, 172), (13824, 108), (14336, 28), (53248, 52), (25600, 100), (17920, 140)],
)  # fmt: skip
def test_widths_of_published_models_factor_as_they_should(width: int, order: int) -> None:
    assert order_of(width) == order


@pytest.mark.parametrize("width", [w for w in WIDTHS if w <= 3000])
def test_a_rotation_is_what_its_factors_say(width: int) -> None:
    """Every output is a sum of terms ±x / √n, each rounded at most `operations` times: the error is at most that many
    unit roundoffs of the sum of absolute values (Higham, section 3.1). The inverse likewise."""
    r = Rotation.of(width, 1, "tap")
    dense, x = exact(r), numbers((3, width), width)
    assert np.abs(dense @ dense.T - np.eye(width)).max() < 1e-13, "not orthonormal"
    steps = operations(r) * UNIT / (1 - operations(r) * UNIT)
    truth, most = x.astype(np.float64) @ dense.T, np.abs(x).astype(np.float64) @ np.abs(dense.T)
    assert (np.abs(r.forward(x) - truth) <= steps * most).all()
    truth, most = x.astype(np.float64) @ dense, np.abs(x).astype(np.float64) @ np.abs(dense)
    assert (np.abs(r.inverse(x) - truth) <= steps * most).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_lengths_stay_and_the_inverse_undoes(width: int) -> None:
    """Errors in length, as shares of what is rotated. A butterfly rounds each of its outputs once: a unit roundoff. So
    do the scale and its product. An output of the dense factor, k roundings deep, is off by k units of Σ|x| (Higham);
    over all outputs that is at most k · order · |x| long, and they themselves are √order · |x|: √order · k units."""
    r = Rotation.of(width, 2, "tap")
    x = numbers((2, width), width + 1)
    y = r.forward(x)
    length = np.linalg.norm(x.astype(np.float64), axis=1)
    bound = operations(r) * np.sqrt(r.order) * UNIT * length * 1.01
    assert (np.abs(np.linalg.norm(y.astype(np.float64), axis=1) - length) <= bound).all()
    apart = np.linalg.norm(r.inverse(y).astype(np.float64) - x, axis=1)
    assert (apart <= 2 * bound).all()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("isa", ISAS)
def test_every_isa_equals_the_definition_bit_for_bit(isa: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.ISA_VARIABLE, isa)
    r, x = Rotation.of(width, 3, "tap"), numbers((3, width), width + 2)
    assert native.rotate_inputs(r, x, threads=1).tobytes() == r.forward(x).tobytes()
    assert native.unrotate_inputs(r, x, threads=1).tobytes() == r.inverse(x).tobytes()


def test_any_leading_shape_and_any_number_of_threads() -> None:
    r = Rotation.of(576, 0, "tap")
    x = numbers((4, 100, 576))
    expected = r.forward(x)
    assert expected.shape == x.shape
    assert all(native.rotate_inputs(r, x, threads=n).tobytes() == expected.tobytes() for n in (1, 3))
    assert r.forward(x[1, 7]).tobytes() == expected[1, 7].tobytes()
    assert native.rotate_inputs(r, x[::2, ::3]).tobytes() == expected[::2, ::3].tobytes()
    assert native.rotate_inputs(r, x[:0]).shape == (0, 100, 576)


@pytest.mark.parametrize("width", [47, 112, 576, 1536, 2048])
def test_a_layer_with_rotated_inputs_and_weights_is_the_same_function(width: int) -> None:
    """With products summed exactly, what differs are the errors of both rotations. By Cauchy-Schwarz an output of the
    layer is off by at most |w| |x| times the sum of both relative errors in length, and their product."""
    r = Rotation.of(width, 4, "tap")
    w, x = numbers((40, width), 5), numbers((7, width), 6)
    plain = x.astype(np.float64) @ w.astype(np.float64).T
    rotated = r.forward(x).astype(np.float64) @ r.forward(w).astype(np.float64).T
    relative = operations(r) * np.sqrt(r.order) * UNIT
    sizes = np.linalg.norm(x.astype(np.float64), axis=1)[:, None] * np.linalg.norm(w.astype(np.float64), axis=1)
    assert (np.abs(rotated - plain) <= (2 * relative + relative**2 + 1e-12) * sizes).all()
    # The bound means something: with other signs on one side it is another function.
    other = Rotation.of(width, 5, "tap").forward(x).astype(np.float64) @ r.forward(w).astype(np.float64).T
    assert np.abs(other - plain).max() > 100 * (2 * relative * sizes).max()


def test_outliers_are_spread() -> None:
    for width in (576, 2048, 5632):
        x = np.zeros(width, np.float32)
        x[17] = 1
        y = np.abs(Rotation.of(width, 0, "tap").forward(x))
        assert np.allclose(y, 1 / np.sqrt(width), rtol=4 * UNIT, atol=0)


def test_the_matrix_serves_matrix_products() -> None:
    r = Rotation.of(640, 0, "tap")
    x = numbers((3, 640))
    index = np.arange(r.block)
    sylvester = np.array([[(-1) ** int(i & j).bit_count() for j in index] for i in index]) / np.sqrt(r.block)
    parts = (x * r.signs).reshape(3, r.order, r.block)
    found = (r.matrix() @ parts @ sylvester).reshape(3, 640)
    assert r.matrix().dtype == np.float32
    assert np.allclose(found, r.forward(x), rtol=0, atol=640 * UNIT * np.abs(x).max())


def test_signs_are_the_same_everywhere() -> None:
    """An artifact stores the seed and the name, not the signs: they may never change."""
    signs = [Rotation.of(width, 7, "model.layers.0.attn_in").signs for width in (1, 7, 576, 2048)]
    assert [list(s[:7]) for s in signs[1:]] == [list(signs[1])] * 3, "a longer one begins with the shorter"
    digest = hashlib.sha256(b"".join(s.tobytes() for s in signs)).hexdigest()
    assert digest == "391115ef50829351928dff4235066b473110b54e43455378b6f7754188bc0242"
    assert abs(int(signs[3].sum())) < 6 * np.sqrt(2048)
    assert (Rotation.of(576, 8, "a").signs != Rotation.of(576, 8, "b").signs).any()
    assert (Rotation.of(576, 8, "a").signs != Rotation.of(576, 9, "a").signs).any()


def test_the_matrices_are_the_same_everywhere() -> None:
    """Rotated weights on disk belong to them."""
    digest = hashlib.sha256(b"".join(hadamard(m).tobytes() for m in range(1, 257) if is_constructible(m)))
    assert digest.hexdigest() == "be2bb90a02fa2e701112d429543d5a481260decb686121f4d21137c285169da6"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rotation.of(0, 0, "tap"),
        lambda: Rotation.of(rotation.MOST_WIDTH + 1, 0, "tap"),
        lambda: Rotation.of(576, 0, "tap", order=0),
        lambda: Rotation.of(576, 0, "tap", order=-36),
        lambda: Rotation.of(576, 0, "tap", order=18),
        lambda: Rotation.of(576, 0, "tap", order=72),
        lambda: Rotation.of(576, 0, "tap", order=20),
        lambda: Rotation.of(188 * 16, 0, "tap", order=188),
        lambda: Rotation(4, 1, np.array([1, -1, 1], np.int8)),
        lambda: Rotation(4, 1, np.array([1, -1, 1, 0], np.int8)),
        lambda: Rotation(4, 1, np.array([1, -1, 1, -128], np.int8)),
        lambda: Rotation(4, 1, np.array([1, -1, 1, 1], np.int64)),
        lambda: Rotation.of(4, 0, "tap").forward(np.zeros(5, np.float32)),
        lambda: Rotation.of(4, 0, "tap").inverse(np.zeros(4, np.float64)),
        lambda: native.rotate_inputs(Rotation.of(4, 0, "tap"), np.zeros((), np.float32)),
        lambda: native.unrotate_inputs(Rotation.of(4, 0, "tap"), np.zeros((4, 1), np.float32)),
        lambda: hadamard(18),
        lambda: hadamard(188),
    ],
)
def test_bad_input_is_refused(make) -> None:
    with pytest.raises(ParetobitError, match="hint: "):
        make()


SIGNS, H = np.ones(192, np.int8), np.ones((12, 12), np.int8)


@pytest.mark.parametrize(
    ("order", "signs", "factor", "message"),
    [
        (12, np.zeros(192, np.int8), H, "signs"),
        (12, np.empty(0, np.int8), H, "width"),
        (1, np.ones((1 << 20) + 1, np.int8), np.ones((1, 1), np.int8), "width"),
        (0, SIGNS, H, "order is"),
        (6, SIGNS, H, "order is"),
        (260, np.ones(260 * 16, np.int8), np.ones((260, 260), np.int8), "order is"),
        (24, SIGNS, np.ones((24, 24), np.int8), "does not fit"),
        (20, SIGNS, np.ones((20, 20), np.int8), "does not fit"),
        (12, np.ones(12 * 48, np.int8), H, "does not fit"),
        (12, SIGNS, np.ones((11, 12), np.int8), "dense factor"),
        (12, SIGNS, H * 3, "dense factor"),
        (1, SIGNS, H, "dense factor"),
    ],
)
def test_the_compiled_part_checks_for_itself(order: int, signs: np.ndarray, factor: np.ndarray, message: str) -> None:
    rows = np.zeros((1, len(signs)), np.float32)
    with pytest.raises(ValueError, match=message):
        native._module().rotate_rows(order, signs, factor, False, rows, rows.copy(), "scalar", 1)


def test_the_compiled_part_checks_its_rows() -> None:
    for x, out in (((1, 191), (1, 191)), ((1, 192), (2, 192)), ((2, 192), (2, 191))):
        arrays = np.zeros(x, np.float32), np.zeros(out, np.float32)
        with pytest.raises(ValueError, match="rows"):
            native._module().rotate_rows(12, SIGNS, H, False, *arrays, "scalar", 1)
