"""Random-sign Hadamard rotations: what makes a linear layer's inputs and weights look Gaussian.

Before rounding, a layer y = W x becomes y = (W Rᵀ)(R x) with an orthonormal R = (H ⊗ S) diag(signs) / √n: the same
function, but every weight and every input is now a sum of all of its row with random signs, so outliers are spread
(Tseng et al. 2024, QuIP#, section 3). S is Sylvester's Hadamard matrix of a power of two, applied by butterflies; H is
a small dense one for the odd part of the width, after Paley 1933 or Williamson 1944. `Rotation.forward` and `inverse`
define the float32 operations one by one; `native.rotate_inputs` equals them bit for bit.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass

import numpy as np

from paretobit.errors import ParetobitError

MOST_WIDTH = 1 << 20  # as csrc/rotation.h: an order of magnitude above any published decoder
MOST_ORDER = 256  # a dense factor costs order / 4 additions an element; smaller blocks then serve better
LEAST_BLOCK = 16  # beside a dense factor: the kernels work on 16 columns at once

# Four symmetric sequences of odd length n each, entries 1 … (n - 1) / 2 (entry 0 is +), whose periodic autocorrelations
# cancel: then Williamson's array of their circulants is a Hadamard matrix of order 4 n. Found by search (for 43 among
# sequences that are constant on the cosets of the seventh powers); tests/unit/test_rotation.py checks H Hᵀ = 4n I.
WILLIAMSON = {
    23: ("+-+-++-+--+", "--++---+-+-", "-+++++---+-", "---+++++++-"),
    29: ("-+-+--+-++-++-", "-+----++++--+-", "++++--++---+-+", "---+++-++++++-"),
    43: (
        "-+-+----+-++-++---++-",
        "+-++-++-+-+---+--++++",
        "++---++-++++-+-++--+-",
        "++-+++++---++++---+--",
    ),
}


@dataclass(frozen=True)
class Rotation:
    """An orthonormal map of vectors of `width` elements.

    width: elements, 1 … MOST_WIDTH
    order: of the dense factor, or 1 for none. With one, width = order · 2^a; without, the width falls into equal blocks
           of the largest power of two that divides it (one block where it is a power of two), rotated apart.
    signs: int8 (width,), each 1 or -1

    Raises ParetobitError where they do not fit together.
    """

    width: int
    order: int
    signs: np.ndarray

    @classmethod
    def of(cls, width: int, seed: int, name: str, order: int | None = None) -> Rotation:
        """The rotation of `name`, which tells apart those of one model; same arguments, same rotation, anywhere.

        order: what a file says; by default `order_of(width)`.
        """
        check_width(width)
        digest = hashlib.shake_256(f"{seed}/{name}".encode()).digest((width + 7) // 8)
        bits = np.unpackbits(np.frombuffer(digest, np.uint8), count=width, bitorder="little")
        return cls(width, order_of(width) if order is None else order, 1 - 2 * bits.astype(np.int8))

    def __post_init__(self) -> None:
        check_width(self.width)
        check_order(self.width, self.order)
        signs = self.signs
        if signs.dtype != np.int8 or signs.shape != (self.width,) or not (np.abs(signs) == 1).all():
            raise ParetobitError(
                f"signs of shape {signs.shape}, {signs.dtype}, for a rotation of {self.width} elements",
                hint=f"give int8 ({self.width},), each 1 or -1",
            )

    @property
    def block(self) -> int:
        """Size of the Sylvester factor, 2^a."""
        return self.width & -self.width if self.order == 1 else self.width // self.order

    @property
    def scale(self) -> np.float32:
        """What makes the map orthonormal: 1 / √(order · block), rounded once."""
        return np.float32(1 / math.sqrt(self.order * self.block))

    def factor(self) -> np.ndarray:  # (order, order)
        """H, the dense factor: int8, each entry 1 or -1."""
        return hadamard(self.order)

    def matrix(self) -> np.ndarray:  # (order, order)
        """H / √order in float32, for matrix products on (…, order, block); the other factor is Sylvester's / √block."""
        return (self.factor() / math.sqrt(self.order)).astype(np.float32)

    def forward(self, x: np.ndarray) -> np.ndarray:  # (..., width) -> (..., width)
        """R x of every vector, float32: signs, then dense factor, then butterflies, then the scale.

        A layer's weights (out, in) go the same way: W Rᵀ is `forward` of the rows of W.
        """
        self.check(x)
        y = _dense(x * self.signs.astype(np.float32), self.factor())
        return (_butterflies(y, self.block) * self.scale).reshape(x.shape)

    def inverse(self, y: np.ndarray) -> np.ndarray:  # (..., width) -> (..., width)
        """Rᵀ y of every vector, float32: dense factor transposed, then butterflies, then the scale, then signs."""
        self.check(y)
        x = _dense(y, self.factor().T)
        return (_butterflies(x, self.block) * self.scale).reshape(y.shape) * self.signs.astype(np.float32)

    def check(self, x: np.ndarray) -> None:
        """That these are vectors of this rotation's. Raises ParetobitError."""
        if x.dtype != np.float32 or x.ndim == 0 or x.shape[-1] != self.width:
            raise ParetobitError(
                f"an array of shape {x.shape}, {x.dtype}, for a rotation of {self.width} elements",
                hint=f"give float32 (..., {self.width})",
            )


def _dense(x: np.ndarray, factor: np.ndarray) -> np.ndarray:  # (..., width), (order, order)
    """(factor ⊗ I) x. Inputs are added by fours, ((±x0 ± x1) + (±x2 ± x3)), and the fours in their order."""
    order = len(factor)
    if order == 1:
        return x
    parts = x.reshape(-1, order, x.shape[-1] // order)
    signs = factor.astype(np.float32)[:, :, None]

    def four(j: int) -> np.ndarray:  # (-1, order, block)
        a, b, c, d = (signs[:, k] * parts[:, k, None] for k in range(j, j + 4))
        return (a + b) + (c + d)

    total = four(0)
    for j in range(4, order, 4):
        total = total + four(j)
    return total


def _butterflies(x: np.ndarray, block: int) -> np.ndarray:
    """Sylvester's matrix of order `block` times every `block` elements in a row, strides from the largest to 1."""
    stride = block // 2
    while stride:
        pairs = x.reshape(-1, 2, stride)
        x = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1)
        stride //= 2
    return x


def check_width(width: int) -> None:
    if not 1 <= width <= MOST_WIDTH:
        raise ParetobitError(f"a rotation of {width} elements", hint=f"widths are 1 to {MOST_WIDTH}")


def check_order(width: int, order: int) -> None:
    """That a dense factor of this order exists and fits the width. Raises ParetobitError."""
    block, rest = divmod(width, order) if order > 0 else (0, 1)
    fits = order == 1 or (rest == 0 and block >= LEAST_BLOCK and block & (block - 1) == 0)
    if not fits or order > MOST_ORDER or not is_constructible(order):
        raise ParetobitError(
            f"a rotation of {width} elements with a dense factor of order {order}",
            hint=f"the order for this width is {order_of(width)}",
        )


def order_of(width: int) -> int:
    """The smallest Hadamard order m for which width / m is a power of two, at least 16; 1 where there is none."""
    odd = width // (width & -width)
    order = 4 * odd
    while odd > 1 and order <= MOST_ORDER and width % order == 0 and width // order >= LEAST_BLOCK:
        if is_constructible(order):
            return order
        order *= 2
    return 1


def is_constructible(order: int) -> bool:
    """Whether `hadamard` can make this order."""
    return order == 1 or (order % 4 == 0 and (_paley(order) is not None or order // 4 in WILLIAMSON))


@functools.cache
def hadamard(order: int) -> np.ndarray:  # (order, order)
    """A Hadamard matrix H Hᵀ = order · I, int8, each entry 1 or -1, not to be written to. Raises ParetobitError on an
    order that no construction here gives."""
    if not is_constructible(order):
        raise ParetobitError(f"no Hadamard matrix of order {order} is known here", hint="try a multiple of it")
    field = _paley(order)
    if order == 1:
        matrix = np.ones((1, 1), np.int8)
    elif field is None:
        matrix = _williamson(WILLIAMSON[order // 4])
    else:
        matrix = _from_field(field, order)
    matrix.flags.writeable = False
    return matrix


def _paley(order: int) -> int | None:
    """The field size q of Paley's first (order = q + 1, q = 3 mod 4) or second (order = 2 (q + 1), q = 1 mod 4)
    construction; prime, or for the second the square of a prime."""
    if (order - 1) % 4 == 3 and _is_prime(order - 1):
        return order - 1
    q, root = order // 2 - 1, math.isqrt(max(0, order // 2 - 1))
    return q if q % 4 == 1 and (_is_prime(q) or (root * root == q and _is_prime(root))) else None


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % d for d in range(2, math.isqrt(q) + 1))


def _characters(q: int) -> np.ndarray:  # (q, q)
    """χ(a - b) of all elements a, b of the field of size q: 0, or 1 where the difference is a square, else -1."""
    p = q if _is_prime(q) else math.isqrt(q)
    of_prime = np.full(p, -1, np.int8)
    of_prime[np.arange(p) ** 2 % p] = 1
    of_prime[0] = 0
    difference = (np.arange(p)[:, None] - np.arange(p)) % p
    if p == q:
        return of_prime[difference]
    # Elements x + y√r, r no square of the prime field: one is a square where its norm x² - r y² is one there.
    r = int(np.argmin(of_prime))
    x, y = difference[:, None, :, None], difference[None, :, None, :]
    return of_prime[(x * x - r * y * y) % p].reshape(q, q)


def _from_field(q: int, order: int) -> np.ndarray:  # (order, order)
    """Paley's matrices, from the characters' one with a border."""
    border = np.ones((q + 1, q + 1), np.int8)
    border[0, 0], border[1:, 1:] = 0, _characters(q)
    one = np.eye(q + 1, dtype=np.int8)
    if order == q + 1:
        border[1:, 0] = -1
        return border + one
    return np.kron(border, np.array([[1, 1], [1, -1]], np.int8)) + np.kron(one, np.array([[1, -1], [-1, -1]], np.int8))


def _williamson(halves: tuple[str, ...]) -> np.ndarray:  # (4 n, 4 n)
    """Williamson's array of the circulants of four symmetric sequences."""
    rows = [np.array([1 if sign == "+" else -1 for sign in f"+{half}{half[::-1]}"], np.int8) for half in halves]
    n = len(rows[0])
    a, b, c, d = (row[(np.arange(n) - np.arange(n)[:, None]) % n] for row in rows)
    return np.block([[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]])
