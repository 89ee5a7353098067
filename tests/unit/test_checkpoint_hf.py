"""The Hugging Face folder: every way to store the same weights gives the same numbers; everything else is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from checkpoints import STORED, tiny_config, tiny_llama_folder, tiny_weights

from paretobit.arch.spec import EMBED, HEAD
from paretobit.checkpoint import open_model
from paretobit.checkpoint.hf import HfCheckpoint, canonical
from paretobit.errors import ParetobitError
from paretobit.tensorfile import SafetensorsFile, write_arrays

INDEX = "model.safetensors.index.json"
Q0 = "model.layers.0.self_attn.q_proj.weight"


def assert_holds(checkpoint: HfCheckpoint, weights: dict[str, np.ndarray]) -> None:
    assert checkpoint.names() == list(weights)
    for name, expected in weights.items():
        found = checkpoint.read(name)
        assert found.dtype == np.float32 and found.flags.c_contiguous and checkpoint.shape(name) == expected.shape
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", STORED)
def test_every_storage_gives_the_same_values(tmp_path: Path, dtype: str, tied: bool, shards: int) -> None:
    checkpoint = open_model(tiny_llama_folder(tmp_path / "m", dtype, tied, shards))
    assert_holds(checkpoint, tiny_weights(tiny_config(tied=tied)))
    assert checkpoint.name == "m"
    assert (HEAD in checkpoint.names()) is not tied


@pytest.mark.parametrize("rows", [slice(0, 64), slice(5, 9), slice(63, 64), slice(7, 7), None])
def test_rows(tmp_path: Path, rows: slice | None) -> None:
    checkpoint = open_model(tiny_llama_folder(tmp_path, "bfloat16"))
    expected = tiny_weights(tiny_config())[Q0]
    np.testing.assert_array_equal(checkpoint.read(Q0, rows), expected if rows is None else expected[rows])


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])
def test_every_family(tmp_path: Path, model_type: str) -> None:
    checkpoint = open_model(tiny_llama_folder(tmp_path, model_type=model_type))
    assert_holds(checkpoint, tiny_weights(tiny_config(model_type)))


def test_bits16_counts_a_tied_matrix_once(tmp_path: Path) -> None:
    # embedding 300·64, two blocks of q 64·64, k and v 32·64, o 64·64, gate, up, down 96·64 and two norms, final norm
    block = 64 * 64 * 2 + 32 * 64 * 2 + 96 * 64 * 3 + 2 * 64
    assert open_model(tiny_llama_folder(tmp_path / "a")).bits16 == 2 * (300 * 64 + 2 * block + 64)
    assert open_model(tiny_llama_folder(tmp_path / "b", tied=False)).bits16 == 2 * (2 * 300 * 64 + 2 * block + 64)


def test_hash_is_of_the_tensors_alone(tmp_path: Path) -> None:
    folder = tiny_llama_folder(tmp_path / "a")
    before = open_model(folder).hash
    assert before == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "tokenizer.json").write_text("{}")
    assert open_model(folder).hash == before
    sharded = tiny_llama_folder(tmp_path / "b", shards=2)
    joined = b"".join((sharded / f"model-0000{i}-of-00002.safetensors").read_bytes() for i in (1, 2))
    assert open_model(sharded).hash == hashlib.sha256(joined).hexdigest()


def test_companions(tmp_path: Path) -> None:
    folder = tiny_llama_folder(tmp_path)
    (folder / "secret.txt").write_text("no companion")
    names = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}
    found = open_model(folder).companions
    assert set(found) == names
    assert all(found[name] == (folder / name).read_bytes() for name in names)


def test_a_duplicated_head_of_a_tied_model_is_dropped(tmp_path: Path) -> None:
    folder = tiny_llama_folder(tmp_path)
    weights = tiny_weights(tiny_config())
    write_arrays(folder / "model.safetensors", {**weights, HEAD: weights[EMBED]})
    assert_holds(open_model(folder), weights)


@pytest.mark.parametrize(
    ("stored", "ours"),
    [
        ("model.layers.0.x", "model.layers.0.x"),
        ("model.language_model.layers.0.x", "model.layers.0.x"),
        ("language_model.model.layers.0.x", "model.layers.0.x"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.text_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("layers.11.x", "model.layers.11.x"),
        ("norm.weight", "model.norm.weight"),
        ("vision_tower.layers.0.x", "vision_tower.layers.0.x"),
    ],
)
def test_canonical_names(stored: str, ours: str) -> None:
    assert canonical(stored) == ours


def test_only_the_text_model_of_a_multimodal_one_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_llama_folder(tmp_path)
    config = tiny_config("gemma3_text")
    weights = tiny_weights(config)
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    stored = {name.replace("model.", "model.language_model.", 1): value for name, value in weights.items()}
    write_arrays(folder / "model.safetensors", {**stored, "vision_tower.w": np.ones(3, np.float32)})
    assert_holds(open_model(folder), weights)
    assert "1 tensors of vision_tower are left out" in capsys.readouterr().err


def rewrite(folder: Path, **changes: np.ndarray | None) -> None:
    """Store the tiny weights again with some replaced, added, or (None) left out."""
    weights = {**tiny_weights(tiny_config()), **{k.replace("__", "."): v for k, v in changes.items()}}
    write_arrays(folder / "model.safetensors", {name: value for name, value in weights.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__norm__weight": None}, r"tensor model\.norm\.weight is missing"),
        (
            {"model__layers__2__self_attn__q_proj__weight": np.ones(1, np.float32)},
            r"model\.layers\.2\..* is not part of",
        ),
        ({"model__layers__0__mlp__up_proj__qweight": np.ones(1, np.int32)}, "qweight is not part of a llama"),
        ({"model__norm__weight": np.ones(65, np.float32)}, r"model\.norm\.weight has shape \(65,\).*\(64,\)"),
        ({"norm__weight": np.ones(64, np.float32)}, r"model\.norm\.weight stands in"),
    ],
)
def test_tensors_must_fit_the_config(tmp_path: Path, changes: dict, message: str) -> None:
    folder = tiny_llama_folder(tmp_path)
    rewrite(folder, **changes)
    with pytest.raises(ParetobitError, match=message):
        open_model(folder)


def test_a_missing_head_hints_at_tying(tmp_path: Path) -> None:
    folder = tiny_llama_folder(tmp_path)
    (folder / "config.json").write_text(json.dumps(tiny_config(tied=False)))
    with pytest.raises(ParetobitError, match=r"lm_head\.weight is missing; hint: .*tie_word_embeddings"):
        open_model(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_their_tensor(tmp_path: Path, bad: float) -> None:
    folder = tiny_llama_folder(tmp_path)
    weights = tiny_weights(tiny_config())
    weights[Q0][17, 3] = bad
    write_arrays(folder / "model.safetensors", weights)
    checkpoint = open_model(folder)
    with pytest.raises(ParetobitError, match=f"{Q0} holds values that are not finite"):
        checkpoint.read(Q0)
    assert np.isfinite(checkpoint.read(Q0, slice(0, 17))).all()  # other rows stay readable


class Bomb:
    def __reduce__(self) -> tuple:
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickles_are_never_loaded(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny_llama_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ParetobitError, match=rf"{name}, a pickle.*safe_serialization"):
        open_model(folder)
    with pytest.raises(ParetobitError, match="pickle"):
        open_model(folder / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "x.bin", 7, None, ["a"], "a\0.safetensors"],
)
def test_an_index_cannot_leave_the_folder(tmp_path: Path, shard: object) -> None:
    folder = tiny_llama_folder(tmp_path / "m", shards=2)
    write_arrays(tmp_path / "secret.safetensors", {"w": np.ones(1, np.float32)})
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][EMBED] = shard
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ParetobitError, match="no safetensors file of this folder"):
        open_model(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tiny_llama_folder(tmp_path, shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ParetobitError, match=r"shard model-00002-of-00002\.safetensors is missing"):
        open_model(folder)


def test_several_files_need_an_index(tmp_path: Path) -> None:
    folder = tiny_llama_folder(tmp_path, shards=2)
    (folder / INDEX).unlink()
    with pytest.raises(ParetobitError, match="2 safetensors files but no model"):
        open_model(folder)


def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ParetobitError, match="not a regular file"):
        SafetensorsFile(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder/at/all", "there is no model at"),
        ("./nothing", "there is no model at"),
        ("demo:nothing", "there is no demo model 'nothing'; hint: choose from demo:smollm2, demo:gemma3"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(ParetobitError, match=message):
        open_model(name)


def test_paths_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.txt").write_text("hello")
    folder = tiny_llama_folder(tmp_path / "m")
    for path, message in (
        (tmp_path / "empty", "config.json is missing"),
        (tmp_path / "x.txt", "not a GGUF file"),
        (folder / "model.safetensors", "holds tensors without a config.json"),
    ):
        with pytest.raises(ParetobitError, match=message):
            open_model(path)
