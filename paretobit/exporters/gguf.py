"""A GGUF file of standard types, for llama.cpp: every matrix in the smallest type that holds it to the bit.

Names, order of rows and metadata are those of llama.cpp's own converter (convert_hf_to_gguf.py): the inverse of
checkpoint.gguf. What llama.cpp would compute otherwise than the model is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paretobit.arch.resolve import known
from paretobit.arch.rope import frequencies
from paretobit.arch.spec import Rope
from paretobit.artifact import Artifact
from paretobit.checkpoint.base import Checkpoint
from paretobit.checkpoint.gguf_config import GEMMA3_27B_LAYERS, ROPE_FREQS, TOP_NAMES, block_names
from paretobit.errors import ParetobitError
from paretobit.exporters import Request, Stored
from paretobit.exporters.gguf_types import encoded, smallest
from paretobit.exporters.gguf_vocab import vocabulary
from paretobit.exporters.steps import nearest, read, row_pieces, unfit
from paretobit.scheme import FLOATS, parse

DTYPES = ("float32",)
SUFFIX = ".gguf"
FLOAT_TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
LOSSY = {4: "Q4_0", 5: "Q5_0", 8: "Q8_0"}  # by bits, what a matrix is rounded to that no type holds
SCHEMES = {"Q4_0": "w4g32s", "Q5_0": "w5g32", "Q8_0": "w8g32"}
HINT = "export to hf, or to another format"


def holds(packed: Artifact, request: Request) -> dict[str, Stored]:
    """Vectors as F32, floats as they are, matrices in the smallest type. Raises on what llama.cpp cannot compute."""
    gguf_or_hint()
    metadata(packed)
    return {name: _stored(packed, name, request) for name in packed.names()}


def _stored(packed: Artifact, name: str, request: Request) -> Stored:
    shape, grid = packed.shape(name), packed.schemes[name].weight
    if len(shape) == 1:
        return Stored("F32")
    if grid.kind in FLOATS:
        return Stored(FLOAT_TYPES[grid.kind])
    why = unfit(packed, name)
    if not why:
        kind = smallest(grid, shape[1])
        if kind is not None:
            return Stored(kind.name)
        what = "rows of" if shape[1] % 32 else "a scale for"
        why = f"{what} {shape[1] if shape[1] % 32 else grid.group} columns, where its types need multiples of 32"
    if shape[1] % 32:
        return Stored("F16", why)
    return Stored(LOSSY[nearest(grid, request.bits, tuple(LOSSY))], why)


def write(packed: Artifact, path: Path, stored: Mapping[str, Stored], request: Request) -> None:
    import gguf

    family = known()[packed.arch.model_type]
    facts = metadata(packed) | vocabulary(packed)
    writer = gguf.GGUFWriter(str(path), family.gguf)
    facts["general.file_type"] = _file_type(Counter(x.kind for x in stored.values()))
    for key, value in facts.items():
        add(writer, key, value)
    divisors = rope_divisors(packed)
    if divisors is not None:
        writer.add_tensor_info(ROPE_FREQS, divisors.shape, divisors.dtype, divisors.nbytes)
    for name, how in stored.items():
        kind = gguf.GGMLQuantizationType[how.kind]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = packed.shape(name)
        nbytes = int(np.prod(shape)) // block * size
        writer.add_tensor_info(stored_name(packed, name), shape, np.dtype(np.float32), nbytes, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if divisors is not None:
            writer.write_tensor_data(divisors)
        for name, how in stored.items():
            writer.write_tensor_data(_raw(packed, name, how).view(_Bytes))
    finally:
        writer.close()


class _Bytes(np.ndarray):
    """An array that says why it cannot be written; numpy's own only counts what is missing."""

    def tofile(self, file: Any, sep: str = "", format: str = "") -> None:
        file.write(self.data)


def _raw(packed: Artifact, name: str, how: Stored) -> np.ndarray:
    """The bytes of a tensor, read back and compared with what they shall give."""
    import gguf

    kind = gguf.GGMLQuantizationType[how.kind]
    order = row_order(packed, name)
    if how.kind in (*FLOAT_TYPES.values(),):
        values = converted(packed, name)
        return np.ascontiguousarray(values.view(np.uint8) if how.kind == "F32" else gguf.quants.quantize(values, kind))
    scheme = packed.schemes[name]
    instead = SCHEMES[how.kind] if how.loss else ""
    grid = parse(instead).weight if instead else scheme.weight
    found = []
    for rows in row_pieces(packed, name) if order is None else [slice(None)]:
        steps = read(packed, name, instead, rows)
        steps = steps if order is None else steps.rows(order)
        raw = encoded(how.kind, steps, grid)
        wanted = steps.spread(steps.scale.astype(np.float32)) * steps.values.astype(np.float32)
        if not np.array_equal(gguf.quants.dequantize(raw, kind), wanted):
            raise ParetobitError(f"{name}: {how.kind} does not give {scheme} back", hint=HINT)
        found.append(raw)
    return np.concatenate(found)


def add(writer: Any, key: str, value: object) -> None:
    """A number, bool, text or list to a GGUFWriter."""
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


def _file_type(kinds: Counter[str]) -> int:
    """What llama.cpp calls a file whose matrices are mostly of one type."""
    from gguf import LlamaFileType

    kinds = Counter({kind: n for kind, n in kinds.items() if kind != "F32"})
    most = kinds.most_common(1)[0][0] if kinds else "F32"
    names = [f"MOSTLY_{most}", f"MOSTLY_{most}_S", f"ALL_{most}"]
    return next(int(LlamaFileType[name]) for name in names if name in LlamaFileType.__members__)


# ---- what a checkpoint is called and how it is laid out there


def metadata(source: Checkpoint) -> dict[str, object]:
    """Keys of the architecture. Raises ParetobitError on traits that llama.cpp would drop."""
    arch, family = source.arch, known()[source.arch.model_type]
    if source.arch.layers != GEMMA3_27B_LAYERS and not np.isclose(arch.attn_scale, arch.head_dim**-0.5):
        raise _refused(source, f"attention is scaled by {arch.attn_scale:g}")
    if arch.post_norms and (arch.qkv_bias or arch.mlp_bias):
        raise _refused(source, "it has biases")
    facts: dict[str, object] = {
        "context_length": arch.max_positions,
        "embedding_length": arch.hidden,
        "block_count": arch.layers,
        "feed_forward_length": arch.intermediate,
        "attention.head_count": arch.heads,
        "attention.head_count_kv": arch.kv_heads,
        "attention.key_length": arch.head_dim,
        "attention.value_length": arch.head_dim,
        "attention.layer_norm_rms_epsilon": float(arch.norm_eps),
        "rope.dimension_count": arch.head_dim,
        "vocab_size": arch.vocab,
        **_windows(source),
        **_ropes(source),
    }
    general = {"general.name": source.name, "general.quantized_by": "paretobit", "general.quantization_version": 2}
    return {**general, **{f"{family.gguf}.{key}": value for key, value in facts.items()}}


def _refused(source: Checkpoint, what: str) -> ParetobitError:
    return ParetobitError(f"{source.name}: {what}, which llama.cpp does not compute for this model", hint=HINT)


def _windows(source: Checkpoint) -> dict[str, object]:
    """Sliding windows: llama.cpp has them for Gemma 3, five layers to a global one."""
    windows = source.arch.windows
    widths = {window for window in windows if window is not None and window < source.arch.max_positions}
    if not widths:
        return {}
    local = [window is not None for window in windows]
    if not source.arch.post_norms or local != [(i + 1) % 6 != 0 for i in range(len(local))]:
        raise _refused(source, f"some layers see {min(widths)} positions only")
    return {"attention.sliding_window": min(widths)}


def _ropes(source: Checkpoint) -> dict[str, object]:
    """Bases and scaling of the rotary embedding; Llama 3's scaling is a tensor."""
    arch = source.arch
    kinds = {window is not None: rope for rope, window in zip(arch.ropes, arch.windows, strict=True)}
    rope = kinds.get(False, arch.ropes[-1])
    facts: dict[str, object] = {"rope.freq_base": rope.theta}
    if arch.post_norms and True in kinds:
        facts["rope.freq_base_swa"] = kinds[True].theta
    params = dict(rope.params)
    if rope.kind == "linear":
        facts |= {"rope.scaling.type": "linear", "rope.scaling.factor": params["factor"]}
    elif rope.kind == "yarn":
        usual = 0.1 * np.log(params["factor"]) + 1.0 if params["factor"] > 1 else 1.0
        if not params["truncate"] or not np.isclose(params["attention_factor"], usual):
            raise _refused(source, "YaRN has a temperature or a ramp of its own")
        facts |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": params["factor"],
            "rope.scaling.original_context_length": int(params["original_positions"]),
            "rope.scaling.yarn_beta_fast": params["beta_fast"],
            "rope.scaling.yarn_beta_slow": params["beta_slow"],
        }
    return facts


def rope_divisors(source: Checkpoint) -> np.ndarray | None:  # (head_dim / 2,)
    """Llama 3's scaling: what each pair's frequency is divided by, float32; None without it."""
    rope, width = source.arch.ropes[-1], source.arch.head_dim
    if rope.kind != "llama3":
        return None
    plain, scaled = (np.array(frequencies(x, width)[0]) for x in (Rope(rope.theta), rope))
    return (plain / scaled).astype(np.float32)


def stored_name(source: Checkpoint, tensor: str) -> str:
    """GGUF's name of a tensor."""
    theirs = {ours: stored for stored, ours in TOP_NAMES.items()}
    if tensor in theirs:
        return theirs[tensor]
    blocks = {ours: stored for stored, ours in block_names(known()[source.arch.model_type]).items()}
    _, _, layer, rest = tensor.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{blocks[part]}.{kind}"


def row_order(source: Checkpoint, tensor: str) -> np.ndarray | None:
    """Rows as llama.cpp rotates them, neighbouring channels together; None where they stay."""
    heads = {"q_proj": source.arch.heads, "k_proj": source.arch.kv_heads}.get(tensor.split(".")[-2], 0)
    if not known()[source.arch.model_type].gguf_permuted or not heads:
        return None
    return np.arange(source.shape(tensor)[0]).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def converted(source: Checkpoint, tensor: str) -> np.ndarray:
    """float32 values as llama.cpp wants them: rows in its order, what norms add to their weight added."""
    values, order = source.read(tensor), row_order(source, tensor)
    offset = known()[source.arch.model_type].norm_offset
    if offset and tensor.endswith("norm.weight"):
        values = values + np.float32(offset)
    return np.ascontiguousarray(values if order is None else values[order])


def gguf_or_hint() -> None:
    import importlib.util

    if importlib.util.find_spec("gguf") is None:
        raise ParetobitError("export --to gguf needs the gguf package", hint="pip install paretobit[export]")
