"""A packed model in memory, and the sequences it continues: the native decoder behind checks.

Weights stay in the page cache, memory-mapped and shared between processes. Everything is computed in C++ (csrc/), each
token the same to the bit whether it comes alone, in a prompt or beside other sequences, with any number of threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from paretobit import hardware, native
from paretobit import kv as caches
from paretobit.arch.rope import frequencies
from paretobit.arch.spec import EMBED, FINAL_NORM, HEAD, Arch, band
from paretobit.artifact import Artifact
from paretobit.errors import ParetobitError
from paretobit.kv import KV
from paretobit.scheme import FLOATS, Grid

ACTIVATIONS = ("int8", "fp32")
# Fields that csrc/model.h shares with Arch.
SHARED = (
    *("hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocab", "norm_eps", "norm_offset", "attn_scale"),
    *("embed_scale", "tied", "qkv_bias", "o_bias", "mlp_bias", "qk_norm", "post_norms"),
)
ROLES = {
    **{f"self_attn.{x}_proj.weight": x for x in "qkvo"},
    **{f"self_attn.{x}_proj.bias": f"{x}_bias" for x in "qkvo"},
    **{f"mlp.{x}_proj.weight": x for x in ("gate", "up", "down")},
    **{f"mlp.{x}_proj.bias": f"{x}_bias" for x in ("gate", "up", "down")},
    **{f"self_attn.{x}_norm.weight": f"{x}_norm" for x in "qk"},
    "input_layernorm.weight": "attn_norm",
    "pre_feedforward_layernorm.weight": "mlp_norm",
    "post_feedforward_layernorm.weight": "post_mlp_norm",
}
TOP = {EMBED: "embed", HEAD: "head", FINAL_NORM: "final_norm"}


class Session:
    """Continues token sequences ("slots") with a packed model. One call at a time computes; others wait.

    source: the model; threads: default the physical cores this process may use; activations: "int8" (what the kernels
    are fast at) or "fp32"; context: most positions a slot may hold, at most and by default the model's own; kv: how
    keys and values are kept, 16 (fp16) or as `kv.KV` spells it. chunk: the tokens of a native call.
    Raises ParetobitError on other values, and on what the native decoder cannot run.
    """

    arch: Arch
    threads: int
    context: int
    activations: str
    kv: KV | None
    chunk: int

    def __init__(
        self,
        source: Artifact,
        threads: int | None = None,
        activations: str = "int8",
        context: int | None = None,
        kv: str | int | None = None,
    ) -> None:
        self.arch, self.activations = source.arch, activations
        most = source.arch.max_positions
        self.context = most if context is None else context
        if activations not in ACTIVATIONS:
            raise ParetobitError(f"activations '{activations}'", hint=f"choose from {', '.join(ACTIVATIONS)}")
        if not 1 <= self.context <= most:
            raise ParetobitError(f"a context of {context} positions", hint=f"this model holds 1 to {most}")
        self.kv = caches.parse(kv)
        if self.kv is not None and not self.arch.small_kv:
            raise ParetobitError(
                f"{self.arch.model_type}: nobody has proven that a small key-value cache works with it",
                hint="leave out --kv, or prove it: docs/kv.md says how",
            )
        if self.kv is not None and self.arch.head_dim > caches.MOST_HEAD:
            raise ParetobitError(
                f"a small key-value cache for heads of {self.arch.head_dim} channels",
                hint=f"they may have {caches.MOST_HEAD}: leave out --kv",
            )
        threads = hardware.cores() if threads is None else threads
        module = native._module()
        if not 1 <= threads <= module.Session.MOST_THREADS:
            raise ParetobitError(f"{threads} threads", hint=f"choose from 1 to {module.Session.MOST_THREADS}")
        with _explained(source.name):
            model = module.Model(_config(module, source.arch))
            _add_weights(model, source)
            _add_rotations(model, source)
            model.seal()
            at = (model, native.isa(), threads, activations == "int8", self.context)
            self._native = module.Session(*at, *_cache(self.kv, self.arch.head_dim))
        self.threads = self._native.threads
        self.chunk: int = module.Session.CHUNK

    @property
    def kv_bytes(self) -> int:
        """Bytes that the caches of all slots take now."""
        return self._native.kv_bytes

    def open(self) -> int:
        """A new slot, which holds no tokens."""
        return self._native.open()

    def fork(self, slot: int, length: int) -> int:
        """A new slot that begins with the first `length` tokens of another, whose memory it shares until one of them
        goes on differently. Raises ParetobitError where it holds fewer."""
        have = self.length(slot)
        if not 0 <= length <= have:
            raise ParetobitError(f"slot {slot} cannot share {length} tokens", hint=f"it holds {have}")
        with _explained(f"slot {slot}"):
            return self._native.fork(slot, length)

    def close(self, slot: int) -> None:
        """Free a slot's cache. Raises ParetobitError, as all below, on a slot that is not open."""
        with _explained(f"slot {slot}"):
            self._native.close(slot)

    def length(self, slot: int) -> int:
        """Tokens that a slot holds."""
        with _explained(f"slot {slot}"):
            return self._native.length(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Forget a slot's tokens from position `length` on; raises ParetobitError where it holds fewer.

        Of a small cache, more than 64 at once leave a trace: the newest that stay are afterwards what their codes say.
        """
        have = self.length(slot)
        if not 0 <= length <= have:
            raise ParetobitError(f"slot {slot} cannot be cut to {length} tokens", hint=f"it holds {have}")
        with _explained(f"slot {slot}"):
            self._native.truncate(slot, length)

    def feed(self, slot: int, tokens: Sequence[int]) -> np.ndarray:  # (n,) -> (vocab,)
        """Append tokens to a slot; float32 logits (vocab,) after the last. See `feed_many`."""
        return self.feed_many({slot: tokens})[slot]

    def feed_many(self, steps: Mapping[int, Sequence[int]]) -> dict[int, np.ndarray]:
        """Append tokens, at least one each, to several slots at once; each slot's float32 logits (vocab,) after its
        last one: to the bit what `feed` alone gives.

        Raises ParetobitError on unknown tokens and where a slot would outgrow the context. After any exception,
        KeyboardInterrupt included, every slot holds what it held before: of a small cache as `truncate` brings it back.
        """
        rows = self.step([(slot, tokens, len(tokens) - 1) for slot, tokens in steps.items()])
        return {slot: row[0] for slot, row in zip(steps, rows, strict=True)}

    def step(self, work: Sequence[tuple[int, Sequence[int], int]]) -> list[np.ndarray]:
        """Append tokens to slots, [(slot, tokens, first)], each slot once; float32 logits (len(tokens) - first, vocab)
        of each, after its tokens from `first` on: none where that is len(tokens). Raises as `feed_many`."""
        checked = []
        for slot, given, first in work:
            tokens = self._checked(given)
            if len(tokens) > self.context - self.length(slot):
                raise ParetobitError(
                    f"{len(tokens)} more tokens exceed the context of {self.context}: slot {slot} holds "
                    f"{self.length(slot)}",
                    hint="shorten the text, or open the model with a larger context if it allows one",
                )
            checked.append((slot, tokens, first))
        ends = np.cumsum([0, *(len(tokens) - first for _, tokens, first in checked)])
        out = np.empty((int(ends[-1]), self.arch.vocab), np.float32)
        self._advance(checked, out)
        return [out[start:end] for start, end in itertools.pairwise(ends)]

    def logits(self, tokens: np.ndarray, first: int = 0) -> np.ndarray:  # (b, t) -> (b, t - first, vocab)
        """float32 logits after positions first … t - 1 of independent sequences, tokens (b, t)."""
        tokens = np.asarray(tokens)
        count, length = tokens.shape
        if length > self.context:
            raise ParetobitError(
                f"sequences of {length} tokens exceed the context of {self.context}", hint="shorten the text"
            )
        out = np.empty((count, length - first, self.arch.vocab), np.float32)
        together = max(1, self.chunk // max(1, length))
        for start in range(0, count, together):
            rows = tokens[start : start + together]
            slots = [self.open() for _ in rows]
            try:
                work = [(slot, self._checked(row), first) for slot, row in zip(slots, rows, strict=True)]
                self._advance(work, out[start : start + together].reshape(-1, self.arch.vocab))
            finally:
                for slot in slots:
                    self.close(slot)
        return out

    def _checked(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:  # (n,) int32
        ids = np.asarray(tokens)
        if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
            raise ParetobitError(f"tokens of shape {ids.shape}, {ids.dtype}", hint="give a list of one integer or more")
        if not 0 <= ids.min() <= ids.max() < self.arch.vocab:
            raise ParetobitError(
                f"tokens from {ids.min()} to {ids.max()}, but the model knows 0 to {self.arch.vocab - 1}",
                hint="the tokenizer does not belong to this model",
            )
        return np.ascontiguousarray(ids, np.int32)

    def _advance(self, work: Sequence[tuple[int, np.ndarray, int]], out: np.ndarray) -> None:
        """Append tokens to slots, [(slot, tokens, first whose logits are wanted)]; out: (all wanted, vocab), in order.

        All tokens in a row are cut into chunks, each a native call: Ctrl-C is heard in between.
        """
        before = [(slot, self.length(slot)) for slot, _, _ in work]
        batch: list[tuple[int, np.ndarray, int]] = []
        room, start, end = self.chunk, 0, 0
        try:
            for slot, tokens, first in work:
                at = 0
                while at < len(tokens):
                    piece = tokens[at : at + room]
                    wanted_from = min(max(first - at, 0), len(piece))
                    batch.append((slot, piece, wanted_from))
                    at, room, end = at + len(piece), room - len(piece), end + len(piece) - wanted_from
                    if not room:
                        self._step(batch, out[start:end])
                        batch, room, start = [], self.chunk, end
            if batch:
                self._step(batch, out[start:end])
        except BaseException:
            for slot, length in before:
                self._native.truncate(slot, length)
            raise

    def _step(self, batch: list[tuple[int, np.ndarray, int]], out: np.ndarray) -> None:
        with _explained("the session"):
            self._native.step(batch, out)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """What the native code throws, as ParetobitError."""
    try:
        yield
    except ValueError as why:
        hint = "open() gives a new one" if what.startswith("slot") else "the file is damaged: quantize the model again"
        raise ParetobitError(f"{what}: {why}", hint=hint) from None
    except MemoryError:
        raise ParetobitError(f"{what}: no memory is left", hint="close slots or shorten the context") from None
    except RuntimeError as why:
        raise ParetobitError(f"{what}: {why}", hint="open the model in the process that uses it") from None


def _config(module: Any, arch: Arch) -> Any:
    config = module.Config()
    for name in SHARED:
        setattr(config, name, getattr(arch, name))
    config.positions, config.gelu_tanh = arch.max_positions, arch.activation == "gelu_tanh"
    kinds = list(dict.fromkeys(arch.ropes))
    ropes = []
    for kind in kinds:
        rope = module.Rope()
        rope.radians, rope.factor = frequencies(kind, arch.head_dim)
        ropes.append(rope)
    config.ropes, config.rope_of = ropes, [kinds.index(rope) for rope in arch.ropes]
    config.windows = [arch.max_positions if window is None else window for window in arch.windows]
    return config


def _cache(kv: KV | None, head_dim: int) -> tuple[Any, ...]:
    """What the native session is told of it; nothing of one in fp16."""
    if kv is None:
        return ()
    turn = caches.rotation(head_dim) if kv.rotate else None
    scheme = (kv.bits, kv.by_channel, kv.window)
    return scheme if turn is None else (*scheme, turn.order, turn.signs, turn.factor())


def _add_weights(model: Any, source: Artifact) -> None:
    arch = source.arch
    for name, shape in arch.shapes().items():
        role, layer = _role(arch, name)
        if len(shape) == 1:
            model.add_vector(role, layer, source.read(name))
            continue
        grid = source.schemes[name].weight
        if grid.kind in FLOATS:
            words = _mapped(source, name, np.uint8)
            model.add_matrix(role, layer, _format(name, grid), shape, shape[1], 0, words, None, None)
            continue
        codes, scale = _mapped(source, f"{name}.codes", np.uint8), _mapped(source, f"{name}.scale", np.uint16)
        stored = grid.zero == "stored"
        zero = _mapped(source, f"{name}.zero", np.uint8) if stored else None
        group = min(grid.group or shape[1], shape[1])
        twice_zero = 0 if stored else int(2 * grid.offset)
        at = (_format(name, grid), shape, group, twice_zero)
        model.add_matrix(role, layer, *at, codes, scale, zero, native.table_of(grid))


def _add_rotations(model: Any, source: Artifact) -> None:
    arch = source.arch
    top = (arch.head_tap,) if arch.tied else (arch.head_tap, arch.embed_tap)
    for layer, tap in [*((i, tap) for i in range(arch.layers) for tap in arch.taps(i)), *((0, tap) for tap in top)]:
        rotation = source.rotation(tap.consumers[0])
        if rotation is not None:
            role = tap.name.removeprefix(arch.prefix(layer))
            model.add_rotation(role, layer, rotation.order, rotation.signs, rotation.factor())


def _role(arch: Arch, name: str) -> tuple[str, int]:
    """Role and layer of a tensor, as csrc/model.h calls them."""
    if (whole := band(name)[0]) in TOP:
        return TOP[whole], 0
    layer, _, part = name.removeprefix("model.layers.").partition(".")
    if part == "post_attention_layernorm.weight":  # what follows attention is a norm of its own, or the MLP's
        return ("post_attn_norm" if arch.post_norms else "mlp_norm"), int(layer)
    return ROLES[part], int(layer)


def _format(name: str, grid: Grid) -> int:
    if grid.kind not in ("affine", "trellis", *FLOATS):
        raise ParetobitError(f"{name}: no kernel for the grid '{grid.kind}'", hint="quantize to another scheme")
    return native.format_of(grid)


def _mapped(source: Artifact, name: str, dtype: type) -> np.ndarray:
    """The stored array as `dtype` words; copied only where the file does not keep it aligned."""
    array = source.file.map(name)
    return (array if array.flags.aligned else array.copy()).view(dtype)
