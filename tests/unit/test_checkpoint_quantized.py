"""GPTQ, AWQ and compressed-tensors folders: values by the formats' own definitions, packed without another rounding."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

import paretobit as pb
from paretobit.arch import resolve
from paretobit.artifact import Artifact
from paretobit.checkpoint.quantized import QuantizedCheckpoint
from paretobit.errors import ParetobitError
from paretobit.tensorfile import write_arrays
from tests.checkpoints import tiny_config, tiny_weights, write_tokenizer
from tests.commands import Command

GROUP = 32
Arrays = dict[str, np.ndarray]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which output each field of a word holds


def words(codes: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """int32 along the last axis, field by field: code i of a word at bit i · bits, or code order[i]."""
    per = 32 // bits
    out = np.zeros((*codes.shape[:-1], codes.shape[-1] // per), np.uint32)
    for at in range(codes.shape[-1]):
        field = at % per if order is None else order.index(at % per)
        out[..., at // per] |= codes[..., at].astype(np.uint32) << np.uint32(field * bits)
    return out.view(np.int32)


def gptq(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int, less: int = 1) -> Arrays:
    columns = codes.shape[1]
    return {
        "qweight": np.ascontiguousarray(words(codes, bits).T),
        "qzeros": words((zero.astype(np.int16) - less).astype(np.uint8).T, bits),
        "scales": np.ascontiguousarray(scale.T),
        "g_idx": (np.arange(columns) // (columns // scale.shape[1])).astype(np.int32),
    }


def awq(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int) -> Arrays:
    return {
        "qweight": words(codes.T, bits, AWQ_ORDER),
        "qzeros": words(zero.T, bits, AWQ_ORDER),
        "scales": np.ascontiguousarray(scale.T),
    }


def compressed(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int) -> Arrays:
    """By the format's own package."""
    middle = 1 << bits - 1
    signed, zeros = (torch.from_numpy((x.astype(np.int16) - middle).astype(np.int8)) for x in (codes, zero))
    found = {"weight_packed": pack_to_int32(signed, bits).numpy(), "weight_scale": scale}
    if (zero != middle).any():
        found["weight_zero_point"] = pack_to_int32(zeros, bits, packed_dim=0).contiguous().numpy()
    return found | {"weight_shape": np.array(codes.shape, np.int64)}


FORMATS: dict[str, tuple[Callable[..., Arrays], dict]] = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}),
    "compressed-tensors": (compressed, {"quant_method": "compressed-tensors", "format": "pack-quantized"}),
}


class Made:
    """A folder in one of the formats. codes, scale, zero: of every matrix of the blocks, by name."""

    def __init__(
        self, path: Path, kind: str, model_type: str = "llama", bits: int = 4, middle: bool = False,
        change: Callable[[str, Arrays], None] | None = None, facts: dict | None = None, **encoding: int,
    ) -> None:  # fmt: skip
        rng, (encode, said) = np.random.default_rng(7), FORMATS[kind]
        self.path, self.matrices = path, {}
        config = tiny_config(model_type)
        arrays: Arrays = {}
        for name, values in tiny_weights(config).items():
            if values.ndim == 1 or "embed" in name:
                arrays[name] = values
                continue
            (rows, columns), levels = values.shape, 1 << bits
            codes = rng.integers(1 if middle else 0, levels, (rows, columns), np.uint8)
            scale = (rng.uniform(0.5, 1.5, (rows, columns // GROUP)) * 0.3 / levels).astype(np.float16)
            zero = rng.integers(1, levels, scale.shape, np.uint8)
            zero = np.full_like(zero, levels // 2) if middle else zero
            self.matrices[name] = codes, scale, zero
            made = encode(codes, scale, zero, bits, **encoding)
            if change is not None:
                change(name, made)
            arrays |= {f"{name.removesuffix('.weight')}.{part}": array for part, array in made.items()}
        path.mkdir(parents=True)
        write_arrays(path / "model.safetensors", arrays)
        (path / "config.json").write_text(json.dumps({**config, "quantization_config": {**said, **(facts or {})}}))
        write_tokenizer(path)

    def values(self, name: str) -> np.ndarray:
        codes, scale, zero = self.matrices[name]
        steps = codes.astype(np.float32) - np.repeat(zero.astype(np.float32), GROUP, axis=1)
        return np.repeat(scale.astype(np.float32), GROUP, axis=1) * steps


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_values_and_codes(kind: str, bits: int, model_type: str, tmp_path: Path) -> None:
    """`read` gives the definition's values; quantize without a scheme keeps every code, scale and zero point."""
    if (kind, bits) == ("awq", 8):
        return
    made = Made(tmp_path / "model", kind, model_type, bits, middle=bits == 8)
    source = pb.open_model(made.path)
    assert isinstance(source, QuantizedCheckpoint) and set(source.packed) == set(made.matrices)
    for name in made.matrices:
        assert np.array_equal(source.read(name), made.values(name)), name
        assert np.array_equal(source.read(name, slice(3, 9)), made.values(name)[3:9])
    fit = pb.quantize(str(made.path), out=str(tmp_path / "packed"))
    packed = Artifact(tmp_path / "packed")
    assert fit.size_bytes == packed.size_bytes and len(fit.notes) == 1 and "embed_tokens" in fit.notes[0]
    for name in packed.names():
        assert np.array_equal(packed.read(name), source.read(name)), name
    scheme = f"w4g{GROUP}" if bits == 4 else f"w8g{GROUP}"
    assert {str(packed.schemes[name]) for name in made.matrices} == {scheme}
    assert "quantization_config" not in packed.config


@pytest.mark.parametrize("kind", FORMATS)
def test_zero_points_in_the_middle_are_not_stored(kind: str, tmp_path: Path) -> None:
    made = Made(tmp_path / "model", kind, middle=True)
    pb.quantize(str(made.path), out=str(tmp_path / "packed"))
    packed = Artifact(tmp_path / "packed")
    for name, (codes, scale, _) in made.matrices.items():
        q = packed.qtensor(name)
        assert str(packed.schemes[name]) == f"w4g{GROUP}s" and np.array_equal(q.codes, codes)
        assert np.array_equal(q.scale, scale)


def test_gptq_v2_stores_zero_points_as_they_are(tmp_path: Path) -> None:
    made = Made(tmp_path / "model", "gptq", facts={"checkpoint_format": "gptq_v2"}, less=0)
    name, source = next(iter(made.matrices)), pb.open_model(made.path)
    assert np.array_equal(source.read(name), made.values(name))
    config = json.loads((made.path / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq"
    (made.path / "config.json").write_text(json.dumps(config))
    assert pb.open_model(made.path).hash != source.hash  # the same files, but other values


def test_what_compressed_tensors_exports_comes_back(tmp_path: Path, model: Path, quick: None) -> None:
    """Out and in again: the same codes, scales and zero points on the same schemes."""
    for scheme in ("w4g32", "w4g32s", "w4z", "w8g32"):
        first, second = tmp_path / scheme, tmp_path / f"{scheme}-again"
        pb.quantize(str(model), to=scheme, method="rtn", embed="bf16", out=str(first))
        pb.export(str(first), to="compressed-tensors", path=str(tmp_path / f"{scheme}-ct"), dtype="float32")
        pb.quantize(str(tmp_path / f"{scheme}-ct"), out=str(second))
        one, two = Artifact(first), Artifact(second)
        for name in one.plan.layers:
            assert one.schemes[name] == two.schemes[name] and np.array_equal(one.read(name), two.read(name))
            if one.schemes[name].weight.kind == "affine":
                a, b = one.qtensor(name), two.qtensor(name)
                assert np.array_equal(a.codes, b.codes) and np.array_equal(a.scale, b.scale)


def act_order(name: str, parts: Arrays) -> None:
    parts["g_idx"] = np.random.default_rng(1).permutation(parts["g_idx"]).astype(np.int32)


def test_act_order_is_read_but_not_kept(tmp_path: Path, command: Command) -> None:
    made = Made(tmp_path / "model", "gptq", change=act_order)
    source = pb.open_model(made.path)
    assert isinstance(source, QuantizedCheckpoint)
    for name, (codes, scale, zero) in made.matrices.items():
        groups = source.codes(name).group_of
        assert not np.array_equal(groups, np.sort(groups))
        steps = codes.astype(np.float32) - zero.astype(np.float32)[:, groups]
        assert np.array_equal(source.read(name), scale.astype(np.float32)[:, groups] * steps)
    told = command("quantize", made.path, "-o", tmp_path / "packed").error
    assert "its groups are no runs of columns (act-order); hint: say --to SCHEME" in told
    assert command("quantize", made.path, "--to", "w8g32", "--method", "rtn", "-o", tmp_path / "other").code == 0


def wide(name: str, parts: Arrays) -> None:
    key = "scales" if "scales" in parts else "weight_scale"
    parts[key] = parts[key].astype(np.float32) * np.float32(1.0001)


def beyond(name: str, parts: Arrays) -> None:
    parts["g_idx"] = parts["g_idx"] + np.int32(1)


def short(name: str, parts: Arrays) -> None:
    parts["qzeros"] = parts["qzeros"][:-1]


def infinite(name: str, parts: Arrays) -> None:
    parts["scales"] = np.full_like(parts["scales"], np.inf)


def lacking(name: str, parts: Arrays) -> None:
    del parts["scales"]


@pytest.mark.parametrize(
    ("kind", "change", "facts", "what"),
    [
        ("gptq", wide, {}, "its scales are no fp16 numbers"),
        ("compressed-tensors", wide, {}, "its scales are no fp16 numbers"),
        ("gptq", beyond, {}, "has groups beyond its scales"),
        ("gptq", short, {}, r"qzeros I32 \(2, 8\).*codes of 2, 4, 8 bits are read"),
        ("awq", infinite, {}, "values that are not finite"),
        ("awq", lacking, {}, "down_proj.weight has no scales"),
        ("awq", None, {"version": "gemv"}, "version is 'gemv', which is not read"),
        ("gptq", None, {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin', which is not read"),
        ("compressed-tensors", None, {"format": "marlin-24"}, "format is 'marlin-24', which is not read"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(
    kind: str, change: Callable | None, facts: dict, what: str, tmp_path: Path, command: Command
) -> None:
    made = Made(tmp_path / "model", kind, change=change, facts=facts)
    with pytest.raises(ParetobitError, match=what):
        pb.quantize(str(made.path), out=str(tmp_path / "packed"))
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("said", [None, [], "gptq", {"quant_method": ["gptq"]}, {"quant_method": "fp8"}, {}])
def test_what_is_no_format_of_these_is_an_ordinary_folder(said: object, tmp_path: Path) -> None:
    made = Made(tmp_path / "model", "gptq")
    config = json.loads((made.path / "config.json").read_text())
    (made.path / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    with pytest.raises(ParetobitError, match="is not part of a llama.*not quantized already"):
        pb.open_model(made.path)


def test_options_that_would_do_nothing_are_refused(tmp_path: Path, command: Command) -> None:
    made = Made(tmp_path / "model", "awq")
    out = ("quantize", made.path, "-o", tmp_path / "packed")
    assert "so --method has nothing to do; hint: add --to SCHEME" in command(*out, "--method", "rtn").error
    assert "so --seed has nothing to do" in command(*out, "--seed", 0).error


def test_it_needs_no_torch_and_repeats_to_the_byte(tmp_path: Path) -> None:
    made = Made(tmp_path / "model", "awq")
    code = "import sys; sys.modules['torch'] = None; from paretobit.cli import main; main(sys.argv[1:])"
    for name in ("one", "two"):
        done = subprocess.run([sys.executable, "-c", code, "quantize", made.path, "-o", tmp_path / name])
        assert done.returncode == 0
    assert Artifact(tmp_path / "one").hash == Artifact(tmp_path / "two").hash
    assert resolve(Artifact(tmp_path / "one").config) == resolve(tiny_config())
