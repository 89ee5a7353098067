"""The safetensors reader and writer against the format's own library."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from paretobit.errors import ParetobitError
from paretobit.tensorfile import SafetensorsFile, TensorWriter, write_arrays

ARRAYS = {
    "b.matrix": np.arange(60, dtype=np.float32).reshape(12, 5),
    "a.half": np.linspace(-2, 2, 7, dtype=np.float16),
    "c.codes": np.arange(33, dtype=np.uint8).reshape(3, 11),
    "d.scalar": np.full((), 2.5, np.float32),
    "e.empty": np.empty((0, 4), np.float32),
    "f.cube": np.arange(24, dtype=np.int64).reshape(2, 3, 4),
}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "x.safetensors", {"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "pt"}
    assert set(file.tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(file.read_raw(name), array)
        np.testing.assert_array_equal(file.map(name), array)
        assert file.read_raw(name).dtype == array.dtype and file.map(name).shape == array.shape


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_arrays(path, ARRAYS)
    found = load_file(path)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


def test_bf16_words_keep_their_dtype(tmp_path: Path) -> None:
    values = np.array([0.0, -1.5, 3.140625, 2.0**-126, -(2.0**100)], np.float32)  # exact in bf16
    path = tmp_path / "x.safetensors"
    write_arrays(path, {"w": (values.view(np.uint32) >> 16).astype(np.uint16)})
    with safe_open(path, "pt") as library:
        assert str(library.get_tensor("w").dtype) == "torch.bfloat16"
        np.testing.assert_array_equal(library.get_tensor("w").float().numpy(), values)
    np.testing.assert_array_equal(SafetensorsFile(path).read_float32("w"), values)


@pytest.mark.parametrize("rows", [slice(0, 12), slice(3, 7), slice(11, 12), slice(5, 5), slice(-4, None), slice(9, 99)])
def test_rows(tmp_path: Path, rows: slice) -> None:
    write_arrays(tmp_path / "x.safetensors", ARRAYS)
    file = SafetensorsFile(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(file.read_raw("b.matrix", rows), ARRAYS["b.matrix"][rows])
    np.testing.assert_array_equal(file.read_float32("b.matrix", rows), ARRAYS["b.matrix"][rows])


def test_steps_and_scalars_cannot_be_sliced(tmp_path: Path) -> None:
    write_arrays(tmp_path / "x.safetensors", ARRAYS)
    file = SafetensorsFile(tmp_path / "x.safetensors")
    for name, rows in (("b.matrix", slice(0, 4, 2)), ("d.scalar", slice(0, 1))):
        with pytest.raises(ValueError, match=name):
            file.read_raw(name, rows)


def test_maps_are_read_only(tmp_path: Path) -> None:
    write_arrays(tmp_path / "x.safetensors", ARRAYS)
    with pytest.raises(ValueError, match="read-only"):
        SafetensorsFile(tmp_path / "x.safetensors").map("b.matrix")[0, 0] = 1


def test_large_tensors_are_converted_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paretobit.tensorfile.CHUNK", 64)  # three rows of five float32 at a time
    array = np.arange(500, dtype=np.float32).reshape(100, 5)
    write_arrays(tmp_path / "x.safetensors", {"w": array})
    np.testing.assert_array_equal(
        SafetensorsFile(tmp_path / "x.safetensors").read_float32("w", slice(7, 93)), array[7:93]
    )


def test_integers_are_no_weights(tmp_path: Path) -> None:
    write_arrays(tmp_path / "x.safetensors", ARRAYS)
    with pytest.raises(ParetobitError, match=r"c\.codes is stored as U8"):
        SafetensorsFile(tmp_path / "x.safetensors").read_float32("c.codes")


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    digests = set()
    for i, names in enumerate((list(ARRAYS), list(ARRAYS)[::-1])):
        write_arrays(tmp_path / str(i), {name: ARRAYS[name] for name in names})
        digests.add(hashlib.sha256((tmp_path / str(i)).read_bytes()).digest())
    assert len(digests) == 1


def test_the_data_starts_on_a_cache_line_and_values_lie_aligned(tmp_path: Path) -> None:
    write_arrays(tmp_path / "x.safetensors", ARRAYS)
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.data_start % 64 == 0
    for name, info in file.tensors.items():
        assert info.start % ARRAYS[name].itemsize == 0, name


def test_a_tensor_may_come_in_pieces(tmp_path: Path) -> None:
    w = ARRAYS["b.matrix"]
    with TensorWriter(tmp_path / "x", {"w": ("F32", w.shape), "v": ("F32", (2,))}, {"b": "2", "a": "1"}) as writer:
        for at in range(0, 12, 5):
            writer.write("w", w[at : at + 5])
        writer.write("v", np.zeros(2, np.float32))
    file = SafetensorsFile(tmp_path / "x")
    np.testing.assert_array_equal(file.read_raw("w"), w)
    assert list(file.tensors) == ["w", "v"] and list(file.metadata) == ["a", "b"]
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("wrong", ["order", "dtype", "too much", "too little", "unknown", "nothing"])
def test_an_unfinished_file_leaves_nothing(tmp_path: Path, wrong: str) -> None:
    one = np.zeros(4, np.float32)
    with pytest.raises(ValueError), TensorWriter(tmp_path / "x", {"a": ("F32", (4,)), "b": ("F32", (4,))}) as writer:
        if wrong == "order":
            writer.write("b", one)
        if wrong == "dtype":
            writer.write("a", one.astype(np.float16))
        if wrong == "too much":
            writer.write("a", np.zeros(5, np.float32))
        if wrong == "too little":
            writer.write("a", one)
            writer.write("b", one[:3])
        if wrong == "unknown":
            writer.write("c", one)
    assert os.listdir(tmp_path) == []


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    write_arrays(tmp_path / "x", {"w": np.ones(3, np.float32)})
    with pytest.raises(KeyboardInterrupt), TensorWriter(tmp_path / "x", {"w": ("F32", (3,))}) as writer:
        writer.write("w", np.zeros(2, np.float32))
        raise KeyboardInterrupt
    np.testing.assert_array_equal(SafetensorsFile(tmp_path / "x").read_raw("w"), np.ones(3))
    assert os.listdir(tmp_path) == ["x"]


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ParetobitError, match="the disk is full"):
        write_arrays(tmp_path / "x", ARRAYS)
    assert os.listdir(tmp_path) == []
