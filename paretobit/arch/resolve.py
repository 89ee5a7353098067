"""From a config.json to an `Arch`: the family's facts, the config's numbers, and nothing left unsaid.

Both spellings of the rotary settings are read: `rope_theta` with `rope_scaling`, and transformers 5's
`rope_parameters`, flat or one entry a layer type. A config is hostile input: every number used is checked.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from paretobit.arch.spec import Arch, Family, Rope
from paretobit.errors import ParetobitError

# An order of magnitude above any published decoder, and no product of them overflows 64 bits.
MOST = {
    "hidden_size": 1 << 18,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 12,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 13,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 30,
    "original_max_position_embeddings": 1 << 30,
    "sliding_window": 1 << 30,
    "sliding_window_pattern": 1 << 12,
    "max_window_layers": 1 << 30,
}
TINY, HUGE = 1e-6, 1e6  # between them no ratio, product or logarithm leaves float32
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
FULL, LOCAL = "full_attention", "sliding_attention"
# What changes the function and is not implemented: any value but these is refused.
UNSUPPORTED = {
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (None, False),
    "partial_rotary_factor": (None, 1, 1.0),
}


@cache
def families() -> Mapping[str, tuple[Family, ...]]:
    """GGUF `general.architecture` -> its families, by file name: "llama" is llama, then mistral."""
    import pkgutil
    from importlib import import_module

    import paretobit.arch as folder

    found: dict[str, tuple[Family, ...]] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(folder.__path__)):
        family = getattr(import_module(f"{folder.__name__}.{module}"), "FAMILY", None)
        if isinstance(family, Family):
            found[family.gguf] = (*found.get(family.gguf, ()), family)
    return found


@cache
def known() -> Mapping[str, Family]:
    """`model_type` (aliases too) -> Family."""
    every = [family for group in families().values() for family in group]
    return {name: family for family in every for name in (family.model_type, *family.aliases)}


def resolve(config: Mapping[str, object]) -> Arch:
    """The decoder that a Hugging Face config.json describes; of a multimodal config, its text model.

    Raises ParetobitError, naming the field, on an unknown model_type, a bad value or an unsupported trait.
    """
    config, family = _text_config(config)
    values = _Fields({**family.defaults, **config})
    for name, allowed in UNSUPPORTED.items():
        if (value := values.get(name)) not in allowed:
            raise _refused(name, value, "paretobit has no such layer; the model would compute something else")
    hidden, layers = values.size("hidden_size"), values.size("num_hidden_layers")
    heads, kv_heads, head_dim = _heads(values, hidden)
    kinds = _layer_kinds(values, family, layers)
    window = values.size("sliding_window") if LOCAL in kinds else None
    ropes = {kind: _rope(values, kind) for kind in dict.fromkeys(kinds)}
    bias = values.flag("attention_bias") if family.qkv_bias is None else False
    return Arch(
        model_type=family.model_type,
        hidden=hidden,
        intermediate=values.size("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=values.size("vocab_size"),
        norm_eps=values.real("rms_norm_eps", 0.0, 1.0),
        activation=_activation(values, family),
        attn_scale=_attention_scale(values, family, head_dim),
        embed_scale=math.sqrt(hidden) if family.scale_embedding else 1.0,
        max_positions=values.size("max_position_embeddings"),
        tied=values.flag("tie_word_embeddings"),
        qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=bias,
        mlp_bias=values.flag("mlp_bias"),
        qk_norm=family.qk_norm,
        post_norms=family.post_norms,
        norm_offset=family.norm_offset,
        ropes=tuple(ropes[kind] for kind in kinds),
        windows=tuple(window if kind == LOCAL else None for kind in kinds),
        small_kv=family.small_kv,
    )


def _refused(name: str, value: object, hint: str) -> ParetobitError:
    try:
        shown = reprlib.repr(value)[:60]
    except ValueError:  # Python refuses to print integers of thousands of digits
        shown = "too long to print"
    return ParetobitError(f"config.json: {name} is {shown}", hint=hint)


@dataclass(frozen=True)
class _Fields:
    """Checked access to a JSON object; `where` prefixes the names in messages."""

    values: Mapping[str, object]
    where: str = ""

    def get(self, name: str) -> object:
        return self.values.get(name)

    def size(self, name: str, least: int = 1) -> int:
        value, most = self.get(name), MOST[name]
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise _refused(self.where + name, value, f"an integer from {least} to {most} is needed")

    def real(self, name: str, above: float, most: float) -> float:
        """A finite number in (above, most]; NaN fails every comparison."""
        value = self.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and above < value <= most:
            return float(value)
        raise _refused(self.where + name, value, f"a number above {above:g}, at most {most:g}, is needed")

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise _refused(self.where + name, value, "true or false is needed")


def _text_config(config: Mapping[str, object]) -> tuple[Mapping[str, object], Family]:
    if not isinstance(config, Mapping):
        raise ParetobitError("config.json is not an object", hint="it must be a Hugging Face config")
    model_type, text = config.get("model_type"), config.get("text_config")
    family = known().get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise _refused("model_type", model_type, f"known are {', '.join(sorted(known()))}")
    if text is None:
        return config, family
    if not isinstance(text, Mapping) or text.get("text_config") is not None:
        raise _refused("text_config", text, "an object with the text model's fields is needed")
    outer = {"model_type": model_type, "tie_word_embeddings": config.get("tie_word_embeddings")}
    inner, same = _text_config({**{k: v for k, v in outer.items() if v is not None}, **text})
    if same is not family:
        raise _refused("text_config.model_type", same.model_type, f"{model_type} needs {family.model_type}")
    return inner, family


def _heads(values: _Fields, hidden: int) -> tuple[int, int, int]:
    """Heads, key-value heads and the width of a head."""
    heads = values.size("num_attention_heads")
    kv_heads = heads if values.get("num_key_value_heads") is None else values.size("num_key_value_heads")
    if heads % kv_heads:
        raise _refused("num_key_value_heads", kv_heads, f"it must divide num_attention_heads, {heads}")
    if values.get("head_dim") is None and hidden % heads:
        raise _refused("num_attention_heads", heads, f"without head_dim it must divide hidden_size, {hidden}")
    head_dim = hidden // heads if values.get("head_dim") is None else values.size("head_dim")
    if head_dim % 2:
        raise _refused("head_dim", head_dim, "rotary embeddings turn pairs of channels: it must be even")
    return heads, kv_heads, head_dim


def _activation(values: _Fields, family: Family) -> str:
    name = "hidden_activation" if "hidden_activation" in family.defaults else "hidden_act"
    value = values.get(name)
    if isinstance(value, str) and value in ACTIVATIONS:
        return ACTIVATIONS[value]
    raise _refused(name, value, f"supported are {', '.join(ACTIVATIONS)}")


def _attention_scale(values: _Fields, family: Family, head_dim: int) -> float:
    own = "query_pre_attn_scalar" in family.defaults
    return (values.real("query_pre_attn_scalar", TINY, HUGE) if own else float(head_dim)) ** -0.5


def _layer_kinds(values: _Fields, family: Family, layers: int) -> tuple[str, ...]:
    """full_attention or sliding_attention, a layer each."""
    off = values.get("sliding_window") is None
    if "use_sliding_window" in family.defaults:
        off = off or not values.flag("use_sliding_window")
    given = values.get("layer_types")
    if given is not None:
        kinds = tuple(given) if isinstance(given, list | tuple) else ()
        if len(kinds) != layers or any(kind not in (FULL, LOCAL) for kind in kinds):
            raise _refused("layer_types", given, f"{layers} entries, each {FULL} or {LOCAL}, are needed")
        possible = {"none": {FULL}, "all": {FULL if off else LOCAL}, "some": {FULL} if off else {FULL, LOCAL}}
        if not possible[family.windows].issuperset(kinds):
            raise _refused("layer_types", given, f"{family.model_type} has none such, or its window is off")
        return kinds
    if family.windows == "none" or off:
        return (FULL,) * layers
    if family.windows == "all":
        return (LOCAL,) * layers
    if "sliding_window_pattern" in family.defaults:
        period = values.size("sliding_window_pattern")
        return tuple(LOCAL if (i + 1) % period else FULL for i in range(layers))
    full = min(values.size("max_window_layers", least=0), layers)
    return (FULL,) * full + (LOCAL,) * (layers - full)


def _rope(values: _Fields, kind: str) -> Rope:
    """The rotary embedding of layers of one kind."""
    name = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    given = values.get(name) or {}
    local = kind == LOCAL and "rope_local_base_freq" in values.values
    if isinstance(given, Mapping) and (FULL in given or LOCAL in given):
        name, given = f"{name}.{kind}", given.get(kind)
    elif local:
        given = {}  # a flat object speaks of the global layers where local ones have a base of their own
    if not isinstance(given, Mapping):
        raise _refused(name, given, "an object with rope_type and its parameters is needed")
    scaling = _Fields(given, f"{name}.")
    if given.get("rope_theta") is not None:
        return _scaled(values, scaling, scaling.real("rope_theta", 1.0, 1e15))
    return _scaled(values, scaling, values.real("rope_local_base_freq" if local else "rope_theta", 1.0, 1e15))


def _scaled(values: _Fields, given: _Fields, theta: float) -> Rope:
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise _refused(f"{given.where}rope_type", kind, "supported are default, linear, llama3 and yarn")
    part = given.get("partial_rotary_factor")
    if part not in UNSUPPORTED["partial_rotary_factor"]:
        raise _refused(f"{given.where}partial_rotary_factor", part, "only 1 is supported")
    if kind == "default":
        return Rope(theta)
    factor = given.real("factor", TINY, HUGE)
    if kind == "linear":
        return Rope(theta, "linear", (("factor", factor),))
    params = {"factor": factor, "original_positions": float(_original_positions(values, given))}
    if kind == "llama3":
        low = given.real("low_freq_factor", TINY, HUGE)
        params |= {"low_freq": low, "high_freq": given.real("high_freq_factor", low, HUGE)}
        return Rope(theta, "llama3", tuple(params.items()))
    slow = 1.0 if given.get("beta_slow") is None else given.real("beta_slow", TINY, HUGE)
    fast = 32.0 if given.get("beta_fast") is None else given.real("beta_fast", TINY, HUGE)
    whole = True if given.get("truncate") is None else given.flag("truncate")
    params |= {"beta_fast": fast, "beta_slow": slow, "truncate": float(whole)}
    return Rope(theta, "yarn", (*params.items(), ("attention_factor", _yarn_attention(given, factor))))


def _original_positions(values: _Fields, given: _Fields) -> int:
    """The context of pretraining: beside the rotary settings, which wins, inside them, or the whole one."""
    name = "original_max_position_embeddings"
    if values.get(name) is None and given.get(name) is not None:
        return given.size(name)
    return values.size("max_position_embeddings" if values.get(name) is None else name)


def _yarn_attention(given: _Fields, factor: float) -> float:
    """YaRN's temperature, as the factor on cos and sin (arXiv 2309.00071, eq. 22: 0.1 ln s + 1)."""
    if given.get("attention_factor") is not None:
        return given.real("attention_factor", TINY, HUGE)

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0

    if given.get("mscale") and given.get("mscale_all_dim"):
        return mscale(given.real("mscale", TINY, HUGE)) / mscale(given.real("mscale_all_dim", TINY, HUGE))
    return mscale(1.0)
