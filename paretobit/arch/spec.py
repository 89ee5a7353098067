"""What a decoder looks like, as data: dimensions, traits, and the taps where activations are born.

A file in this folder holds one `FAMILY`: the facts about a `model_type` that its config.json leaves unsaid.
`resolve(config)` merges the two into an `Arch`. Everything that walks a model (calibration, folding, the
torch decoder, the native runtime, the checkpoint readers) reads the `Arch`; nothing else knows its name.

Tensor names are Hugging Face's, since that is what users see: "model.layers.3.self_attn.q_proj.weight".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

EMBED, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


BAND = re.compile(r"(.+)\[(\d{1,9}):(\d{1,9})\]")


def band(name: str) -> tuple[str, slice]:
    """The matrix that a name speaks of, and of which of its rows: all of them, but for a band ("…weight[0:8192]")."""
    found = BAND.fullmatch(name)
    return (found[1], slice(int(found[2]), int(found[3]))) if found else (name, slice(None))


@dataclass(frozen=True)
class Family:
    """What a model_type means beyond its config.json. `None` = config.json's own key decides.

    defaults:    config.json fields that the published configs leave out
    qkv_bias:    biases on q, k, v (None: `attention_bias`, which then covers o too)
    norm_offset: RMSNorm multiplies by (weight + norm_offset)
    post_norms:  norms after attention and after the MLP, before the residual add (four norms a block)
    scale_embedding: embeddings are multiplied by sqrt(hidden)
    windows:     layers with a sliding window: "none", "all" or "some" (config.json says which)
    small_kv:    tests/unit/test_kv_numbers.py proves that a key-value cache of a few bits works with it
    gguf:        the `general.architecture` of its GGUF files; several families may share one
    gguf_permuted: the GGUF stores q and k rows in interleaved-rope order
    gguf_rename: GGUF block names that differ from the common map
    """

    model_type: str
    gguf: str
    aliases: tuple[str, ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict)
    qkv_bias: bool | None = None
    qk_norm: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    scale_embedding: bool = False
    windows: str = "none"
    small_kv: bool = False
    gguf_permuted: bool = False
    gguf_rename: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one kind of layer: `kind` is default, linear, llama3 or yarn, with its `params`.

    `params` is complete (nothing is left to a default); `arch.rope.frequencies` turns it into angles.
    """

    theta: float
    kind: str = "default"
    params: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Tap:
    """A point where an activation is born: `producer` makes it, every tensor in `consumers` multiplies it.

    kind: "norm", "heads", "ffn" or "residual"; width: channels of the activation; norm: through which what the consumer
    gives goes on its way into the residual stream, if any.
    """

    name: str
    producer: str
    consumers: tuple[str, ...]
    kind: str
    width: int
    experts: int | None = None
    norm: str | None = None

    @property
    def writes(self) -> bool:
        """Whether what its consumer gives goes back into the residual stream."""
        return self.kind in ("heads", "ffn")


@dataclass(frozen=True)
class Arch:
    """A resolved decoder: dimensions and traits, no weights.

    ropes and windows have one entry a layer; a window is the number of newest positions a token attends to
    (None = all). attn_scale multiplies q·k. activation is "silu" or "gelu_tanh". cuts: rows of the vocabulary at which
    embedding and head are cut into bands, each a matrix of its own with a scheme of its own.
    """

    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    norm_eps: float
    activation: str
    attn_scale: float
    embed_scale: float
    max_positions: int
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    post_norms: bool
    norm_offset: float
    ropes: tuple[Rope, ...]
    windows: tuple[int | None, ...]
    small_kv: bool = False
    cuts: tuple[int, ...] = ()

    def bands(self, name: str) -> tuple[str, ...]:
        """The matrices that make up embedding or head: itself, or its bands."""
        edges = (0, *self.cuts, self.vocab)
        return tuple(f"{name}[{a}:{b}]" for a, b in itertools.pairwise(edges)) if self.cuts else (name,)

    def prefix(self, layer: int) -> str:
        return f"model.layers.{layer}."

    def taps(self, layer: int) -> tuple[Tap, ...]:
        """The block's taps in the order in which they are born."""
        at = self.prefix(layer)
        before_mlp = "pre_feedforward_layernorm" if self.post_norms else "post_attention_layernorm"
        qkv = tuple(f"{at}self_attn.{x}_proj.weight" for x in "qkv")
        gate_up = (f"{at}mlp.gate_proj.weight", f"{at}mlp.up_proj.weight")
        o, down = (f"{at}self_attn.o_proj.weight",), (f"{at}mlp.down_proj.weight",)
        after_o, after_down = (
            f"{at}post_{part}_layernorm.weight" if self.post_norms else None for part in ("attention", "feedforward")
        )
        return (
            Tap(f"{at}attn_in", f"{at}input_layernorm.weight", qkv, "norm", self.hidden),
            Tap(f"{at}o_in", qkv[2], o, "heads", self.heads * self.head_dim, norm=after_o),
            Tap(f"{at}mlp_in", f"{at}{before_mlp}.weight", gate_up, "norm", self.hidden),
            Tap(f"{at}down_in", gate_up[1], down, "ffn", self.intermediate, norm=after_down),
        )

    @property
    def head_tap(self) -> Tap:
        return Tap("head_in", FINAL_NORM, self.bands(EMBED if self.tied else HEAD), "norm", self.hidden)

    @property
    def embed_tap(self) -> Tap:
        """The embedding's columns where no head shares them: nothing is multiplied there, but they have a basis too."""
        return Tap("embed_out", EMBED, self.bands(EMBED), "residual", self.hidden)

    def block_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor of one block."""
        h, at = self.hidden, self.prefix(layer)
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (q, h),
            "self_attn.k_proj.weight": (kv, h),
            "self_attn.v_proj.weight": (kv, h),
            "self_attn.o_proj.weight": (h, q),
            "mlp.gate_proj.weight": (self.intermediate, h),
            "mlp.up_proj.weight": (self.intermediate, h),
            "mlp.down_proj.weight": (h, self.intermediate),
            "input_layernorm.weight": (h,),
            "post_attention_layernorm.weight": (h,),
        }
        if self.post_norms:
            shapes |= {"pre_feedforward_layernorm.weight": (h,), "post_feedforward_layernorm.weight": (h,)}
        if self.qk_norm:
            shapes |= {
                "self_attn.q_norm.weight": (self.head_dim,),
                "self_attn.k_norm.weight": (self.head_dim,),
            }
        if self.qkv_bias:
            shapes |= {f"self_attn.{x}_proj.bias": (n,) for x, n in (("q", q), ("k", kv), ("v", kv))}
        if self.o_bias:
            shapes["self_attn.o_proj.bias"] = (h,)
        if self.mlp_bias:
            n = self.intermediate
            shapes |= {"mlp.gate_proj.bias": (n,), "mlp.up_proj.bias": (n,), "mlp.down_proj.bias": (h,)}
        return {at + name: shape for name, shape in shapes.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor of the model; a tied head is listed once, as the embedding."""
        shapes: dict[str, tuple[int, ...]] = self._end_shapes(EMBED)
        for layer in range(self.layers):
            shapes |= self.block_shapes(layer)
        shapes[FINAL_NORM] = (self.hidden,)
        return shapes if self.tied else shapes | self._end_shapes(HEAD)

    def _end_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        edges = itertools.pairwise((0, *self.cuts, self.vocab))
        return {part: (b - a, self.hidden) for part, (a, b) in zip(self.bands(name), edges, strict=True)}
