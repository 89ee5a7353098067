"""The GGUF reader against the gguf package (its reader, its dequantizer) and llama.cpp's conversion rules."""

from __future__ import annotations

import hashlib
import math
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from checkpoints import permute, tiny_config, tiny_gguf, tiny_weights

from paretobit.arch.resolve import resolve
from paretobit.arch.rope import frequencies
from paretobit.arch.spec import EMBED, HEAD
from paretobit.checkpoint import open_model
from paretobit.checkpoint.gguf import GgufCheckpoint
from paretobit.checkpoint.gguf_config import canonical
from paretobit.errors import ParetobitError

EXACT = ("F32", "F16", "BF16")
NARROW = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4")  # blocks of 32
WIDE = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S")
WIDE += ("IQ3_XXS", "IQ3_S", "IQ4_XS")  # blocks of 256
HEADS = {"attn_q": 4, "attn_k": 2}


def expected(path: Path, model_type: str = "llama") -> dict[str, np.ndarray]:
    """GGUF name -> whole values, read and dequantized by the gguf package."""
    with np.errstate(all="ignore"):
        return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


def stored_order(name: str, values: np.ndarray) -> np.ndarray:
    """Our values put back into the rows' order in a llama GGUF."""
    heads = next((n for part, n in HEADS.items() if f".{part}." in name), 0)
    return permute(values, heads) if heads else values


@pytest.mark.parametrize("qtype", EXACT + NARROW + WIDE)
def test_every_type_whole_and_by_rows(tmp_path: Path, qtype: str) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", qtype, width=256 if qtype in WIDE else 64)
    checkpoint = open_model(path)
    seen = 0
    for stored, values in expected(path).items():
        name = canonical(stored, checkpoint.family)
        whole = checkpoint.read(name)
        assert whole.dtype == np.float32 and whole.flags.c_contiguous
        np.testing.assert_array_equal(stored_order(stored, whole), values)
        for rows in (slice(0, 1), slice(5, 27), slice(len(whole) - 3, None), slice(4, 4)):
            np.testing.assert_array_equal(checkpoint.read(name, rows), whole[rows])
        seen += values.ndim == 2
    assert seen == 15 and set(checkpoint.names()) == {canonical(s, checkpoint.family) for s in expected(path)}


def test_memory_beside_the_result_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dequantized a thousand values at a time, a tensor is the same, and takes its own size and little more."""
    checkpoint = open_model(tiny_gguf(tmp_path / "m.gguf", "Q5_1"))
    whole = checkpoint.read(EMBED)
    monkeypatch.setattr("paretobit.checkpoint.gguf.VALUES_AT_ONCE", 1000)
    tracemalloc.start()
    pieces = checkpoint.read(EMBED)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(pieces, whole)
    assert peak < whole.nbytes + 20 * 4 * 1000  # gguf's dequantizer makes about ten arrays of a piece's size


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("qtype", EXACT)
def test_the_original_weights_come_back(tmp_path: Path, model_type: str, qtype: str) -> None:
    """Row order of llama's q and k, Gemma's norms less one, names of every family: equal to the folder's to the bit."""
    checkpoint = open_model(tiny_gguf(tmp_path / "m.gguf", qtype, model_type=model_type))
    weights = tiny_weights(tiny_config(model_type))
    assert checkpoint.names() == list(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(checkpoint.read(name), value, err_msg=name)


@pytest.mark.parametrize(
    "rows", [slice(0, 64), slice(0, 5), slice(15, 17), slice(30, 50), slice(63, 64), slice(20, 20)]
)
@pytest.mark.parametrize("part", ["q_proj", "k_proj"])
def test_rotated_rows_cross_heads(tmp_path: Path, part: str, rows: slice) -> None:
    checkpoint = open_model(tiny_gguf(tmp_path / "m.gguf", "F32"))
    name = f"model.layers.1.self_attn.{part}.weight"
    np.testing.assert_array_equal(checkpoint.read(name, rows), tiny_weights(tiny_config())[name][rows])


def test_rotation_with_unpermuted_rows_equals_llama_cpps(tmp_path: Path) -> None:
    """The point of the row order: rotating halves of our q gives what llama.cpp gets by rotating neighbours of its."""
    path = tiny_gguf(tmp_path / "m.gguf", "F32")
    theirs = expected(path)["blk.0.attn_q.weight"].astype(np.float64)
    ours = open_model(path).read("model.layers.0.self_attn.q_proj.weight").astype(np.float64)
    x, angle = (
        np.random.default_rng(1).standard_normal(64),
        3 * 10000.0 ** (-np.arange(8) / 8),
    )  # position 3, head_dim 16
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = (ours @ x).reshape(4, 2, 8).swapaxes(0, 1)  # Hugging Face: pairs (i, i + 8)
    halves = np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    a, b = (theirs @ x).reshape(4, 8, 2).transpose(2, 0, 1)  # llama.cpp: pairs (2i, 2i + 1)
    neighbours = np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    np.testing.assert_array_equal(halves, neighbours)  # the same sums of the same products, in the same order


def test_config(tmp_path: Path) -> None:
    config = open_model(tiny_gguf(tmp_path / "m.gguf")).config
    wanted = tiny_config(attention_bias=False, mlp_bias=False)
    assert config == wanted
    assert config["rms_norm_eps"] == 1e-5 and type(config["rms_norm_eps"]) is float  # not 9.999999747378752e-06


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_same_topology_as_the_folders(tmp_path: Path, model_type: str, tied: bool) -> None:
    checkpoint = open_model(tiny_gguf(tmp_path / "m.gguf", tied=tied, model_type=model_type))
    assert checkpoint.arch == resolve(tiny_config(model_type, tied))
    assert (HEAD in checkpoint.names()) is not tied


def test_name_hash_and_bits16(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "m.gguf")
    checkpoint = open_model(path)
    assert checkpoint.name == "m.gguf"
    assert checkpoint.hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.bits16 == 2 * sum(v.size for v in tiny_weights(tiny_config()).values())


def test_a_folder_with_one_gguf(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "m.gguf")
    assert isinstance(open_model(tmp_path), GgufCheckpoint)
    tiny_gguf(tmp_path / "n.gguf")
    with pytest.raises(ParetobitError, match="holds 2 GGUF files"):
        open_model(tmp_path)


def rope_divisors(theta: float, width: int, factor: float, low: float, high: float, context: float) -> np.ndarray:
    """What llama.cpp's LlamaModel.generate_extra_tensors writes (float32, as torch computes it there)."""
    divisors = []
    for freq in (1.0 / np.float32(theta) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))).tolist():
        wavelength = 2 * math.pi / freq
        if wavelength < context / high:
            divisors.append(1.0)
        elif wavelength > context / low:
            divisors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize(
    ("theta", "factor", "low", "high", "context"),
    [(500000.0, 8.0, 1.0, 4.0, 8192), (500000.0, 32.0, 1.0, 4.0, 8192), (10000.0, 4.0, 1.0, 8.0, 300)],
)
def test_llama3_scaling_is_recovered(
    tmp_path: Path, theta: float, factor: float, low: float, high: float, context: int
) -> None:
    from paretobit.checkpoint.gguf_config import Keys
    from paretobit.checkpoint.gguf_rope import rope_fields

    for width in (64, 128):
        divisors = rope_divisors(theta, width, factor, low, high, context)
        keys = Keys({"general.architecture": "llama", "llama.rope.freq_base": theta}, tmp_path)
        assert rope_fields(keys, width, divisors) == {
            "rope_theta": theta,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            },
        }


def test_llama3_scaling_in_a_file(tmp_path: Path) -> None:
    divisors = rope_divisors(10000.0, 16, 8.0, 1.0, 4.0, 512)
    checkpoint = open_model(tiny_gguf(tmp_path / "m.gguf", tensors={"rope_freqs.weight": divisors}))
    plain = 10000.0 ** (-np.arange(8) / 8)
    scaled = np.array(frequencies(checkpoint.arch.ropes[0], 16)[0])
    # divisors carry a few float32 roundings, 2^-24 each
    np.testing.assert_allclose(plain / scaled, divisors, rtol=1e-6)


@pytest.mark.parametrize("divisors", [np.linspace(1, 8, 8), np.ones(7) * 2, np.full(8, np.nan), -np.ones(8)])
def test_other_rotary_tensors_are_refused(tmp_path: Path, divisors: np.ndarray) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", tensors={"rope_freqs.weight": divisors})
    with pytest.raises(ParetobitError, match="rope_freqs"):
        open_model(path)


def test_neutral_rotary_divisors_mean_none(tmp_path: Path) -> None:
    checkpoint = open_model(tiny_gguf(tmp_path / "m.gguf", tensors={"rope_freqs.weight": np.ones(8)}))
    assert "rope_scaling" not in checkpoint.config


@pytest.mark.parametrize(
    ("extra", "rope"),
    [
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        ({"llama.rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 128,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        ),
    ],
)
def test_rope_scaling(tmp_path: Path, extra: dict, rope: dict | None) -> None:
    assert open_model(tiny_gguf(tmp_path / "m.gguf", extra=extra)).config.get("rope_scaling") == rope


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"llama.expert_count": 8}, "llama.expert_count is 8"),
        ({"llama.final_logit_softcapping": 30.0}, "final_logit_softcapping is 30"),
        ({"llama.attention.causal": False}, "attention.causal is False"),
        ({"llama.logit_scale": 0.5}, "logit_scale is 0.5"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count is 8"),
        ({"llama.attention.value_length": 8}, "value_length is 8"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.rope.scaling.attn_factor": 1.5}, "attn_factor is 1.5"),
        ({"llama.attention.head_count": None}, "llama.attention.head_count is missing"),
        ({"llama.attention.head_count": 0}, "attention.head_count is 0"),
        ({"llama.attention.head_count": "four"}, "'four', not a number"),
        ({"llama.feed_forward_length": [96, 64]}, "differs from layer to layer"),
        ({"llama.block_count": 3}, r"model\.layers\.2\.self_attn\.q_proj\.weight is missing"),
        ({"llama.block_count": 1}, "blk.1.attn_q.weight is not part of a llama of 1 layers"),
        ({"llama.embedding_length": 128}, r"has shape \(300, 64\)"),
        ({"split.count": 3}, "one part of several; hint: join them"),
        ({"general.alignment": 24}, "general.alignment is 24"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(tmp_path: Path, extra: dict, message: str) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", extra={k: v for k, v in extra.items() if k != "general.alignment"})
    if "general.alignment" in extra:  # the writer itself refuses it: put it over a key of the same length and type
        path.write_bytes(
            path.read_bytes().replace(b"llama.block_count" + b"\x04\0\0\0\x02", b"general.alignment\x04\0\0\0\x18")
        )
    with pytest.raises(ParetobitError, match=message):
        open_model(path)


def test_unknown_architectures_name_the_known(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba", 1))
    with pytest.raises(ParetobitError, match="'mamba' is not known; hint: known are gemma3, llama"):
        open_model(path)


def test_a_mistral_is_told_by_its_window(tmp_path: Path) -> None:
    checkpoint = open_model(tiny_gguf(tmp_path / "m.gguf", extra={"llama.attention.sliding_window": 16}))
    assert checkpoint.arch.model_type == "mistral" and checkpoint.arch.windows == (16, 16)


def test_extra_tensors_are_refused(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", tensors={"blk.0.attn_qkv.weight": np.ones((2, 2))})
    with pytest.raises(ParetobitError, match=r"blk\.0\.attn_qkv\.weight is not part of"):
        open_model(path)


def test_values_that_are_not_finite_name_their_tensor(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "m.gguf")
    start = GgufCheckpoint(path).header.tensors["token_embd.weight"].start
    raw = bytearray(path.read_bytes())
    raw[start : start + 2] = b"\x00\x7c"  # the first block's float16 scale becomes infinite
    path.write_bytes(raw)
    with pytest.raises(ParetobitError, match=f"{EMBED} holds values that are not finite"):
        open_model(path).read(EMBED)


def test_types_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "m.gguf", "F32")
    raw = path.read_bytes()
    name = b"token_embd.weight"
    at = raw.index(name) + len(name) + 4 + 16  # dimensions, then their number of sizes
    assert raw[at : at + 4] == b"\0\0\0\0"  # F32
    path.write_bytes(raw[:at] + (26).to_bytes(4, "little") + raw[at + 4 :])  # I32 takes as many bytes
    with pytest.raises(ParetobitError, match="stored as I32"):
        open_model(path).read(EMBED)
