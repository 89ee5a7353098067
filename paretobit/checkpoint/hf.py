"""A Hugging Face folder: config.json, safetensors (one file, or shards with an index), tokenizer files."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import numpy as np

from paretobit.arch import resolve
from paretobit.arch.spec import EMBED, HEAD, Arch
from paretobit.checkpoint.base import COMPANIONS, Checkpoint, hash_files
from paretobit.errors import ParetobitError
from paretobit.progress import say
from paretobit.qtensor import QTensor
from paretobit.tensorfile import RegularFile, SafetensorsFile
from paretobit.work import read_json

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MAX_COMPANION = 256 << 20  # bytes; the largest published tokenizer.json is about 35 MB

# Where a multimodal checkpoint keeps its text model, longest first: (stored prefix, ours).
TEXT_PREFIXES = (
    ("model.language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("model.text_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
BARE = re.compile(r"(layers\.\d+\.|embed_tokens\.|norm\.weight$)")  # saved from the model without its head
IGNORED = re.compile(r"\.rotary_emb\.inv_freq$|\.masked_bias$")  # derived buffers that old versions saved


class HfCheckpoint(Checkpoint):
    """A folder with config.json and safetensors. Raises ParetobitError on anything missing, extra or misshapen."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.name = self.folder.resolve().name
        if not (self.folder / CONFIG).is_file():
            raise ParetobitError(f"{self.folder}: {CONFIG} is missing", hint="name a model folder or a .gguf file")
        self.config = read_json(self.folder / CONFIG)
        self.arch: Arch = resolve(self.config)
        self._files = self._open()
        self.packed: dict[str, dict[str, tuple[SafetensorsFile, str]]] = {}
        self._where = self._map_names()
        self._check_shapes()

    def _open(self) -> list[SafetensorsFile]:
        if (self.folder / SINGLE).exists():
            return [SafetensorsFile(self.folder / SINGLE)]
        if (self.folder / INDEX).exists():
            return [SafetensorsFile(path) for path in self._shards()]
        single = sorted(self.folder.glob("*.safetensors"))
        if len(single) == 1:
            return [SafetensorsFile(single[0])]
        if single:
            raise ParetobitError(
                f"{self.folder}: {len(single)} safetensors files but no {INDEX}", hint="fetch the index file too"
            )
        pickles = sorted(path.name for pattern in PICKLES for path in self.folder.glob(pattern))
        if pickles:
            raise ParetobitError(
                f"{self.folder}: the weights are in {pickles[0]}, a pickle, which can run code when it is read",
                hint="load it where that does no harm and save it with save_pretrained(safe_serialization=True)",
            )
        raise ParetobitError(f"{self.folder}: no safetensors file", hint="fetch the weights too")

    def _shards(self) -> list[Path]:
        path = self.folder / INDEX
        if not path.is_file():
            raise ParetobitError(f"{path} is not a regular file", hint="fetch the index file again")
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ParetobitError(f"{path}: no weight_map", hint="fetch the index file again")
        shards = set()
        for tensor, shard in weight_map.items():
            plain = isinstance(shard, str) and shard.endswith(".safetensors") and Path(shard).name == shard
            if not plain or "\0" in shard:
                raise ParetobitError(
                    f"{path}: {tensor[:100]} lies in {str(shard)[:100]!r}, no safetensors file of this folder",
                    hint="do not use this model: a well-formed index names files beside it",
                )
            shards.add(shard)
        for shard in sorted(shards):
            if not (self.folder / shard).is_file():
                raise ParetobitError(f"{self.folder}: shard {shard} is missing", hint="fetch it too")
        return [self.folder / shard for shard in sorted(shards)]

    def _map_names(self) -> dict[str, tuple[SafetensorsFile, str]]:
        """Our name -> (file, stored name). Tensors of other modalities are left out, said in one line."""
        stored = [(file, name) for file in self._files for name in file.tensors]
        multimodal = any(name.startswith(prefix) for _, name in stored for prefix, _ in TEXT_PREFIXES)
        where: dict[str, tuple[SafetensorsFile, str]] = {}
        others: list[str] = []
        for file, name in stored:
            ours = canonical(name)
            if IGNORED.search(name) or (self.arch.tied and ours == HEAD and EMBED in self._shapes):
                continue
            if self._is_part(file, name):
                continue
            if ours not in self._shapes:
                others.append(name)
            elif ours in where:
                raise ParetobitError(
                    f"{self.folder}: {ours} stands in {where[ours][0].path.name} and in {file.path.name}",
                    hint="fetch the model again: every tensor belongs in one file",
                )
            else:
                where[ours] = (file, name)
        unknown = [name for name in others if not multimodal or canonical(name) != name]
        if unknown:
            raise ParetobitError(
                f"{self.folder}: tensor {unknown[0]} is not part of a {self.arch.model_type} of {self.arch.layers} "
                f"layers (as are {len(unknown) - 1} more)",
                hint="check that config.json belongs to these weights and that they are not quantized already",
            )
        if others:
            parts = sorted({name.split(".")[0] for name in others})
            say(f"{self.name}: only the text model is read; {len(others)} tensors of {', '.join(parts)} are left out")
        return where

    def _is_part(self, file: SafetensorsFile, stored: str) -> bool:
        """Whether a tensor is one of the arrays in `packed` that make up another."""
        return False

    def qtensor(self, name: str) -> QTensor:
        """One of the matrices in `packed`, as its codes are."""
        raise KeyError(name)

    def _check_shapes(self) -> None:
        shapes = {name: shape for name, shape in self._shapes.items() if name not in self.packed}
        missing = [name for name in shapes if name not in self._where]
        if missing:
            tied = missing == [HEAD]
            raise ParetobitError(
                f"{self.folder}: tensor {missing[0]} is missing"
                + (f" ({len(missing)} in all)" if len(missing) > 1 else ""),
                hint='if the head is the embedding, say "tie_word_embeddings": true in config.json'
                if tied
                else "fetch the model again, and check that config.json belongs to these weights",
            )
        for name, shape in shapes.items():
            file, stored = self._where[name]
            if file.tensors[stored].shape != shape:
                raise ParetobitError(
                    f"{file.path}: {stored} has shape {file.tensors[stored].shape}, config.json calls for {shape}",
                    hint="config.json does not belong to these weights",
                )

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        file, stored = self._where[name]
        return file.read_float32(stored, rows)

    @cached_property
    def hash(self) -> str:
        return hash_files(file.path for file in self._files)

    @cached_property
    def companions(self) -> dict[str, bytes]:
        found = {}
        for name in COMPANIONS:
            if (self.folder / name).is_file():
                file = RegularFile(self.folder / name)
                if file.size > MAX_COMPANION:
                    raise ParetobitError(f"{file.path} has {file.size} bytes", hint="remove it, or fetch it again")
                found[name] = file.read(file.size, 0)
        return found


def canonical(name: str) -> str:
    """Our name of a stored tensor: prefixes of multimodal and headless checkpoints become plain ones."""
    for prefix, ours in TEXT_PREFIXES:
        if name.startswith(prefix):
            return ours + name[len(prefix) :]
    return f"model.{name}" if BARE.match(name) else name
