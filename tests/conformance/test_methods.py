"""What every rounding method owes its callers, on every affine grid. A new method's file is found and tested."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from paretobit import native
from paretobit.compress import methods
from paretobit.compress.stats import ABSMAX, ABSMEAN, CROSS, HESSIAN, TapStats
from paretobit.errors import ParetobitError
from paretobit.qtensor import QTensor, spread
from paretobit.scheme import FLOATS, LEVELS, Grid, parse, spell

METHODS = [name for name in methods.names("round") if "affine" in methods.grids(name)]
ROWS, WIDTH, TOKENS = 24, 70, 300


def spellings() -> Iterator[str]:
    """Every affine scheme of the grammar with a whole row, fine and ragged groups for a scale."""
    for bits in LEVELS:
        for group in ("", "g16", "g48"):
            for zero in ("", "s", "z"):
                try:
                    yield spell(parse(f"w{bits}{group}{zero}"))
                except ParetobitError:
                    continue


GRIDS = sorted(set(spellings()))


def stats_of(x: Tensor, full: Tensor | None = None) -> TapStats:
    """All statistics of inputs x (tokens, width); with cross where the full-precision model has others, `full`."""
    needs = {HESSIAN, ABSMAX, ABSMEAN} | (set() if full is None else {CROSS})
    stats = TapStats.empty(x.shape[1], frozenset(needs))
    stats.add(x, full)
    return stats.complete()


def problem(seed: int = 0, width: int = WIDTH, apart: float | None = None) -> tuple[Tensor, TapStats]:
    """Gaussian weights with a few outliers, and correlated inputs whose channels differ a hundredfold in size.

    apart: how far the full-precision model's inputs are from these; None: they are these.
    """
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(ROWS, width, generator=random)
    w[torch.rand(ROWS, width, generator=random) < 0.01] *= 6
    mix = torch.randn(width, width, generator=random) / width**0.5
    x = torch.randn(max(TOKENS, 2 * width), width, generator=random) @ mix
    x = x * torch.logspace(-1, 1, width)[torch.randperm(width, generator=random)]
    return w, stats_of(x, None if apart is None else x + apart * torch.randn(x.shape, generator=random))


def run(name: str, scheme: str, w: Tensor, stats: TapStats) -> QTensor:
    module = methods.load(name)
    return module.run(w, stats, parse(scheme).weight, module.Params())


def check(q: QTensor, grid: Grid, shape: tuple[int, ...]) -> np.ndarray:
    """The QTensor obeys the format; returns its values."""
    groups = (shape[0], grid.groups(shape[1]))
    assert q.grid == grid
    assert (q.codes.dtype, q.codes.shape) == (np.uint8, shape)
    assert q.codes.max() < grid.levels
    assert (q.scale.dtype, q.scale.shape) == (np.float16, groups) and np.isfinite(q.scale).all()
    assert (q.zero is not None) == (grid.zero == "stored")
    if q.zero is not None:
        assert (q.zero.dtype, q.zero.shape) == (np.uint8, groups) and q.zero.max() < grid.levels
    if grid.zero != "twos":  # only there is a negative scale of use
        assert (q.scale >= 0).all()
    assert np.array_equal(native.unpack(native.pack(q.codes, grid), grid, shape), q.codes)
    values = q.dequant()
    assert values.shape == shape and np.isfinite(values).all()
    return values


def minmax(w: np.ndarray, grid: Grid) -> np.ndarray:
    """Plain round-to-nearest: the scale at which the group's range just fits, float64."""
    width, group, top = w.shape[1], grid.group or w.shape[1], grid.levels - 1
    starts = np.arange(0, width, group)
    high = np.maximum(np.maximum.reduceat(w, starts, axis=1), 0)
    low = np.minimum(np.minimum.reduceat(w, starts, axis=1), 0)
    if grid.zero == "stored":
        scale, offset = (high - low) / top, None
        zero = np.rint(-low / np.where(scale > 0, scale, 1))
    else:
        offset = grid.offset
        scale = np.maximum(-low, high) / (offset if grid.zero == "mid" else offset - 1 if grid.levels > 2 else offset)
        zero = np.full(scale.shape, offset)
    scale, zero = (spread(x, grid, width) for x in (scale.astype(np.float16).astype(np.float64), zero))
    return scale * (np.clip(np.rint(w / np.where(scale > 0, scale, 1) + zero), 0, top) - zero)


def loss(name: str, error: np.ndarray, stats: TapStats) -> float:
    """What the method minimizes: the error of the outputs if it reads the Hessian, else that of the weights."""
    if HESSIAN in methods.needs(name, {}):
        return float(((error @ stats.hessian.double().numpy()) * error).sum())
    return float((error**2).sum())


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_methods_are_found_by_their_files() -> None:
    assert {"rtn", "gptq"} <= set(METHODS)
    assert len(GRIDS) == 8 * 3 + 5 * 3 and all(parse(text).weight.kind == "affine" for text in GRIDS)


def test_what_a_method_file_holds(method: str) -> None:
    module = methods.load(method)
    assert module.__doc__ and "Source:" in module.__doc__
    assert module.KIND == "round" and dataclasses.is_dataclass(module.Params)
    assert methods.needs(method, {}) <= {HESSIAN, CROSS, ABSMAX, ABSMEAN}
    defaults = {field.name: field.default for field in dataclasses.fields(module.Params)}
    assert methods.make_params(method, {name: str(value) for name, value in defaults.items()}) == module.Params()


@pytest.mark.parametrize("scheme", GRIDS)
def test_no_worse_than_plain_rounding(method: str, scheme: str) -> None:
    grid = parse(scheme).weight
    for seed in range(3):
        w, stats = problem(seed)
        values = check(run(method, scheme, w, stats), grid, (ROWS, WIDTH))
        plain = minmax(w.double().numpy(), grid)
        assert loss(method, values - w.double().numpy(), stats) <= loss(method, plain - w.double().numpy(), stats)


@pytest.mark.parametrize("scheme", GRIDS)
def test_the_same_input_gives_the_same_bytes_and_stays_as_it_is(method: str, scheme: str) -> None:
    (w, stats), (same, again) = problem(5, apart=0.5), problem(5, apart=0.5)
    first, second = run(method, scheme, w, stats), run(method, scheme, same, again)
    third = run(method, scheme, w, stats)  # with whatever the first left in stats.factors
    for q in (second, third):
        assert first.codes.tobytes() == q.codes.tobytes() and first.scale.tobytes() == q.scale.tobytes()
        assert first.zero is None or first.zero.tobytes() == q.zero.tobytes()
    fresh, untouched = problem(5, apart=0.5)
    assert torch.equal(w, fresh)
    for name in (HESSIAN, CROSS, ABSMAX, ABSMEAN):
        assert torch.equal(getattr(stats, name), getattr(untouched, name)), f"{method} wrote into stats.{name}"


@pytest.mark.parametrize("scheme", GRIDS)
def test_rows_do_not_interact(method: str, scheme: str) -> None:
    """Matrices of one tap are stacked, and long ones come in pieces."""
    w, stats = problem(6, apart=0.5)
    whole = run(method, scheme, w, stats)
    for rows in (slice(0, 1), slice(7, 20)):
        part = run(method, scheme, w[rows], stats)
        assert np.array_equal(part.codes, whole.codes[rows]) and np.array_equal(part.scale, whole.scale[rows])
        assert whole.zero is None or np.array_equal(part.zero, whole.zero[rows])


@pytest.mark.parametrize("scheme", GRIDS)
def test_rows_of_zeros_stay_zeros(method: str, scheme: str) -> None:
    grid = parse(scheme).weight
    w, stats = problem(7, apart=0.5)
    w[3] = 0
    w[11, :48] = 0
    q = run(method, scheme, w, stats)
    values = check(q, grid, (ROWS, WIDTH))
    if float(grid.offset).is_integer() or grid.zero == "stored":  # the grid has a zero
        assert not values[3].any() and np.abs(values[4]).sum() > 0
        # By its code, too: what division by a scale of 0 leaves differs from machine to machine.
        zero = spread(np.full(q.scale.shape, grid.offset) if q.zero is None else q.zero, grid, WIDTH)
        assert np.array_equal(q.codes[3], zero[3])


@pytest.mark.parametrize("scheme", GRIDS)
def test_narrow_matrices(method: str, scheme: str) -> None:
    for width in (1, 2, 16, 17, 47):
        w, stats = problem(8, width, apart=0.5)
        check(run(method, scheme, w, stats), parse(scheme).weight, (ROWS, width))
        check(run(method, scheme, w[:1], stats), parse(scheme).weight, (1, width))


@pytest.mark.parametrize("scheme", GRIDS)
def test_any_magnitude_is_survived(method: str, scheme: str) -> None:
    grid = parse(scheme).weight
    w, stats = problem(9, apart=0.5)
    for size in (1e-38, 1e-8, 1e9, 1e37):  # beyond what fp16 scales can follow
        check(run(method, scheme, w * size, stats), grid, (ROWS, WIDTH))
    # A power of two only moves exponents, in every product and sum: as long as no scale leaves the normal numbers of
    # fp16, the codes are the same and the values as many times larger, to the bit.
    usual = check(run(method, scheme, w, stats), grid, (ROWS, WIDTH))
    for size in (2.0**-4, 2.0**8):
        assert np.array_equal(check(run(method, scheme, w * size, stats), grid, (ROWS, WIDTH)), usual * size)


@pytest.mark.parametrize("scheme", ["w3g48", "w2"])
def test_equal_inputs_need_no_correction(method: str, scheme: str) -> None:
    """Where the full-precision model has the same inputs, knowing so changes nothing."""
    (w, alone), (_, same) = problem(13), problem(13, apart=0.0)
    first, second = run(method, scheme, w, alone), run(method, scheme, w, same)
    assert np.array_equal(first.codes, second.codes) and np.array_equal(first.scale, second.scale)


INPUTS = {
    "never active": torch.zeros(50, WIDTH),
    "one token": torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1)),
    "one channel": torch.eye(WIDTH)[:1].repeat(50, 1),
    "all channels alike": torch.ones(50, WIDTH),
    "tiny": torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(2)) * 1e-15,
    "large": torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(3)) * 1e8,
}


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS.keys())
def test_strange_inputs_are_survived(method: str, inputs: Tensor) -> None:
    for scheme in ("w3g48", "w2", "w1.58", "w8", "w4g16s"):
        w, _ = problem(10)
        values = check(run(method, scheme, w, stats_of(inputs)), parse(scheme).weight, (ROWS, WIDTH))
        # Whatever the inputs say, the weights are still those: zeros instead of them would lose all of the signal.
        assert ((values - w.numpy()) ** 2).sum() < (w.numpy() ** 2).sum(), scheme


@pytest.mark.parametrize("scheme", ["w2t", "w3t4", *FLOATS])
def test_grids_that_a_method_does_not_know_are_refused(method: str, scheme: str) -> None:
    w, stats = problem(11)
    if parse(scheme).weight.kind in methods.grids(method):
        check(run(method, scheme, w, stats), parse(scheme).weight, (ROWS, WIDTH))
        return
    with pytest.raises(ParetobitError, match="; hint: "):
        run(method, scheme, w, stats)


NONSENSE = (
    "gptq.damp=-1",
    "gptq.damp=nan",
    "gptq.damp=inf",
    "gptq.block=0",
    "gptq.block=-5",
    "gptq.asymmetric=nan",
    "gptq.residual=-1",
)


@pytest.mark.parametrize("given", NONSENSE)
def test_parameters_without_a_meaning_are_refused(given: str) -> None:
    name, value = given.split("=")
    method, field = name.split(".")
    with pytest.raises(ParetobitError, match=rf"{name} = {value}(\.0)? is out of range; hint: "):
        methods.make_params(method, {field: value})


def test_no_damping_on_a_singular_hessian_ends() -> None:
    w, _ = problem(12)
    module, stats = methods.load("gptq"), stats_of(INPUTS["all channels alike"] * 1e6)
    check(module.run(w, stats, parse("w3").weight, module.Params(damp=0.0)), parse("w3").weight, (ROWS, WIDTH))


def test_bad_parameters_are_refused_by_name(method: str) -> None:
    with pytest.raises(ParetobitError, match=f"{method} has no parameter 'nonsense'; hint: it has "):
        methods.make_params(method, {"nonsense": 1})
    for field in dataclasses.fields(methods.load(method).Params):
        for value in ("", "nonsense", [1], None, {}):
            with pytest.raises(ParetobitError, match=rf"{method}\.{field.name} = .*; hint: the default is "):
                methods.make_params(method, {field.name: value})
