"""Measuring speeds: what is read and multiplied is checked, how fast it is never."""

from __future__ import annotations

import numpy as np
import pytest

from paretobit import hardware, native, speed
from paretobit.errors import ParetobitError
from paretobit.hardware import Cache
from paretobit.scheme import parse
from paretobit.sizes import parts
from paretobit.speed import Spread

MIB = 1 << 20


@pytest.fixture
def machine(monkeypatch):
    """Caches and free memory as a test says."""

    def make(caches=(), free=1 << 40):
        monkeypatch.setattr(hardware, "caches", lambda: tuple(caches))
        monkeypatch.setattr(hardware, "memory_available", lambda: free)

    return make


def test_spread():
    found = Spread.of([3.0, 1.0, 2.0, 10.0])
    assert found == Spread(2.5, 1.0, 10.0, 4)
    assert found.to_json() == {"median": 2.5, "least": 1.0, "most": 10.0, "n": 4}
    assert (found.text(), found.text(2)) == ("2.5 (1.0–10.0)", "2.50 (1.00–10.00)")


def test_what_is_read_outgrows_the_caches_but_not_memory(machine):
    machine()
    assert speed.memory_bytes() == 256 * MIB
    machine([Cache(1, "data", MIB // 16, 1), Cache(3, "unified", 200 * MIB, 8)])
    assert speed.memory_bytes() == 400 * MIB
    machine([Cache(3, "unified", 4096 * MIB, 8)])
    assert speed.memory_bytes() == 1024 * MIB
    machine(free=100 * MIB)
    assert speed.memory_bytes() == 25 * MIB
    machine(free=0)
    assert speed.memory_bytes() == MIB


def test_a_cores_own_cache(machine):
    levels = [Cache(1, "data", MIB // 16, 1), Cache(2, "unified", MIB, 4), Cache(3, "unified", 64 * MIB, 8)]
    for caches, own in ((levels, MIB // 4), (levels[:1], MIB // 16), (levels[2:], MIB // 4), ((), MIB // 4)):
        machine(caches)
        assert speed.core_cache_bytes() == own


@pytest.mark.parametrize("isa", native.available())
@pytest.mark.parametrize("size", [512, 1024, 64 * 512 + 512])
def test_every_byte_is_read(isa, size):
    values = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    wanted = np.bitwise_xor.reduce(values.view(np.uint64))
    assert native._module().read_words(values, isa) == wanted
    with pytest.raises(ValueError, match="512"):
        native._module().read_words(values[:-64], isa)


@pytest.mark.parametrize("isa", native.available())
@pytest.mark.parametrize("quads", [1, 5, 64])
def test_the_loop_of_products_makes_them(isa, quads):
    rng = np.random.default_rng(quads)
    codes = rng.integers(0, 256, (quads, 32, 4), np.uint8)
    activations = rng.integers(-127, 128, (8, 4 * quads)).astype(np.int8)
    codes[0], activations[0] = 255, -127  # the largest, where narrow sums would overflow
    found = np.zeros((8, 32), np.int32)
    sums = activations.sum(1, dtype=np.int32)
    native._module().products(codes, activations, sums, found, isa)
    flat = codes.transpose(0, 2, 1).reshape(4 * quads, 32).astype(np.int64)
    np.testing.assert_array_equal(found, activations.astype(np.int64) @ flat)


@pytest.mark.parametrize("threads", [1, 2])
def test_products_are_timed(threads):
    found, each = native.product_seconds(threads, 0.0)
    assert len(found) >= 3 and all(seconds > 0 for seconds in found) and each > 0
    with pytest.raises(ParetobitError, match="cannot measure"):
        native.product_seconds(0, 0.0)


def test_products_a_second_are_those_of_all_threads(monkeypatch):
    monkeypatch.setattr(native, "product_seconds", lambda threads, limit: ([0.5, 0.25, 1.0], 10**9))
    assert speed.product_speed(3) == Spread(6.0, 3.0, 12.0, 3)


def test_gb_per_second_are_bytes_over_seconds(machine, monkeypatch):
    asked = []

    def read(nbytes, threads, limit):
        asked.append((nbytes, threads, limit))
        return [1.0, 4.0, 2.0]

    monkeypatch.setattr(native, "read_seconds", read)
    machine([Cache(2, "unified", 64 * 4096, 1)], free=4 * 3_000_000)
    assert speed.read_speed(2, 0.5).median == asked[0][0] / 2.0 / 1e9
    assert speed.cached_read_speed(3, 0.1).most == asked[1][0] / 1.0 / 1e9
    # Whole pages a thread: 3,000,000 bytes are 366 pages for each of two; half a cache is 32 pages for each of three.
    assert asked == [(2 * 366 * 4096, 2, 0.5), (3 * 32 * 4096, 3, 0.1)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_memory_is_measured_by_any_team(threads):
    found = native.read_seconds(threads * 8192, threads, 0.0)
    assert len(found) >= 3 and all(seconds > 0 for seconds in found)


@pytest.mark.parametrize(
    ("nbytes", "threads", "limit"),
    [(4096, 0, 0.0), (4096, 2000, 0.0), (4096, 2, 0.0), (4096, 1, -1.0), (1 << 62, 1, 0)],
)
def test_what_cannot_be_measured_is_said(nbytes, threads, limit):
    with pytest.raises(ParetobitError, match="cannot measure"):
        native.read_seconds(nbytes, threads, limit)


@pytest.mark.parametrize("scheme", speed.SCHEMES)
def test_every_scheme_is_measured_within_its_bytes(scheme, machine, monkeypatch):
    machine([Cache(2, "unified", 64 << 10, 1)], free=8 * MIB)
    asked = []
    multiply = native.multiply_seconds

    def spy(grid, shape, arrays, **options):
        asked.append((shape, {suffix: array.nbytes for suffix, array in arrays.items()}, options["threads"]))
        return multiply(grid, shape, arrays, **{**options, "limit": 0.0})

    monkeypatch.setattr(native, "multiply_seconds", spy)
    matrices = speed.Matrices(3)
    assert all(ns > 0 for ns in matrices.ns_per_weight(scheme, 3, 0.0))
    for shape, arrays, threads in asked:
        assert shape[1] == speed.COLUMNS and shape[0] % (32 * threads) == 0
        assert arrays == {part.suffix: part.nbytes for part in parts(parse(scheme), shape)}
        assert sum(arrays.values()) <= 2 * MIB  # a quarter of what is free
    (cached, _, _), (memory, _, _) = asked
    assert memory[0] >= cached[0]


def test_a_slow_product_is_made_on_fewer_rows(machine, monkeypatch):
    machine([Cache(2, "unified", 64 << 10, 1)], free=1 << 30)
    rows = []

    def slow(grid, shape, arrays, **options):
        rows.append(shape[0])
        return [1e-3 * shape[0]]  # a millisecond a row: 200 rows fit into SLOW

    monkeypatch.setattr(native, "multiply_seconds", slow)
    ns, _ = speed.Matrices(1).ns_per_weight("w4", 1)
    assert rows[1] == 192 and ns == pytest.approx(1e6 / speed.COLUMNS)


def test_arrays_of_the_wrong_size_are_refused():
    grid = parse("w4g64").weight
    arrays = {part.suffix: np.zeros(part.nbytes, np.uint8) for part in parts(parse("w4g64"), (32, 64))}
    arrays[".scale"] = arrays[".scale"].view(np.float16)
    assert native.multiply_seconds(grid, (32, 64), arrays, threads=1, limit=0.0)
    for suffix in arrays:
        with pytest.raises(ParetobitError, match="cannot measure"):
            native.multiply_seconds(grid, (32, 64), {**arrays, suffix: arrays[suffix][1:]}, threads=1, limit=0.0)
    with pytest.raises(ParetobitError, match="cannot measure"):
        native.multiply_seconds(grid, (32, 64), arrays, threads=1, limit=0.0, count=0)
