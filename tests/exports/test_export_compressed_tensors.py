"""compressed-tensors folders: transformers and the format's own package compute what the packed model computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

import paretobit as pb
from paretobit.artifact import Artifact
from paretobit.checkpoint import open_model
from paretobit.compress.model import Decoder
from paretobit.errors import ParetobitError
from paretobit.scheme import parse
from paretobit.tensorfile import SafetensorsFile
from tests.exported import IDS, assert_close, logits
from tests.packed import Shelf

SCHEMES = {
    "w8g32": "int8g32", "w8": "int8", "w4g32s": "int4g32", "w4g32": "int4g32z", "w4": "int4", "w4z": "int4z",
    "w3g32": "int4g32", "w2": "int4", "w1.58g32": "int4g32", "w1": "int4", "w6g32": "int8g32", "w5z": "int8",
}  # fmt: skip


def loaded(path: Path, zeros: bool) -> np.ndarray:
    """Logits of IDS by transformers. Zero points: its way of keeping weights packed lays out no packed ones, so it must
    unpack while it loads."""
    how = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)} if zeros else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **how)
    with torch.inference_mode():
        return model(torch.from_numpy(IDS)).logits.float().numpy()


@pytest.mark.parametrize(
    ("family", "scheme"),
    [*(("llama", scheme) for scheme in SCHEMES), *(("gemma3", scheme) for scheme in list(SCHEMES)[:4])],
)
def test_transformers_computes_the_same(shelf: Shelf, family: str, scheme: str, tmp_path: Path) -> None:
    packed = shelf(family, scheme)
    done = pb.export(str(packed.folder), to="compressed-tensors", path=str(tmp_path / "ct"), dtype="float32")
    kind = SCHEMES[scheme]
    assert kind in done.tensors and not done.lossy
    assert [note for note in done.notes if "zero points" not in note] == []
    assert_close(loaded(tmp_path / "ct", kind.endswith("z")), packed)


def test_hf_compressed_tensors_and_gguf_agree(shelf: Shelf, tmp_path: Path) -> None:
    """By default embedding and norms are float16 here, and the command says so; that moves logits by less than 0.05."""
    for family in ("llama", "gemma3, as published"):
        packed, folder = shelf(family, "w8g32"), tmp_path / family[:5]
        for form, name in (("hf", "plain"), ("compressed-tensors", "ct"), ("gguf", "m.gguf")):
            done = pb.export(str(packed.folder), to=form, path=str(folder / name))
            if form == "compressed-tensors":
                (note,) = done.notes
                assert "not quantized in this format, stored as float16; --dtype float32 keeps every bit" in note
        found = [logits(open_model(folder / name)) for name in ("plain", "m.gguf")]
        found.append(loaded(folder / "ct", False))
        assert np.ptp(found, axis=0).max() < 0.05 < np.ptp(found[0])


def test_schemes_side_by_side(shelf: Shelf, tmp_path: Path) -> None:
    """Modules by name for every packing; what is stored as floats is left alone."""
    schemes = {"_proj": "w4g32s", "q_proj": "w8g32", "down": "w2", "o_proj": "bf16", "layers.1.mlp.up": "w8"}
    packed = shelf.mixed("llama", schemes)
    done = pb.export(str(packed.folder), to="compressed-tensors", path=str(tmp_path / "ct"), dtype="float32")
    assert done.tensors == {"float32": 8, "int8g32": 2, "int4g32": 7, "int4": 2, "int8": 1}
    config = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]
    targets = {tuple(group["targets"]): group["weights"] for group in config["config_groups"].values()}
    up = targets[("model.layers.1.mlp.up_proj",)]
    assert (up["num_bits"], up["strategy"], up["symmetric"], up["group_size"]) == (8, "channel", True, None)
    assert config["ignore"] == ["lm_head", *(f"model.layers.{i}.self_attn.o_proj" for i in (0, 1))]
    assert_close(loaded(tmp_path / "ct", False), packed)


class Rounded(Decoder):
    """The torch decoder with what every matrix of the blocks multiplies rounded to 8 bits, token by token."""

    def _linear(self, weights: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
        scale = (x.abs().amax(-1, keepdim=True) / 127.5).clamp(min=1e-12)  # 255 steps from -128 to 127
        return super()._linear(weights, name, torch.clamp(torch.round(x / scale), -128, 127) * scale)


def test_activations_otherwise_than_planned_are_said(shelf: Shelf, tmp_path: Path) -> None:
    """The format's readers have a scale a token, whatever the scheme says."""
    for scheme, said in (("w8a8", False), ("w8a8g32", True)):
        packed = shelf("llama", scheme)
        done = pb.export(str(packed.folder), to="compressed-tensors", path=str(tmp_path / scheme), dtype="float32")
        assert any("token by token" in note for note in done.notes) == said


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_8_bit_activations(shelf: Shelf, family: str, tmp_path: Path) -> None:
    """W8A8 as vLLM has it; transformers rounds activations as a reference does, but for those that float32's last bits
    push over an edge. Roundings that had nothing to do with each other would differ by √2 times what one of them does.
    """
    made = shelf(family, "w8")
    shutil.copytree(made.folder, tmp_path / "packed")
    text = (tmp_path / "packed" / "plan.json").read_text()
    layers = {name: replace(layer, scheme=parse("w8a8")) for name, layer in made.plan.layers.items() if "proj" in name}
    plan = replace(made.plan, layers={**made.plan.layers, **layers})
    (tmp_path / "packed" / "plan.json").write_text(plan.to_json())
    assert text != plan.to_json()
    packed = Artifact(tmp_path / "packed")
    done = pb.export(str(packed.folder), to="compressed-tensors", path=str(tmp_path / "ct"), dtype="float32")
    assert done.tensors["int8 with int8 activations"] == 14 and not done.lossy
    found, wanted, exact = loaded(tmp_path / "ct", False), Rounded(packed).logits(IDS), logits(packed)
    assert np.linalg.norm(found - wanted) < 0.5 * np.linalg.norm(wanted - exact)


def test_zero_points_beside_others_are_said_not_to_load(shelf: Shelf, tmp_path: Path) -> None:
    packed = shelf.mixed("llama", {"q_proj": "w8g32"})
    done = pb.export(str(packed.folder), to="compressed-tensors", path=str(tmp_path / "ct"), dtype="float32")
    assert [note for note in done.notes if "which transformers does not load" in note]
    assert_close(logits(open_model(tmp_path / "ct")), packed)


def test_what_vllm_joins_and_is_packed_apart_is_said(shelf: Shelf, tmp_path: Path) -> None:
    alike = {"_proj": "w4g32s"}
    for name, schemes, said in (("alike", alike, False), ("apart", {**alike, "q_proj": "w8g32"}, True)):
        packed = shelf.mixed("llama", schemes)
        done = pb.export(str(packed.folder), to="compressed-tensors", path=str(tmp_path / name))
        assert any("vLLM joins these" in note for note in done.notes) == said


def test_the_layout_that_vllm_reads(shelf: Shelf, tmp_path: Path) -> None:
    """Words, scales and zero points by name, shape and value; unpacked by the format's own package."""
    packed = shelf("llama", "w4g32")
    pb.export(str(packed.folder), to="compressed-tensors", path=str(tmp_path / "ct"))
    file, name = SafetensorsFile(tmp_path / "ct" / "model.safetensors"), "model.layers.0.mlp.down_proj.weight"
    q = packed.qtensor(name)
    assert q.zero is not None and q.shape == (64, 96)
    shapes = {suffix: (file.tensors[name + suffix].dtype, file.tensors[name + suffix].shape)
              for suffix in ("_packed", "_scale", "_zero_point", "_shape")}  # fmt: skip
    assert shapes == {"_packed": ("I32", (64, 12)), "_scale": ("F16", (64, 3)), "_zero_point": ("I32", (8, 3)),
                      "_shape": ("I64", (2,))}  # fmt: skip
    words, zeros = (torch.from_numpy(file.read_raw(name + x)) for x in ("_packed", "_zero_point"))
    codes = unpack_from_int32(words, 4, torch.Size(q.shape)).numpy() + 8
    assert np.array_equal(codes, q.codes)
    assert np.array_equal(unpack_from_int32(zeros, 4, torch.Size((64, 3)), packed_dim=0).numpy() + 8, q.zero)
    assert np.array_equal(file.read_raw(name + "_scale"), q.scale)


def test_a_trellis_only_with_another_rounding(shelf: Shelf, text: Path, tmp_path: Path) -> None:
    packed = shelf.trellis("gemma3", {"mlp": "w2t", "self_attn": "w3t"})
    out = {"to": "compressed-tensors", "path": str(tmp_path / "ct"), "dtype": "float32"}
    with pytest.raises(ParetobitError, match="on w3t exactly: a trellis has no scale"):
        pb.export(str(packed.folder), **out)
    done = pb.export(str(packed.folder), **out, lossy=True, text=str(text))
    assert len(done.lossy) == 14 and done.kl_divergence is not None and 0 < done.kl_divergence < 1
    assert np.array_equal(loaded(tmp_path / "ct", False).argmax(-1), logits(open_model(tmp_path / "ct")).argmax(-1))
