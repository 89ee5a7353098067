"""The packed model: a folder with the plan, the packed tensors, the tokenizer and the proof. See docs/FORMAT.md."""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from paretobit import native, packing
from paretobit.arch import Arch, Tap, resolve
from paretobit.arch.spec import EMBED, HEAD
from paretobit.bands import joined, under
from paretobit.checkpoint.base import Checkpoint
from paretobit.errors import ParetobitError
from paretobit.planfile import Plan, check_covers, cut, read_plan, rotation, static, taps
from paretobit.qtensor import QTensor
from paretobit.rotation import Rotation
from paretobit.scheme import FLOATS, Grid, Scheme, parse
from paretobit.sizes import parts
from paretobit.tensorfile import DTYPES, SafetensorsFile, TensorWriter, header, row_range
from paretobit.trellis import RING
from paretobit.work import DAMAGED, MANIFEST, read_bytes, read_json, write_atomically

FORMAT = 2
TENSORS, PLAN, CONFIG = "model.safetensors", "plan.json", "config.json"
RESULTS, DETAILS, CARD, TRAINING = "results.jsonl", "details.json", "README.md", "training.jsonl"
NEEDED = (MANIFEST, TENSORS, PLAN, CONFIG)
EXACT = parse("fp32")
RANGE = ".range"  # behind a tap's name: the largest magnitude of a static activation


class Artifact(Checkpoint):
    """A packed model, opened lazily: nothing is read before it is asked for.

    Raises ParetobitError on a folder that is not one, on files that contradict each other, and on codes or sizes that
    the format does not allow.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.name = self.folder.name
        for file in NEEDED:
            if not (self.folder / file).is_file():
                hint = "name what paretobit quantize wrote" if file == MANIFEST else "quantize the model again"
                raise ParetobitError(f"{self.folder}: {file} is missing", hint=hint)
        self.manifest = read_json(self.folder / MANIFEST)
        if self.manifest.get("kind") != "model" or self.manifest.get("format") != FORMAT:
            found = [reprlib.repr(self.manifest.get(name)) for name in ("format", "kind")]
            raise ParetobitError(
                f"{self.folder}: format {found[0]} of kind {found[1]}, "
                f"this version reads format {FORMAT} of kind 'model'",
                hint="quantize the model again, or install the version of paretobit that wrote it",
            )
        check_manifest(self.manifest, str(self.folder / MANIFEST))
        self.config = read_json(self.folder / CONFIG)
        self.plan: Plan = read_plan(read_bytes(self.folder / PLAN), str(self.folder / PLAN))
        self.arch: Arch = cut(resolve(self.config), self.plan)
        check_covers(self.plan, self.arch, str(self.folder / PLAN))
        if self.plan.model != self.manifest["model"]["hash"]:
            raise ParetobitError(f"{self.folder}: {PLAN} and {MANIFEST} speak of different models", hint=DAMAGED)
        self.file = SafetensorsFile(self.folder / TENSORS)
        self.schemes = self._schemes()

    def _schemes(self) -> dict[str, Scheme]:
        """Scheme of every tensor; raises where the stored arrays are not those that the plan calls for."""
        schemes: dict[str, Scheme] = {}
        expected = set()
        for name, shape in self._shapes.items():
            layer = self.plan.layers.get(name)
            scheme = layer.scheme if layer else self._float_scheme(name)
            for part in parts(scheme, shape):
                key = name + part.suffix
                found = self.file.tensors.get(key)
                if found is None or (found.dtype, found.shape) != (part.dtype, part.shape):
                    have = f"{found.dtype} {found.shape}" if found else "nothing"
                    raise ParetobitError(
                        f"{self.file.path}: {key} holds {have}, the plan calls for {part.dtype} {part.shape}",
                        hint="the file is damaged: quantize the model again",
                    )
                expected.add(key)
            schemes[name] = scheme
        for tap in static(self.plan, self.arch):
            found = self.file.tensors.get(tap.name + RANGE)
            if found is None or (found.dtype, found.shape) != ("F32", (1,)):
                raise ParetobitError(
                    f"{self.file.path}: {tap.name + RANGE} is not one number, and the plan calls for a static scale",
                    hint="the file is damaged: quantize the model again",
                )
            expected.add(tap.name + RANGE)
        extra = sorted(set(self.file.tensors) - expected)
        if extra:
            raise ParetobitError(f"{self.file.path}: unknown tensor {extra[0]}", hint="quantize the model again")
        return schemes

    def _float_scheme(self, name: str) -> Scheme:
        found = self.file.tensors.get(name)
        return parse("bf16") if found is not None and found.dtype == "BF16" else EXACT

    def names(self) -> list[str]:
        return list(self.schemes)

    def qtensor(self, name: str, rows: slice = slice(None)) -> QTensor:
        """`rows` of one quantized tensor as it is stored; nothing but the tiles that hold them is read.

        A trellis's rows must start and end where rings (64 rows) do, or at the end.
        """
        shape = self.shape(name)
        found = stored_rows(self.file.map, name, self.schemes[name].weight, (shape[0], shape[1]), rows)
        if not np.isfinite(found.scale).all():
            raise ParetobitError(f"{self.file.path}: {name}.scale is not finite", hint="quantize the model again")
        return found

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """float32, dequantized, in the model's basis; embedding and head by their own names, too, where they lie in
        bands."""
        if self.arch.cuts and name in (EMBED, HEAD):
            return joined(self.arch, name, rows, self.read)
        kind = self.schemes[name].weight.kind
        if kind in FLOATS:
            found = self.file.read_float32(name, rows)
        elif kind == "trellis" and rows is not None:
            count, _ = self.shape(name)
            first, end = row_range(name, self.shape(name), rows)
            start = first // RING * RING
            whole = slice(start, min(count, -(-end // RING) * RING))
            found = native.dequant(self.qtensor(name, whole))[first - start : end - start]
        else:
            found = native.dequant(self.qtensor(name, slice(None) if rows is None else rows))
        turned = self.rotation(name)
        return found if turned is None else native.unrotate_inputs(turned, found)

    def rotation(self, name: str) -> Rotation | None:
        """Of the basis in which a tensor is stored: its row w is `forward` of the model's. None: the model's own."""
        tap = self._tap_of.get(name)
        return None if tap is None else rotation(self.plan, tap.name, tap.width)

    @cached_property
    def _tap_of(self) -> dict[str, Tap]:
        return {name: tap for tap in taps(self.arch) for name in tap.consumers}

    @cached_property
    def ranges(self) -> dict[str, float]:
        """Tap name -> the largest magnitude that its activation has, for those with one scale for all tokens."""
        found = {tap.name: float(self.file.read_float32(tap.name + RANGE)[0]) for tap in static(self.plan, self.arch)}
        for name, value in found.items():
            if not 0 <= value < math.inf:
                raise ParetobitError(
                    f"{self.file.path}: {name}{RANGE} is {value}", hint="the file is damaged: quantize the model again"
                )
        return found

    def nbytes(self, name: str) -> int:
        """Bytes that one tensor takes in the file, scales and zero points included."""
        return sum(part.nbytes for part in parts(self.schemes[name], self.shape(name)))

    @cached_property
    def hash(self) -> str:
        digest = hashlib.sha256()
        for file in (CONFIG, PLAN, TENSORS):
            with open(self.folder / file, "rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def companions(self) -> dict[str, bytes]:
        ours = {*NEEDED, RESULTS, DETAILS, CARD, TRAINING}
        return {
            file.name: file.read_bytes()
            for file in sorted(self.folder.iterdir())
            if file.is_file() and file.name not in ours
        }

    @property
    def size_bytes(self) -> int:
        """Bytes on disk of every file that computing logits needs."""
        return sum((self.folder / file).stat().st_size for file in NEEDED)

    @property
    def other_bytes(self) -> int:
        files = (file for file in self.folder.iterdir() if file.is_file())
        return sum(file.stat().st_size for file in files) - self.size_bytes

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.size_bytes / self.parameters


def check_manifest(manifest: Mapping[str, object], source: str) -> None:
    """Raise ParetobitError naming `source` and the field unless inspect and the model card can print every fact."""
    facts: dict[str, dict[str, type]] = {
        "model": {"name": str, "hash": str, "bytes_16bit": int},
        "calibration": {"source": str},
        "fingerprint": {"inputs": str, "version": str},
    }
    for name, fields in facts.items():
        _check_object(manifest.get(name), fields, f"{source}: {name}")
    model, calibration = manifest["model"], manifest["calibration"]
    assert isinstance(model, dict) and isinstance(calibration, dict)
    tokens = calibration.get("tokens", 1)
    if model["bytes_16bit"] < 1 or type(tokens) is not int or tokens < 1:
        raise ParetobitError(f"{source}: bytes_16bit or tokens is not a count", hint=DAMAGED)
    fallbacks = manifest.get("fallbacks")
    if not isinstance(fallbacks, list):
        raise ParetobitError(f"{source}: fallbacks is not a list", hint=DAMAGED)
    for entry in fallbacks:
        _check_object(entry, dict.fromkeys(("name", "asked", "stored", "why"), str), f"{source}: fallbacks")


def _check_object(value: object, fields: Mapping[str, type], what: str) -> None:
    if not isinstance(value, dict):
        raise ParetobitError(f"{what} is not an object", hint=DAMAGED)
    for name, kind in fields.items():
        if type(value.get(name)) is not kind or (kind is str and not value[name].isprintable()):
            raise ParetobitError(f"{what}: {name} is not a {kind.__name__}", hint=DAMAGED)


def stored(q: QTensor) -> dict[str, np.ndarray]:
    """The arrays of a quantized tensor as the file holds them, by suffix."""
    tile = packing.Layout.of(q.grid, q.shape).tile
    arrays = {".codes": native.pack(q.codes, q.grid), ".scale": packing.pack_scale(q.scale, tile)}
    if q.zero is not None:
        arrays[".zero"] = packing.pack_zero(q.zero, q.grid.levels)
    return arrays


def load_stored(read: Callable[[str], np.ndarray], name: str, grid: Grid, shape: tuple[int, int]) -> QTensor:
    """The inverse of `stored`: the tensor of `shape` (out, in) from its arrays, `read(name + suffix)`."""
    groups, zero = (shape[0], grid.groups(shape[1])), None
    if grid.zero == "stored":
        zero = packing.unpack_zero(read(name + ".zero"), grid.levels, groups)
    scale = packing.unpack_scale(read(name + ".scale"), groups, packing.Layout.of(grid, shape).tile)
    return QTensor(native.unpack(read(name + ".codes"), grid, shape), scale, zero, grid)


def stored_rows(
    read: Callable[[str], np.ndarray], name: str, grid: Grid, shape: tuple[int, int], rows: slice
) -> QTensor:
    """`rows` of the tensor of `shape` (out, in) from its mapped arrays: nothing but the tiles that hold them is read.

    A trellis's rows must start and end where rings (64 rows) do, or at the end.
    """
    count, columns = shape
    tile = packing.Layout.of(grid, shape).tile
    first, end = row_range(name, shape, rows)
    if grid.kind == "trellis" and (first % tile or (end % tile and end != count)):
        raise ParetobitError(f"{name}: rows {first}…{end} cut rings of {tile} rows", hint="take whole rings")
    tiles = slice(first // tile, -(-end // tile))
    start, held = first - tile * tiles.start, min(count, tile * tiles.stop) - tile * tiles.start
    found = load_stored(lambda array: read(array)[tiles], name, grid, (held, columns))
    return found.rows(slice(start, start + end - first))


def exact_bf16(values: np.ndarray) -> np.ndarray | None:
    """uint16 bf16 words if every value survives the trip, else None."""
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return None if (words & 0xFFFF).any() else (words >> 16).astype(np.uint16)


def float_arrays(values: np.ndarray, scheme: Scheme | None) -> tuple[str, np.ndarray]:
    """(dtype, array) of a tensor that is not quantized: as `scheme` says; without one, bf16 where exact, else fp32."""
    kind = scheme.weight.kind if scheme else ""
    largest = {"fp16": 65504.0, "bf16": 3.3895313892515355e38}.get(kind)
    if largest is not None and values.size and np.abs(values).max() > largest:
        raise ParetobitError(
            f"weights of {np.abs(values).max():g} do not fit {kind}, which ends at {largest:g}",
            hint="store them as fp32",
        )
    if kind == "fp16":
        return "F16", values.astype(np.float16)
    if kind == "bf16":
        words = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return "BF16", ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype(np.uint16)
    words16 = exact_bf16(values) if kind == "" else None
    return ("F32", values.astype(np.float32)) if words16 is None else ("BF16", words16)


def _rank(entry: tuple[str, tuple[str, tuple[int, ...]]]) -> tuple[int, int, str]:
    """The order in the file: arrays of whole cache lines first, so that none of them straddles one; floats aligned."""
    name, (dtype, _) = entry
    suffixes = (".codes", ".scale", ".zero")
    kind = next((i for i, suffix in enumerate(suffixes) if name.endswith(suffix)), len(suffixes))
    return kind, -DTYPES[dtype].itemsize, name


def file_order(entries: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """`entries`, name -> (dtype, shape), in the order in which the file of tensors holds them."""
    return dict(sorted(entries.items(), key=_rank))


METADATA = {"format": "paretobit", "version": str(FORMAT)}


def assemble(folder: Path, source: Checkpoint, plan: Plan, manifest: Mapping[str, object], units: list[Path]) -> None:
    """Write a complete artifact into `folder` from the finished `units` (safetensors files of packed tensors)."""
    files = [SafetensorsFile(unit) for unit in units]
    where = {name: file for file in files for name in file.tensors}
    found = {name: (where[name].tensors[name].dtype, where[name].tensors[name].shape) for name in where}
    entries = file_order(found)
    with TensorWriter(folder / TENSORS, entries, METADATA) as writer:
        for name in entries:
            writer.write(name, where[name].map(name))
    for name, content in documents(source, plan, manifest).items():
        write_atomically(folder / name, content)
    for name, content in sorted(source.companions.items()):
        write_atomically(folder / name, content)


def describe(
    source: Checkpoint, fingerprint: Mapping[str, object], calibration: Mapping[str, object], fallbacks: list
) -> dict[str, object]:
    """The manifest, paretobit.json, of a model packed from `source`."""
    about = {"name": source.name, "hash": source.hash, "bytes_16bit": source.bits16}
    facts = {"kind": "model", "format": FORMAT, "fingerprint": dict(fingerprint), "model": about}
    return {**facts, "calibration": dict(calibration), "fallbacks": fallbacks}


def documents(source: Checkpoint, plan: Plan, manifest: Mapping[str, object]) -> dict[str, bytes]:
    """The artifact's files beside its tensors that count as its size."""
    config, facts = (json.dumps(x, indent=1, sort_keys=True) + "\n" for x in (source.config, manifest))
    return {PLAN: plan.to_json().encode(), CONFIG: config.encode(), MANIFEST: facts.encode()}


def packed_size(source: Checkpoint, plan: Plan, manifest: Mapping[str, object], exact: Callable[[str], bool]) -> int:
    """`size_bytes` of the artifact that `assemble` would write. exact: whether a tensor without a plan fits bf16."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    source = under(source, plan)
    for name in source.names():
        layer = plan.layers.get(name)
        scheme = layer.scheme if layer else parse("bf16") if exact(name) else EXACT
        found |= {name + part.suffix: (part.dtype, part.shape) for part in parts(scheme, source.shape(name))}
    entries = file_order(found)
    tensors = sum(math.prod(shape) * DTYPES[dtype].itemsize for dtype, shape in entries.values())
    beside = sum(len(content) for content in documents(source, plan, manifest).values())
    return len(header(entries, METADATA)) + tensors + beside
