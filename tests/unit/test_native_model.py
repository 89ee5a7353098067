"""The native model's own checks: numbers, sizes and orders that a hostile caller could try are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from paretobit import native

MODULE = native._module()
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB, POSITIONS = 32, 48, 4, 2, 8, 40, 256
SHAPES = {
    "q": (HEADS * HEAD_DIM, HIDDEN),
    "k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "o": (HIDDEN, HEADS * HEAD_DIM),
    "gate": (INNER, HIDDEN),
    "up": (INNER, HIDDEN),
    "down": (HIDDEN, INNER),
}
FOUR_BITS, FP32 = 4, 10
NAN, INF = float("nan"), float("inf")


ROPE = ([0.5] * (HEAD_DIM // 2), 1.0)
SIZES = ("hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocab", "positions")


def rope(radians: list[float], factor: float) -> Any:
    made = MODULE.Rope()
    made.radians, made.factor = radians, factor
    return made


def config(ropes: Sequence[tuple[list[float], float]] = (ROPE,), **changes: object) -> Any:
    made = MODULE.Config()
    made.ropes = [rope(*one) for one in ropes]
    facts = {
        "hidden": HIDDEN, "intermediate": INNER, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "vocab": VOCAB, "positions": POSITIONS, "norm_eps": 1e-5, "tied": True, "rope_of": [0, 0],
        "windows": [POSITIONS, 7],
    }  # fmt: skip
    for name, value in {**facts, **changes}.items():
        setattr(made, name, value)
    return made


def four_bits(rows: int, columns: int, seed: int = 0) -> dict[str, Any]:
    """Arguments of a valid matrix of 4 bits, groups of 16 columns, zero points stored."""
    rng = np.random.default_rng(seed)
    tiles, groups = -(-rows // 32), -(-columns // 16)
    return {
        "format": FOUR_BITS, "shape": (rows, columns), "group": 16, "twice_zero": 0,
        "codes": rng.integers(0, 256, (tiles, groups * 256), np.uint8),
        "scale": np.full((tiles, groups, 32), 0.05, np.float16).view(np.uint16),
        "zero": rng.integers(0, 256, (tiles, groups, 16), np.uint8),
    }  # fmt: skip


def model(sealed: bool = True, **changes: object) -> Any:
    made = MODULE.Model(config(**changes))
    made.add_matrix("embed", 0, **four_bits(VOCAB, HIDDEN))
    made.add_vector("final_norm", 0, np.ones(HIDDEN, np.float32))
    for layer in range(2):
        for role, shape in SHAPES.items():
            made.add_matrix(role, layer, **four_bits(*shape))
        for role in ("attn_norm", "mlp_norm"):
            made.add_vector(role, layer, np.ones(HIDDEN, np.float32))
    if sealed:
        made.seal()
    return made


def session(**changes: object) -> Any:
    facts = {"model": model(), "isa": "scalar", "threads": 2, "int8": True, "context": POSITIONS}
    return MODULE.Session(**{**facts, **changes})


@pytest.mark.parametrize(
    "change",
    [
        *({name: 0} for name in SIZES), *({name: 1 << 40} for name in SIZES),
        {"head_dim": 7}, {"kv_heads": 3}, {"windows": []}, {"windows": [1]}, {"windows": [0, 1]},
        {"windows": [1 << 40, 1]}, {"rope_of": [0]}, {"rope_of": [0, 1]}, {"ropes": []},
        {"ropes": [([0.5] * 3, 1.0)]}, {"ropes": [([0.5] * 5, 1.0)]}, {"ropes": [([0.5, NAN, 0.5, 0.5], 1.0)]},
        {"ropes": [([0.5, 0.5, 0.5, -1.0], 1.0)]}, {"ropes": [([1e7, 0.5, 0.5, 0.5], 1.0)]},
        {"ropes": [(ROPE[0], INF)]}, {"norm_eps": NAN}, {"norm_eps": -1.0},
        {"norm_offset": 2.0}, {"attn_scale": INF}, {"attn_scale": -1.0}, {"embed_scale": NAN},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_dimensions_are_refused(change: dict[str, object]) -> None:
    MODULE.Model(config())
    with pytest.raises(ValueError):
        MODULE.Model(config(**change))


GOOD = four_bits(*SHAPES["q"])


def spoiled(array: np.ndarray, value: int) -> np.ndarray:
    copy = array.copy()
    copy.reshape(-1)[-1] = value
    return copy


@pytest.mark.parametrize(
    "change",
    [
        {"role": "w"}, {"role": ""}, {"role": "head"}, {"role": "attn_norm"}, {"layer": 2}, {"layer": 1 << 60},
        {"format": -1}, {"format": 11}, {"format": 15}, {"format": FP32}, {"format": 3}, {"shape": (31, 32)},
        {"shape": (32, 33)}, {"shape": (0, 0)}, {"shape": (1 << 60, 1 << 60)}, {"group": 0}, {"group": 1},
        {"group": 15}, {"group": 33}, {"group": 1 << 62}, {"group": 32}, {"zero": None},
        {"zero": None, "twice_zero": 255}, {"zero": None, "twice_zero": -1},
        {"zero": GOOD["zero"][:, :1].copy()}, {"scale": None},
        {"scale": GOOD["scale"][:, :1].copy()}, {"scale": spoiled(GOOD["scale"], 0x7C00)},
        {"scale": spoiled(GOOD["scale"], 0xFE01)}, {"codes": GOOD["codes"][:, 1:].copy()},
        {"codes": np.zeros(0, np.uint8)},
    ],
    ids=lambda change: str({k: v if np.size(v) < 3 else np.shape(v) for k, v in change.items()}),
)  # fmt: skip
def test_impossible_matrices_are_refused(change: dict[str, Any]) -> None:
    made = MODULE.Model(config())
    with pytest.raises(ValueError):
        made.add_matrix(**{"role": "q", "layer": 0, **GOOD, **change})
    made.add_matrix("q", 0, **GOOD)
    with pytest.raises(ValueError, match="twice"):
        made.add_matrix("q", 0, **GOOD)


def two_bit_ring(rows: int, columns: int) -> dict[str, Any]:
    """Arguments of a valid matrix on the trellis of 2 bits."""
    return {
        "format": 13, "shape": (rows, columns), "group": columns, "twice_zero": 127,
        "codes": np.zeros((-(-rows // 64), -(-columns // 16) * 256), np.uint8),
        "scale": np.full((-(-rows // 64), 1, 64), 0.05, np.float16).view(np.uint16),
        "zero": None, "table": np.full(32, 63, np.uint8),
    }  # fmt: skip


RING = two_bit_ring(*SHAPES["q"])


@pytest.mark.parametrize(
    "change",
    [
        {"format": 12}, {"format": 14}, {"format": 18}, {"group": 16}, {"twice_zero": 255}, {"table": None},
        {"table": np.zeros(31, np.uint8)}, {"table": np.full(32, 64, np.uint8)},
        {"table": RING["table"].astype(np.int8)}, {"zero": GOOD["zero"]}, {"codes": RING["codes"][:, 1:].copy()},
        {"scale": RING["scale"][..., :32].copy()},
        {"scale": spoiled(RING["scale"], 0x7C00)}, {"shape": (31, 32)},
    ],
    ids=lambda change: str({k: v if np.size(v) < 3 else np.shape(v) for k, v in change.items()}),
)  # fmt: skip
def test_impossible_trellises_are_refused(change: dict[str, Any]) -> None:
    made = MODULE.Model(config())
    with pytest.raises((ValueError, TypeError)):
        made.add_matrix(**{"role": "q", "layer": 0, **RING, **change})
    with pytest.raises(ValueError, match="table"):
        made.add_matrix("q", 0, **GOOD, table=RING["table"])
    made.add_matrix("q", 0, **RING)


ONES, TURN = np.ones(HIDDEN, np.int8), np.ones((1, 1), np.int8)


@pytest.mark.parametrize(
    ("tap", "layer", "order", "signs", "dense"),
    [
        ("q", 0, 1, ONES, TURN), ("attn_in", 2, 1, ONES, TURN), ("head_in", 1, 1, ONES, TURN),
        ("embed_out", 0, 1, ONES, TURN), ("attn_in", 0, 1, ONES[1:], TURN), ("down_in", 0, 1, ONES, TURN),
        ("attn_in", 0, 1, 2 * ONES, TURN), ("attn_in", 0, 1, 0 * ONES, TURN), ("attn_in", 0, 4, ONES, TURN),
        ("attn_in", 0, 3, ONES, np.ones((3, 3), np.int8)), ("attn_in", 0, 0, ONES, TURN),
        ("attn_in", 0, 1 << 40, ONES, TURN), ("attn_in", 0, 1, ONES, -TURN), ("attn_in", 0, 1, ONES[:0], TURN),
    ],
)  # fmt: skip
def test_impossible_rotations_are_refused(
    tap: str, layer: int, order: int, signs: np.ndarray, dense: np.ndarray
) -> None:
    made = model(sealed=False)
    with pytest.raises(ValueError):
        made.add_rotation(tap, layer, order, signs, dense)
    made.add_rotation("attn_in", 0, 1, ONES, TURN)
    with pytest.raises(ValueError, match="twice"):
        made.add_rotation("attn_in", 0, 1, ONES, TURN)
    made.seal()
    with pytest.raises(ValueError, match="sealed"):
        made.add_rotation("attn_in", 1, 1, ONES, TURN)


def test_floats_come_whole_and_aligned() -> None:
    values = np.zeros(4 * HEADS * HEAD_DIM * HIDDEN + 4, np.uint8)
    facts = {"format": FP32, "shape": SHAPES["q"], "group": 0, "twice_zero": 0, "scale": None, "zero": None}
    made = MODULE.Model(config())
    for codes in (values[:-3], values[4:-1], values[1:-3]):
        with pytest.raises(ValueError):
            made.add_matrix("q", 0, codes=codes, **facts)
    with pytest.raises(ValueError, match="floats"):
        made.add_matrix("q", 0, codes=values[:-4], **{**facts, "scale": GOOD["scale"]})
    made.add_matrix("q", 0, codes=values[:-4], **facts)


@pytest.mark.parametrize(
    ("role", "layer", "size"),
    [("attn_norm", 0, HIDDEN - 1), ("attn_norm", 0, 0), ("attn_norm", 2, HIDDEN), ("final_norm", 1, HIDDEN),
     ("q_bias", 0, HEADS * HEAD_DIM), ("k_norm", 0, HEAD_DIM), ("post_mlp_norm", 0, HIDDEN), ("q", 0, HIDDEN)],
)  # fmt: skip
def test_impossible_vectors_are_refused(role: str, layer: int, size: int) -> None:
    made = MODULE.Model(config())
    with pytest.raises(ValueError):
        made.add_vector(role, layer, np.ones(size, np.float32))


def test_a_model_is_sealed_whole_and_once() -> None:
    made = MODULE.Model(config())
    with pytest.raises(ValueError, match="missing"):
        made.seal()
    with pytest.raises(ValueError, match="missing: 'q_bias'"):
        model(qkv_bias=True)
    with pytest.raises(ValueError, match="sealed"):
        session(model=model(sealed=False))
    sealed = model()
    for add in (
        lambda: sealed.add_matrix("q", 0, **GOOD),
        lambda: sealed.add_vector("attn_norm", 0, np.ones(HIDDEN, np.float32)),
    ):
        with pytest.raises(ValueError, match="sealed"):
            add()


@pytest.mark.parametrize(
    "change", [{"threads": 0}, {"threads": 1 << 40}, {"context": 0}, {"context": POSITIONS + 1}, {"isa": "mmx"}]
)
def test_impossible_sessions_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        session(**change)


def tokens(count: int, value: int = 1) -> np.ndarray:
    return np.full(count, value, np.int32)


@pytest.mark.parametrize(
    ("steps", "rows"),
    [
        ([(9, tokens(1), 0)], 1), ([(0, tokens(0), 0)], 0), ([(0, tokens(65), 65)], 0),
        ([(0, tokens(33), 33), (1, tokens(32), 32)], 0), ([(0, tokens(1), 0), (0, tokens(1), 0)], 2),
        ([(0, tokens(1, -1), 0)], 1), ([(0, tokens(1, VOCAB), 0)], 1), ([(0, tokens(2), 3)], 0),
        ([(0, tokens(2), 1 << 60)], 0), ([(0, tokens(2), 0)], 1), ([(0, tokens(2), 1)], 2), ([], 1),
        ([(1, tokens(5), 5)], 0),
    ],
    ids=str,
)  # fmt: skip
def test_impossible_steps_are_refused_and_change_nothing(steps: list, rows: int) -> None:
    made = session(context=64)
    assert (made.open(), made.open()) == (0, 1)
    made.step([(0, tokens(3), 3), (1, tokens(60), 60)], np.empty((0, VOCAB), np.float32))
    before = made.kv_bytes
    with pytest.raises(ValueError):
        made.step(steps, np.empty((rows, VOCAB), np.float32))
    assert (made.length(0), made.length(1), made.kv_bytes) == (3, 60, before)


def test_bytes_that_no_packer_writes_do_no_harm() -> None:
    """All bytes and tokens of a session whose numbers leave float32: nothing is promised but an end."""
    made = MODULE.Model(config())
    for name, shape in {"embed": (VOCAB, HIDDEN), **SHAPES}.items():
        for layer in range(1 if name == "embed" else 2):
            matrix = four_bits(*shape)
            matrix["scale"] = np.full_like(matrix["scale"], 0x7BFF)  # 65504
            made.add_matrix(name, layer, **matrix)
    made.add_vector("final_norm", 0, np.full(HIDDEN, INF, np.float32))
    for layer in range(2):
        made.add_vector("attn_norm", layer, np.full(HIDDEN, 3e38, np.float32))
        made.add_vector("mlp_norm", layer, np.full(HIDDEN, NAN, np.float32))
    made.seal()
    for isa in native.available():
        for int8 in (True, False):
            running = session(model=made, isa=isa, int8=int8)
            logits = np.empty((64, VOCAB), np.float32)
            running.step([(running.open(), np.arange(64, dtype=np.int32) % VOCAB, 0)], logits)
