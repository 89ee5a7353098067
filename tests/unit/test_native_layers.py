"""Single operations of the native decoder against numpy in float64, with the error they document, on every ISA."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paretobit import native

MODULE = native._module()
ISAS = native.available()
UNIT = 2.0**-24  # unit roundoff of float32


@pytest.mark.parametrize("isa", ISAS)
def test_halves_are_numpys(isa: str) -> None:
    """Around every half-precision number and every tie, and what overflows, vanishes or is none."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[1:] + halves[:-1]) / 2
    edges = [65504, 65519.996, 65520, 1e5, 3e38, np.inf, np.nan, 2**-24, 2**-25, 1.0001 * 2**-25, 1e-40, 0]
    values = np.concatenate([halves, middles, np.array(edges, np.float32)])
    values = np.concatenate([values, np.nextafter(values, np.float32(np.inf)), np.nextafter(values, np.float32(0))])
    values = np.concatenate([values, -values]).astype(np.float32)
    out = np.empty(len(values), np.uint16)
    MODULE.to_half(values, out, isa)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    assert np.array_equal(np.isnan(values), np.isnan(out.view(np.float16)))
    assert np.array_equal(out[~np.isnan(values)], expected.view(np.uint16)[~np.isnan(values)])


def sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("gelu_tanh", [False, True])
def test_gates_are_exact_to_a_few_roundings(gelu_tanh: bool) -> None:
    """silu and gelu are x / (1 + e^-z). The exponential is within 1.5·2⁻²⁴; z itself takes up to four roundings, which
    move e^-z by |z| times as much; sum, quotient and product add one each. |z| counts where e^-z does beside 1."""
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.uniform(-30, 30, 20001), rng.uniform(-1e-3, 1e-3, 999), [0.0, -0.0, 200, -200, 1e30, -1e30]]
    )
    x, up = x.astype(np.float32), rng.standard_normal(len(x)).astype(np.float32)
    exact = x.astype(np.float64)
    z = 2 * math.sqrt(2 / math.pi) * (exact + 0.044715 * exact**3) if gelu_tanh else exact
    truth = exact * sigmoid(z) * up
    found = []
    for isa in ISAS:
        gates = x.copy()
        MODULE.gate(gelu_tanh, gates, up, isa)
        found.append(gates)
    assert all(a.tobytes() == found[0].tobytes() for a in found)
    inside = z > -87  # below, e^-z is cut off at e^88, and the result smaller than 10⁻³⁶
    weight = np.minimum(np.abs(z), 90) * sigmoid(-z)
    bound = (1.5 + 3 + 5 * weight + 1) * UNIT * np.abs(truth) + 1e-45
    assert (np.abs(found[0] - truth) <= bound)[inside].all()
    assert (np.abs(found[0][~inside]) <= np.abs(x * up)[~inside] * math.exp(-87)).all()


@pytest.mark.parametrize("count", [1, 15, 16, 17, 64, 576, 1000])
def test_norms_are_exact_to_the_roundings_of_a_sum(count: int) -> None:
    """A square and its sum over n / 16 steps and a tree of four, then mean, eps, root, quotient and two products: the
    root halves what came before it."""
    rng = np.random.default_rng(count)
    x, weight = (rng.standard_normal(count).astype(np.float32) for _ in range(2))
    found = []
    for isa in ISAS:
        out = np.empty(count, np.float32)
        MODULE.rms_norm(x, weight, 1e-5, out, isa)
        found.append(out)
    assert all(a.tobytes() == found[0].tobytes() for a in found)
    exact = x.astype(np.float64)
    truth = exact / np.sqrt((exact**2).mean() + 1e-5) * weight
    steps = (count / 16 + 1 + 4 + 2) / 2 + 4
    assert (np.abs(found[0] - truth) <= 1.01 * steps * UNIT * np.abs(truth)).all()


def test_cosines_and_sines_are_exact_to_double_precision() -> None:
    """Up to 10⁶ radians within 2⁻⁵²; numpy's own error of half a unit comes on top."""
    rng = np.random.default_rng(0)
    quarters = np.arange(200) * (math.pi / 2)
    angles = np.concatenate(
        [rng.uniform(0, 7, 5000), rng.uniform(0, 1e6, 5000), quarters, quarters + 1e-9, [0, 1e-300]]
    )
    out = np.empty((2, len(angles)))
    MODULE.cosines_sines(angles, out)
    assert np.abs(out - np.array([np.cos(angles), np.sin(angles)])).max() <= 1.5 * 2.0**-52
    huge = rng.uniform(1e6, 2.0**50, 1000)
    out = np.empty((2, len(huge)))
    MODULE.cosines_sines(huge, out)
    spacing = np.spacing(huge)
    assert (np.abs(out - np.array([np.cos(huge), np.sin(huge)])) <= spacing).all()
