"""An ONNX folder, for ONNX Runtime: a decoder with a cache of keys and values, matrices of 4 or 8 bits.

Inputs and outputs are named as Hugging Face's exporter names them: input_ids, attention_mask (1 where there is a token,
of the cache and the new ones), position_ids, past_key_values.N.key and .value, logits, present.N.key and .value. A
matrix is a MatMulNBits: w = scale · (code - zero), a scale for every power of two of columns. The embedding is looked
up as 8-bit integers and their scales, in plain operators. With static 8-bit activations a product is DequantizeLinear
of both sides and MatMul instead, which the runtime joins to a product of integers: that takes one scale for a row.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from paretobit.arch.rope import frequencies
from paretobit.arch.spec import EMBED, HEAD, Arch, Rope
from paretobit.artifact import Artifact
from paretobit.errors import ParetobitError
from paretobit.exporters import Request, Stored
from paretobit.exporters.folder import plain_config, write_documents
from paretobit.exporters.onnx_graph import Graph
from paretobit.exporters.steps import Steps, nearest, read, span, unfit, width
from paretobit.scheme import FLOATS, Grid, parse

DTYPES = ("float32",)
SUFFIX = ""
INT8 = True
MODEL, DATA = "model.onnx", "model.onnx.data"
LEAST_BLOCK, ROW_BLOCK = 16, 128  # MatMulNBits': the least there is; what whole rows are cut into
MASKED = np.float32(np.finfo(np.float32).min)


def holds(packed: Artifact, request: Request) -> dict[str, Stored]:
    for module in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(module) is None:
            raise ParetobitError(f"export --to onnx needs {module}", hint="pip install paretobit[export]")
    return {name: _stored(packed, name, request) for name in packed.names()}


def _stored(packed: Artifact, name: str, request: Request) -> Stored:
    shape, grid = packed.shape(name), packed.schemes[name].weight
    if len(shape) == 1 or grid.kind in FLOATS:
        return Stored("float32")
    why = unfit(packed, name)
    if not why and block_of(grid) < LEAST_BLOCK:
        why = f"a scale for {grid.group} columns, where powers of two from {LEAST_BLOCK} are needed"
    if not why and request.int8 and width(grid, shape[1]) != shape[1]:
        why = f"a scale for {grid.group} columns, where products of integers need one for the row"
    bits = 8 if request.int8 else bits_of(parse(instead(grid, request)).weight if why else grid)
    return Stored(f"int{bits}", why)


def instead(grid: Grid, request: Request) -> str:
    """The scheme that a matrix is rounded to which cannot be held."""
    if request.int8:
        return "w8"
    return {4: "w4g32s", 8: "w8g32"}[nearest(grid, request.bits, (4, 8))]


def block_of(grid: Grid) -> int:
    """Columns of a block: the largest power of two that divides a group."""
    return ROW_BLOCK if grid.group is None else grid.group & -grid.group


def bits_of(grid: Grid) -> int:
    low, high = span(grid)
    return 4 if (low >= -8 and high <= 7) or (grid.zero == "stored" and grid.levels <= 16) else 8


def write(packed: Artifact, path: Path, stored: Mapping[str, Stored], request: Request) -> None:
    path.mkdir()
    graph = Graph(path / DATA)
    try:
        _Decoder(packed, graph, stored, request).build()
        graph.save(path / MODEL, packed.name, "paretobit")
    finally:
        graph.close()
    write_documents(path, packed, plain_config(packed, request.dtype))


class _Decoder:
    """The nodes of one model."""

    def __init__(self, packed: Artifact, graph: Graph, stored: Mapping[str, Stored], request: Request) -> None:
        self.packed, self.arch, self.graph, self.stored, self.request = packed, packed.arch, graph, stored, request
        self.head = EMBED if self.arch.tied else HEAD
        self.masks: dict[int | None, str] = {}
        self.turns: dict[Rope, tuple[str, str]] = {}

    def build(self) -> None:
        graph, arch = self.graph, self.arch
        ids = graph.input("input_ids", np.int64, ("batch", "sequence"))
        self.mask = graph.input("attention_mask", np.int64, ("batch", "total"))
        self.positions = graph.input("position_ids", np.int64, ("batch", "sequence"))
        self.length = graph("Shape", ids, start=1, end=2)
        x = self.embedding(ids)
        for layer in range(arch.layers):
            x = self.block(layer, x)
        x = self.norm(x, arch.head_tap.producer)
        logits = self.product(self.quantized(x, arch.head_tap.name), self.head)
        graph.output(logits, "logits", np.float32, ("batch", "sequence", arch.vocab))

    def steps(self, name: str) -> tuple[Steps, Grid]:
        grid = self.packed.schemes[name].weight
        other = instead(grid, self.request) if self.stored[name].loss else ""
        return read(self.packed, name, other), parse(other).weight if other else grid

    def embedding(self, ids: str) -> str:  # -> (batch, sequence, hidden)
        graph = self.graph
        if self.packed.schemes[EMBED].weight.kind in FLOATS:
            x = graph("Gather", graph.weight(EMBED, self.packed.read(EMBED)), ids)
        else:
            of, grid = self.steps(EMBED)
            of = of.regrouped(width(grid, self.arch.hidden))
            codes = graph("Gather", graph.weight(EMBED, of.values.astype(np.int8)), ids)
            scale = graph("Gather", graph.weight(f"{EMBED}_scale", of.scale), ids)
            shape = np.array([0, 0, of.scale.shape[1], -1], np.int64)
            codes = graph("Reshape", graph("Cast", codes, to=1), shape)
            scale = graph("Unsqueeze", graph("Cast", scale, to=1), np.array([3], np.int64))
            x = graph("Reshape", graph("Mul", codes, scale), np.array([0, 0, self.arch.hidden], np.int64))
        return x if self.arch.embed_scale == 1.0 else graph("Mul", x, np.float32(self.arch.embed_scale))

    def norm(self, x: str, name: str) -> str:
        """RMSNorm over the last axis."""
        graph = self.graph
        weight = self.packed.read(name) + np.float32(self.arch.norm_offset)
        mean = graph("ReduceMean", graph("Mul", x, x), np.array([-1], np.int64))
        root = graph("Sqrt", graph("Add", mean, np.float32(self.arch.norm_eps)))
        return graph("Mul", graph("Div", x, root), graph.weight(name, weight))

    # ---- products

    def quantized(self, x: str, tap: str) -> str:
        """The activations at a tap, rounded to 8 bits where these are static."""
        if not self.request.int8:
            return x
        scale, zero = np.float32(max(self.request.ranges[tap], 1e-30) / 127), np.int8(0)
        return str(self.graph("DequantizeLinear", self.graph("QuantizeLinear", x, scale, zero), scale, zero))

    def product(self, x: str, name: str) -> str:
        """x (…, in) times a matrix (out, in), with its bias."""
        graph = self.graph
        stem = f"{name}/head" if name == EMBED else name
        if self.packed.schemes[name].weight.kind in FLOATS:
            y = graph("MatMul", x, graph.weight(stem, self.packed.read(name).T), name=f"{stem}/product")
        else:
            of, grid = self.steps(name)
            y = self._integers(x, stem, of) if self.request.int8 else self._narrow(x, stem, of, grid)
        bias = f"{name.removesuffix('.weight')}.bias"
        return graph("Add", y, graph.weight(bias, self.packed.read(bias))) if bias in self.stored else y

    def _narrow(self, x: str, name: str, of: Steps, grid: Grid) -> str:
        """A MatMulNBits: blocks of codes, the middle taken off unless there are zero points."""
        rows, columns = of.codes.shape
        bits, block = bits_of(grid), block_of(grid)
        of = of.regrouped(block)
        blocks, zeros = of.scale.shape[1], grid.zero == "stored" and bits == 4
        codes = of.codes if zeros else (of.values + np.int16(1 << bits - 1)).astype(np.uint8)
        codes = np.pad(codes, ((0, 0), (0, blocks * block - columns)))
        inputs = [
            self.graph.weight(name, _bytes(codes, bits).reshape(rows, blocks, -1)),
            self.graph.weight(f"{name}_scale", of.scale.astype(np.float32).reshape(-1)),
        ]
        if zeros:
            padded = np.pad(of.zero, ((0, 0), (0, blocks % 2)))
            inputs.append(self.graph.weight(f"{name}_zero", _bytes(padded, 4).reshape(-1)))
        facts = {"K": columns, "N": rows, "bits": bits, "block_size": block, "accuracy_level": 1}
        return str(self.graph("MatMulNBits", x, *inputs, name=f"{name}/product", **facts))

    def _integers(self, x: str, name: str, of: Steps) -> str:
        """MatMul of dequantized integers, which the runtime joins with those before x."""
        codes = self.graph.weight(name, of.values.astype(np.int8).T)
        scale = self.graph.weight(f"{name}_scale", of.scale.astype(np.float32).reshape(-1))
        return str(
            self.graph("MatMul", x, self.graph("DequantizeLinear", codes, scale, axis=1), name=f"{name}/product")
        )

    # ---- a block

    def block(self, layer: int, x: str) -> str:
        graph, arch, at = self.graph, self.arch, self.arch.prefix(layer)
        attn_in, o_in, mlp_in, down_in = arch.taps(layer)
        y = self.quantized(self.norm(x, attn_in.producer), attn_in.name)
        y = self.product(self.quantized(self.attention(layer, y), o_in.name), o_in.consumers[0])
        if arch.post_norms:
            y = self.norm(y, f"{at}post_attention_layernorm.weight")
        x = graph("Add", x, y)
        y = self.quantized(self.norm(x, mlp_in.producer), mlp_in.name)
        gate, up = (self.product(y, name) for name in mlp_in.consumers)
        y = self.quantized(graph("Mul", self.activated(gate), up), down_in.name)
        y = self.product(y, down_in.consumers[0])
        if arch.post_norms:
            y = self.norm(y, f"{at}post_feedforward_layernorm.weight")
        return str(graph("Add", x, y))

    def activated(self, x: str) -> str:
        if self.arch.activation == "silu":
            return str(self.graph("Mul", x, self.graph("Sigmoid", x)))
        return str(self.graph("Gelu", x, approximate="tanh"))

    def attention(self, layer: int, x: str) -> str:  # (batch, sequence, hidden) -> (batch, sequence, heads · head_dim)
        graph, arch, at = self.graph, self.arch, f"{self.arch.prefix(layer)}self_attn."
        width, shared = arch.head_dim, arch.heads // arch.kv_heads
        q, k, v = (
            graph("Reshape", self.product(x, f"{at}{part}_proj.weight"), np.array([0, 0, -1, width], np.int64))
            for part in "qkv"
        )
        if arch.qk_norm:
            q, k = self.norm(q, f"{at}q_norm.weight"), self.norm(k, f"{at}k_norm.weight")
        q, k, v = (graph("Transpose", y, perm=[0, 2, 1, 3]) for y in (q, k, v))
        q, k = (self.turned(y, arch.ropes[layer]) for y in (q, k))
        k, v = (self.cached(layer, part, y) for part, y in (("key", k), ("value", v)))
        # One key-value head serves `shared` heads: an axis of its own for these.
        q = graph("Reshape", q, np.array([0, arch.kv_heads, shared, -1, width], np.int64))
        k, v = (graph("Unsqueeze", y, np.array([2], np.int64)) for y in (k, v))
        scores = graph("MatMul", q, graph("Transpose", k, perm=[0, 1, 2, 4, 3]))
        scores = graph("Add", graph("Mul", scores, np.float32(arch.attn_scale)), self.masked(arch.windows[layer]))
        y = graph("MatMul", graph("Softmax", scores, axis=-1), v)
        y = graph("Transpose", y, perm=[0, 3, 1, 2, 4])
        return str(graph("Reshape", y, np.array([0, 0, arch.heads * width], np.int64)))

    def cached(self, layer: int, part: str, new: str) -> str:
        """Keys or values of the cache and the new tokens, which are given back as the next cache."""
        arch, graph = self.arch, self.graph
        past = graph.input(
            f"past_key_values.{layer}.{part}", np.float32, ("batch", arch.kv_heads, "past", arch.head_dim)
        )
        whole = graph("Concat", past, new, axis=2)
        graph.output(whole, f"present.{layer}.{part}", np.float32, ("batch", arch.kv_heads, "total", arch.head_dim))
        return str(whole)

    def turned(self, x: str, rope: Rope) -> str:  # (batch, heads, sequence, head_dim)
        graph = self.graph
        if rope not in self.turns:
            per_position, factor = frequencies(rope, self.arch.head_dim)
            axis = np.array([1, 3], np.int64)
            angles = graph("Unsqueeze", graph("Cast", self.positions, to=1), axis)
            name = f"rope_{len(self.turns)}"
            half = graph("Mul", angles, graph.weight(name, np.array(per_position, np.float32)))
            both = graph("Concat", half, half, axis=3)
            cos, sin = (graph("Mul", graph(op, both), np.float32(factor)) for op in ("Cos", "Sin"))
            self.turns[rope] = cos, sin
        cos, sin = self.turns[rope]
        low, high = graph("Split", x, outputs=2, axis=3, num_outputs=2)
        swapped = graph("Concat", graph("Neg", high), low, axis=3)
        return str(graph("Add", graph("Mul", x, cos), graph("Mul", swapped, sin)))

    def masked(self, window: int | None) -> str:  # (batch, 1, 1, sequence, total)
        """What is added to scores: 0 where a token attends, the least number where not."""
        graph = self.graph
        if window not in self.masks:
            zero, one = np.int64(0), np.int64(1)
            total = graph("Squeeze", graph("Shape", self.mask, start=1, end=2))
            past = graph("Sub", total, graph("Squeeze", self.length))
            new, all_of_them = graph("Range", past, total, one), graph("Range", zero, total, one)
            back = graph("Sub", graph("Unsqueeze", new, np.array([1], np.int64)), all_of_them)  # (sequence, total)
            seen = graph("GreaterOrEqual", back, zero)
            if window is not None:
                seen = graph("And", seen, graph("Less", back, np.int64(window)))
            there = graph("Unsqueeze", graph("Cast", self.mask, to=9), np.array([1, 2, 3], np.int64))
            self.masks[window] = graph("Where", graph("And", there, seen), np.float32(0), MASKED)
        return self.masks[window]


def _bytes(codes: np.ndarray, bits: int) -> np.ndarray:  # (rows, n) -> (rows, n · bits / 8)
    return codes if bits == 8 else codes[:, 0::2] | codes[:, 1::2] << np.uint8(4)


def session(path: Path, arch: Arch) -> Callable[..., dict[str, np.ndarray]]:
    """Run an exported folder: token ids (b, t), and a cache from the call before -> outputs by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(str(path / MODEL), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in made.get_outputs()]

    def run(ids: np.ndarray, before: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        batch, count = ids.shape
        empty = np.zeros((batch, arch.kv_heads, 0, arch.head_dim), np.float32)
        cache = {
            f"past_key_values.{name.removeprefix('present.')}": before[name] if before else empty
            for name in names
            if name.startswith("present.")
        }
        past = next(iter(cache.values())).shape[2]
        feed = {
            "input_ids": ids.astype(np.int64),
            "attention_mask": np.ones((batch, past + count), np.int64),
            "position_ids": np.broadcast_to(np.arange(past, past + count, dtype=np.int64), ids.shape),
        }
        return dict(zip(names, made.run(names, feed | cache), strict=True))

    return run


def logits(path: Path, packed: Artifact) -> Callable[..., np.ndarray]:
    """What the evaluation calls: logits after positions first … of tokens (b, t)."""
    run = session(path, packed.arch)

    def call(tokens: np.ndarray, first: int = 0) -> np.ndarray:
        return run(np.asarray(tokens))["logits"][:, first:]

    return call
