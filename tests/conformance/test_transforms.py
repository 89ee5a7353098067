"""What every transform owes its callers: the full-precision function as it was. A new method's file is found here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from paretobit.artifact import exact_bf16
from paretobit.checkpoint import open_model
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress import fold, methods
from paretobit.compress.basis import Basis
from paretobit.compress.model import Decoder
from paretobit.compress.world import World
from paretobit.planfile import Plan, taps, uniform
from paretobit.rotation import Rotation
from paretobit.tensorfile import SafetensorsFile
from paretobit.work import Work
from tests.checkpoints import tiny_llama_folder
from tests.outliers import planted
from tests.packed import FAMILIES

TRANSFORMS = methods.names("transform")
MODELS = ("llama", "llama, untied", "llama, biases", "qwen3", "gemma3")
ULP = 2.0**-23
ROTATED = 4  # a rotation and its inverse round each value some log2(width) times


class Changed:
    """`source` with what `change(name, values)` makes of every tensor."""

    def __init__(self, source: Checkpoint, change) -> None:
        self.source, self.arch, self.change = source, source.arch, change

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        whole = self.change(name, self.source.read(name))
        return whole if rows is None else whole[rows]


def logits(source, ids: np.ndarray) -> np.ndarray:
    return Decoder(source).logits(ids)


def last_bits(source: Checkpoint, ids: np.ndarray) -> float:
    """How far logits move where every weight moves by one unit of its last place at most: what float32 can promise."""
    rng = np.random.default_rng(3)
    moved = Changed(source, lambda name, w: (w * (1 + ULP * rng.uniform(-1, 1, w.shape))).astype(np.float32))
    return float(np.abs(logits(moved, ids) - logits(source, ids)).max())


@pytest.fixture(scope="module", params=MODELS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """With outlier channels, so that there is something to do."""
    folder = tmp_path_factory.mktemp("models")
    model_type, changes = FAMILIES[request.param]
    plain = tiny_llama_folder(folder / "plain", model_type=model_type, **changes)
    return open_model(str(planted(folder / "planted", plain, times=64.0)))


def plan_of(source: Checkpoint, name: str, to: str) -> Plan:
    made = uniform(source.arch, source.hash, to, None, ("rtn", "rtn", "rtn"), {}, (name,))
    assert made.transforms[0] == {"method": name, "params": {}}
    return made


@pytest.fixture
def ids(source: Checkpoint) -> np.ndarray:
    return np.random.default_rng(4).integers(0, source.arch.vocab, (2, 48))


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("to", ["w4g16a8g16", "w2ta8"])
def test_the_function_is_unchanged(source: Checkpoint, ids: np.ndarray, tmp_path: Path, name: str, to: str) -> None:
    plan, work = plan_of(source, name, to), Work(tmp_path / "out", "model", {"inputs": "full", "version": "0"})
    with work.open(False):
        made, _ = fold.folded(source, plan, ids, None, work, "cpu", World())
        again, _ = fold.folded(source, plan, None, None, work, "cpu", World())  # from what the work folder keeps
        kept = SafetensorsFile(work.path("factors.safetensors"))
        factors = {tensor: kept.read_float32(tensor) for tensor in kept.tensors}
    assert all(np.array_equal(made.read(tensor), again.read(tensor)) for tensor in made.names())
    inner = [tap for layer in range(source.arch.layers) for tap in source.arch.taps(layer)]
    moved = {tensor for tensor in factors if not tensor.endswith(".weight")}
    assert {tap.name for tap in inner if tap.kind == "norm"} <= moved, "the planted channels are behind these"
    assert moved <= {tap.name for tap in inner} | (set() if source.arch.tied else {"head_in"})
    assert max(np.abs(np.log(factors[tap])).max() for tap in moved) > 1
    apart, allowed = np.abs(logits(made, ids) - logits(source, ids)).max(), last_bits(source, ids)
    assert 0 < apart <= 2 * allowed
    if to == "w2ta8":
        assert np.abs(logits(turned(made, plan), ids) - logits(source, ids)).max() <= ROTATED * allowed


def turned(source: Checkpoint, plan: Plan) -> Changed:
    """The model after a rotation of every tap and back, in float32 as it is rounded."""
    tap_of = {name: tap for tap in taps(source.arch) for name in tap.consumers}

    def change(name: str, w: np.ndarray) -> np.ndarray:
        if name not in tap_of or tap_of[name].name == "head_in":
            return w
        basis = Basis(Rotation.of(tap_of[name].width, 0, tap_of[name].name))
        return basis.inverse(basis.forward(torch.from_numpy(w))).numpy()

    return Changed(source, change)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_norms_stay_in_half_the_bytes(source: Checkpoint, ids: np.ndarray, tmp_path: Path, name: str) -> None:
    work = Work(tmp_path / "out", "model", {"inputs": "full", "version": "0"})
    with work.open(False):
        made, _ = fold.folded(source, plan_of(source, name, "w8a8"), ids, None, work, "cpu", World())
    moved = 0
    for layer in range(source.arch.layers):
        for tap in source.arch.taps(layer):
            if tap.kind == "norm":
                new = made.read(tap.producer)
                moved += int((new != source.read(tap.producer)).sum())
                assert exact_bf16(new) is not None
    assert moved


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_factors_are_what_the_stored_norm_lacks(offset: float) -> None:
    rng = np.random.default_rng(5)
    weight = (rng.standard_normal(4000) * 3).astype(np.float32)
    weight[:3] = (-offset, 0.0, -1.0)
    wished = np.exp(rng.standard_normal(4000) * 2).astype(np.float32)
    new, real = fold.exact(weight, wished, offset)
    gain, left = (fold.gained(w, offset).astype(np.float64) for w in (weight, new))
    assert (np.abs(left * real - gain) <= 2.0**-24 * np.abs(gain)).all()
    assert new[0] == weight[0] and real[0] == 1, "a channel that is put out has nothing to move"
    assert exact_bf16(new[real != 1]) is not None
    # bf16 has 8 bits: where the offset leaves them to the gain, factors are near the wished ones.
    near = np.abs(np.log(real / wished)) < 2.0**-8
    assert near[(real != 1) & (np.abs(left) > 0.75) & (offset == 0)].all() and near.mean() > (
        0.99 if not offset else 0.3
    )


def test_params_are_checked_by_name() -> None:
    for name in TRANSFORMS:
        module = methods.load(name, "transform")
        assert module.KIND == "transform" and dataclasses.is_dataclass(module.Params)
        defaults: Mapping[str, object] = dataclasses.asdict(module.Params())
        shown = {key: str(value) for key, value in defaults.items()}
        assert methods.make_params(name, shown, "transform") == module.Params()
