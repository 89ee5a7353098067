"""Predicted milliseconds and joules against sums by hand, on a made-up machine."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from paretobit import hardware, pace
from paretobit.arch import resolve
from paretobit.arch.spec import EMBED, HEAD, Arch
from paretobit.errors import ParetobitError
from paretobit.evals.fixed import nonnegative
from paretobit.pace import Pace, predict
from paretobit.planfile import ROTATE, Layer, Plan, uniform
from paretobit.profile import ASSUMED_POWER, FIXED, Hardware, Power, Published, Speeds
from paretobit.scheme import parse
from paretobit.sizes import tensor_bytes

HIDDEN, INNER, VOCAB = 64, 128, 256
KV = "model.layers.0.self_attn.k_proj.weight"
NEAR = {"w2": 0.01, "w4": 0.02, "w4g64": 0.03, "w2t": 0.05, "bf16": 0.1}
MEMORY = {"w2": 0.02, "w4": 0.04, "w4g64": 0.05, "w2t": 0.05, "bf16": 0.2}
FIXED_NS = dict(zip(FIXED, (5000.0, 1000.0, 2.0, 3.0, 0.5, 0.0, 0.25), strict=True))
FAR_NS = {**dict.fromkeys(FIXED, 0.0), "block": 400.0, "kv": 0.1}
SIZES = {1 << 20: 0.0, 1 << 24: 1.0}  # bytes -> how far


def llama(**changes: object) -> Arch:
    config = {
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCAB, "rms_norm_eps": 1e-5,
        "rope_theta": 1e4, "max_position_embeddings": 512, "hidden_act": "silu", "tie_word_embeddings": True,
    }  # fmt: skip
    return resolve({**config, **changes})


def machine(**changes: object) -> Hardware:
    """Twice as fast with two threads, in all that it does."""

    def teams(table: dict) -> dict:
        return {name: {1: value, 2: value / 2} for name, value in table.items()}

    speeds = Speeds(
        {1: 10.0}, {1: 10.0}, {1: 100.0}, teams(MEMORY), teams(NEAR),
        {size: {1: far, 2: far} for size, far in SIZES.items()}, teams(FIXED_NS), teams(FAR_NS),
    )  # fmt: skip
    return replace(Hardware("avx2", 2, "made up", 1 << 30, speeds=speeds), **changes)


def mixed(arch: Arch, **schemes: str) -> Plan:
    """Everything on w4 but the matrices whose names hold a key."""
    plan = uniform(arch, "x", "w4", "w4", ("rtn",) * 3, {})
    layers = {
        name: Layer(parse(next((s for part, s in schemes.items() if part in name), "w4")), "rtn")
        for name in plan.layers
    }
    return replace(plan, layers=layers)


def test_a_plan_is_the_sum_of_its_parts() -> None:
    """2 blocks of 4·64² less the half of k and v, 3·64·128; 256 rows of embedding: 8192 more weights each."""
    arch = llama()
    turned = mixed(arch, gate="w2", up="w2")
    turned = replace(turned, transforms=({"method": ROTATE, "seed": 0, "taps": ["model.layers.0.down_in"]},))
    found = predict(arch, turned, machine(), 1, context=100)
    rest, w2 = 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 64 * 128) + 256 * 64, 2 * 2 * 64 * 128
    near = 0.02 * rest + 0.01 * w2  # all of it fits a mebibyte
    # Norms 2·64, rounding 2·64 + 64 + 128, sums 2·64, rotary embedding 64 + 32, activation 128; the head's 2·64.
    passes = 2 * (128 + 320 + 128 + 96 + 128) + 128
    fixed = 5000 + 2 * 1000 + 2 * passes + 3 * 128 + 0.5 * 2 * 64 * 100 + 0.25 * 256
    assert found.ms_per_token == pytest.approx((near + fixed) / 1e6, rel=1e-12)
    assert not found.bound
    assert predict(arch, turned, machine(), 2, context=100).ms_per_token == pytest.approx(found.ms_per_token / 2)


@pytest.mark.parametrize(("nbytes", "far"), [(1, 0.0), (1 << 20, 0.0), (1 << 22, 0.5), (1 << 24, 1.0), (1 << 40, 1.0)])
def test_between_cache_and_memory_by_size(nbytes: int, far: float) -> None:
    arch = llama()
    at = Pace(arch, machine(), 1, nbytes, 100)
    assert at.matrix_ms(KV, parse("w2")) == pytest.approx(32 * 64 * (0.01 + 0.01 * far) / 1e6)
    near, kv = Pace(arch, machine(), 1, 1, 100).fixed_ms(), 2 * 2 * 2 * 2 * 16 * 100  # blocks, k and v, bytes, heads
    assert at.fixed_ms() == pytest.approx(near + far * (400 * 2 + 0.1 * kv) / 1e6)


def test_more_bytes_are_slower_by_themselves() -> None:
    """The plan's own size says how far away it lies: the key-value cache counts."""
    arch = llama(max_position_embeddings=1 << 20)
    plan = mixed(arch)
    weights = sum(tensor_bytes(layer.scheme, arch.shapes()[name]) for name, layer in plan.layers.items())
    assert pace.bytes_read(arch, plan, 1000) == weights + 2 * 2 * 2 * 2 * 16 * 1000
    short, long = (predict(arch, plan, machine(), 1, context) for context in (10, 100_000))
    attended = 0.5 * 2 * 64 * 99_990 / 1e6
    assert long.ms_per_token > short.ms_per_token + attended + 1e-3


def test_a_window_bounds_what_is_attended_to() -> None:
    arch = llama(model_type="mistral", sliding_window=16, head_dim=16)
    assert pace.work(arch, 10)["attend"] == 2 * 64 * 10
    assert pace.work(arch, 100)["attend"] == 2 * 64 * 16
    assert pace.kv_bytes(arch, 100) == pace.kv_bytes(arch, 16)


def test_norms_of_queries_and_after_blocks_are_counted() -> None:
    gemma = llama(model_type="gemma3_text", sliding_window=16, sliding_window_pattern=2, query_pre_attn_scalar=16)
    assert gemma.post_norms and gemma.qk_norm
    assert pace.work(gemma, 10)["pass"] - pace.work(llama(), 10)["pass"] == 2 * (2 * 64 + 64 + 32)


def test_an_untied_embedding_is_only_looked_up() -> None:
    arch = llama(tie_word_embeddings=False)
    at = Pace(arch, machine(), 1, 1)
    assert at.matrix_ms(EMBED, parse("w4")) == at.matrix_joules(EMBED, parse("w4")) == 0
    assert at.matrix_ms(HEAD, parse("w4")) == Pace(llama(), machine(), 1, 1).matrix_ms(EMBED, parse("w4")) > 0
    assert pace.bytes_read(arch, mixed(arch)) == pace.bytes_read(llama(), mixed(llama()))


@pytest.mark.parametrize(
    ("scheme", "relative"), [("w4g128", "w4g64"), ("w4g64s", "w4g64"), ("w2g64", "w2"), ("w2t4", "w2t"),
                             ("w4a8", "w4"), ("fp16", "bf16"), ("fp32", "bf16")],
)  # fmt: skip
def test_what_was_not_measured_takes_what_its_relative_takes_by_its_bytes(scheme: str, relative: str) -> None:
    speeds = machine().speeds
    assert speeds is not None
    ratio = tensor_bytes(parse(scheme), (64, 4096)) / tensor_bytes(parse(relative), (64, 4096))
    near, memory = pace.scheme_ns(speeds, parse(scheme), 1)
    assert near == pytest.approx(NEAR[relative] * max(1, ratio))
    assert memory == pytest.approx(MEMORY[relative] * ratio)


def test_threads_between_those_measured_share_a_part() -> None:
    table = {1: 10.0, 4: 4.0}  # 2 + 8 ÷ threads
    assert [pace.at_threads(table, threads) for threads in (1, 2, 4, 8)] == pytest.approx([10, 6, 4, 4])


def test_profiles_without_what_is_asked_say_so() -> None:
    with pytest.raises(ParetobitError, match="holds no speed of w6"):
        Pace(llama(), machine(), 1, 1).matrix_ms(KV, parse("w6"))
    with pytest.raises(ParetobitError, match="holds no speeds; hint: measure"):
        Pace(llama(), machine(speeds=None), 1, 1)
    speeds = machine().speeds
    assert speeds is not None
    with pytest.raises(ParetobitError, match="any number of threads"):
        Pace(llama(), machine(speeds=replace(speeds, ns_per_weight={"w4": {}}, cached_ns_per_weight={"w4": {}})), 1, 1
             ).matrix_ms(KV, parse("w4"))  # fmt: skip


def test_joules_are_watts_and_bytes() -> None:
    arch, power = llama(), Power(3.0, 2e-9, "a book")
    plan = mixed(arch, gate="w2t")
    found = predict(arch, plan, machine(power=power), 2, context=100)
    nbytes = pace.bytes_read(arch, plan, 100)
    assert found.joules_per_token == pytest.approx(3.0 * 2 * found.ms_per_token / 1e3 + 2e-9 * nbytes)
    assert found.source == "modelled: 3 W a busy core and 2000 pJ a byte from memory, a book"
    assert str(ASSUMED_POWER) in predict(arch, plan, machine(), 2).source


def test_of_a_published_device_bytes_over_bandwidth_is_a_bound() -> None:
    arch, published = llama(), Published(4.0, "a paper")
    device = machine(speeds=None, published=published)
    plan = mixed(arch)
    found = predict(arch, plan, device, 4, context=100)
    assert found.bound
    assert found.ms_per_token == pytest.approx(pace.bytes_read(arch, plan, 100) / 4e9 * 1e3)
    at = Pace(arch, device, 4, 1, 100)
    assert at.matrix_ms(KV, parse("w4")) == pytest.approx(tensor_bytes(parse("w4"), (32, 64)) / 4e6)


@pytest.mark.parametrize("name", hardware.devices())
def test_every_device_gives_a_bound(name: str) -> None:
    found = predict(llama(), mixed(llama()), hardware.find(name), 4)
    assert found.bound and 0 < found.ms_per_token < 1 and math.isfinite(found.joules_per_token)


def test_fitted_costs_are_never_negative() -> None:
    import numpy as np

    rows = np.array([[1.0, 10.0, 0.0], [1.0, 100.0, 0.0], [1.0, 1000.0, 0.0]])
    assert nonnegative(rows, rows @ [5.0, 2.0, 0.0]) == pytest.approx([5.0, 2.0, 0.0])
    # The best line has a negative start: without one, the slope that is nearest as a share of every value.
    x, y = np.array([10.0, 100.0]), np.array([10.0, 200.0])
    slope = (x / y).sum() / ((x / y) ** 2).sum()
    assert nonnegative(np.stack([np.ones(2), x], 1), y) == pytest.approx([0.0, slope])
