"""Resolving configs: published ones in both spellings, wrong ones, hostile ones."""

from __future__ import annotations

import copy
import importlib
import json

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import paretobit.arch
from paretobit.arch.resolve import MOST, families, known, resolve
from paretobit.arch.rope import frequencies
from paretobit.arch.spec import EMBED, Arch, Rope
from paretobit.errors import ParetobitError

LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def sizes(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int, context: int) -> dict:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
    }


# What the publishers' config.json files say, as far as it matters here.
SMOLLM2 = sizes(576, 1536, 30, 9, 3, 49152, 8192) | {
    "model_type": "llama",
    "attention_bias": False,
    "hidden_act": "silu",
    "mlp_bias": False,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
}
LLAMA32 = SMOLLM2 | sizes(2048, 8192, 16, 32, 8, 128256, 131072)
LLAMA32 |= {"head_dim": 64, "rope_scaling": LLAMA3, "rope_theta": 500000.0}
MISTRAL = sizes(4096, 14336, 32, 32, 8, 32000, 32768) | {
    "model_type": "mistral",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
}
QWEN2 = sizes(896, 4864, 24, 14, 2, 151936, 32768) | {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_window_layers": 21,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}
QWEN3 = QWEN2 | sizes(1024, 3072, 28, 16, 8, 151936, 40960)
QWEN3 |= {"model_type": "qwen3", "attention_bias": False, "head_dim": 128, "sliding_window": None}
GEMMA3_270M = sizes(640, 2048, 18, 4, 1, 262144, 32768) | {
    "model_type": "gemma3_text",
    "_sliding_window_pattern": 6,
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "use_bidirectional_attention": False,
}
GEMMA3_4B = {  # all that the text_config of the multimodal model says
    "model_type": "gemma3_text",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}
PUBLISHED = {
    "SmolLM2-135M": SMOLLM2,
    "Llama-3.2-1B": LLAMA32,
    "a llama with biases": SMOLLM2 | {"attention_bias": True, "mlp_bias": True},
    "Mistral-7B-v0.1": MISTRAL,
    "Mistral-7B-v0.3": MISTRAL | {"sliding_window": None, "vocab_size": 32768, "rope_theta": 1e6},
    "Qwen2.5-0.5B": QWEN2,
    "Qwen2.5 with its window": QWEN2 | {"use_sliding_window": True},
    "Qwen2.5 with yarn": QWEN2
    | {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}},
    "Qwen3-0.6B": QWEN3,
    "gemma-3-270m": GEMMA3_270M,
    "gemma-3-4b": GEMMA3_4B,
}


def modern(config: dict) -> dict:
    """The same config as transformers 5 writes it."""
    config = copy.deepcopy(config)
    return transformers.AutoConfig.for_model(config.pop("model_type"), **config).to_dict()


@pytest.fixture(params=PUBLISHED)
def published(request) -> dict:
    return PUBLISHED[request.param]


def test_both_spellings_resolve_to_the_same(published):
    new = modern(published)
    assert "rope_parameters" in new and "rope_theta" not in new
    assert resolve(new) == resolve(published)
    # config.json keeps layer_types; without them they follow from the other fields
    assert resolve({k: v for k, v in new.items() if k != "layer_types"}) == resolve(published)


def test_shapes_are_those_of_transformers(published):
    config = transformers.AutoConfig.for_model(**modern(published))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert resolve(published).shapes() == {name: p.shape for name, p in model.named_parameters()}


def test_taps_name_tensors_of_their_block(published):
    arch = resolve(published)
    for layer in (0, arch.layers - 1):
        shapes, consumers = arch.block_shapes(layer), []
        for tap in arch.taps(layer):
            assert tap.producer in shapes
            assert all(shapes[name][1] == tap.width for name in tap.consumers)
            consumers += tap.consumers
        assert sorted(consumers) == sorted(name for name, shape in shapes.items() if len(shape) == 2)


def test_smollm2_by_hand():
    assert resolve(SMOLLM2) == Arch(
        model_type="llama",
        hidden=576,
        intermediate=1536,
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        vocab=49152,
        norm_eps=1e-5,
        activation="silu",
        attn_scale=0.125,
        embed_scale=1.0,
        max_positions=8192,
        tied=True,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        post_norms=False,
        norm_offset=0.0,
        ropes=(Rope(1e5),) * 30,
        windows=(None,) * 30,
        small_kv=True,
    )


def test_traits_of_the_families():
    qwen2, window = resolve(QWEN2), resolve(QWEN2 | {"use_sliding_window": True})
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.qk_norm) == (True, False, False)
    assert window.windows == (None,) * 21 + (32768,) * 3
    assert resolve(MISTRAL).windows == (4096,) * 32
    qwen3 = resolve(QWEN3)
    assert (qwen3.qk_norm, qwen3.head_dim, qwen3.attn_scale) == (True, 128, 128**-0.5)
    gemma = resolve(GEMMA3_4B)
    assert (gemma.heads, gemma.kv_heads, gemma.vocab, gemma.tied) == (8, 4, 262208, True)
    assert (gemma.norm_offset, gemma.post_norms, gemma.embed_scale) == (1.0, True, 2560**0.5)
    assert gemma.windows[:7] == (1024, 1024, 1024, 1024, 1024, None, 1024)
    assert gemma.ropes[4:6] == (Rope(1e4), Rope(1e6, "linear", (("factor", 8.0),)))


def test_a_multimodal_config_means_its_text_model():
    text = {k: v for k, v in GEMMA3_4B.items() if k != "model_type"}
    expected = resolve(GEMMA3_4B)
    for inner in (text, GEMMA3_4B):
        assert resolve({"model_type": "gemma3", "text_config": inner, "vision_config": {}}) == expected
    untied = {"model_type": "gemma3", "text_config": text, "tie_word_embeddings": False}
    assert not resolve(untied).tied
    for text_config, message in (
        (SMOLLM2, "text_config.model_type is 'llama'"),
        ([], r"text_config is \[\]"),
        ({"text_config": {}}, "text_config is"),
    ):
        with pytest.raises(ParetobitError, match=message):
            resolve({"model_type": "gemma3", "text_config": text_config})


def test_families_by_gguf_architecture():
    assert [f.model_type for f in families()["llama"]] == ["llama", "mistral"]
    assert set(families()) == {"llama", "qwen2", "qwen3", "gemma3"}
    assert known()["gemma3"] is known()["gemma3_text"] is families()["gemma3"][0]


def test_a_file_in_the_folder_is_a_family(tmp_path, monkeypatch):
    (tmp_path / "zephyr.py").write_text(
        "from paretobit.arch.spec import Family\n"
        "FAMILY = Family('zephyr', 'llama', defaults={'hidden_act': 'silu', 'rope_theta': 1e4})\n"
    )
    monkeypatch.setattr(paretobit.arch, "__path__", [*paretobit.arch.__path__, str(tmp_path)])
    families.cache_clear(), known.cache_clear()
    try:
        assert resolve(SMOLLM2 | {"model_type": "zephyr"}).model_type == "zephyr"
        assert [f.model_type for f in families()["llama"]] == ["llama", "mistral", "zephyr"]
    finally:
        families.cache_clear(), known.cache_clear()


@pytest.mark.parametrize("model_type", ["gpt_neox", "", None, 7, ["llama"]])
def test_an_unknown_model_type_names_the_known_ones(model_type):
    with pytest.raises(ParetobitError) as error:
        resolve(SMOLLM2 | {"model_type": model_type})
    assert repr(model_type) in error.value.message
    assert all(name in error.value.hint for name in ("llama", "mistral", "qwen2", "qwen3", "gemma3"))


NAN, INF = float("nan"), float("inf")
SCALING = {"rope_type": "linear", "factor": 2.0}
BAD = [
    *((SMOLLM2, name, bad) for name in ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size")
      for bad in (0, -1, True, None, 576.0, NAN, "576", [576], 1 << 40, 10**5000)),
    (SMOLLM2, "num_attention_heads", 0),
    (SMOLLM2, "num_attention_heads", 10),  # does not divide 576
    (SMOLLM2, "num_key_value_heads", 2),
    (SMOLLM2, "num_key_value_heads", 0),
    (SMOLLM2, "num_key_value_heads", 18),
    (SMOLLM2, "head_dim", 63),
    (SMOLLM2, "head_dim", -64),
    (SMOLLM2, "max_position_embeddings", False),
    *((SMOLLM2, "rms_norm_eps", bad) for bad in (0, -1e-5, NAN, INF, "1e-5", None, True, 2)),
    *((SMOLLM2, "rope_theta", bad) for bad in (1.0, -1e4, NAN, INF, None, "1e4", 10**400)),
    *((SMOLLM2, "hidden_act", bad) for bad in ("gelu", "relu", None, 3, ["silu"])),
    (GEMMA3_4B, "hidden_activation", "gelu"),
    *((SMOLLM2, name, bad) for name in ("tie_word_embeddings", "attention_bias", "mlp_bias") for bad in (1, "true")),
    *((GEMMA3_4B, "query_pre_attn_scalar", bad) for bad in (0, -1, NAN, None)),
    (GEMMA3_4B, "sliding_window", 0),
    (GEMMA3_4B, "sliding_window", "512"),
    (GEMMA3_4B, "sliding_window_pattern", 0),
    (GEMMA3_4B, "rope_local_base_freq", NAN),
    (QWEN2, "use_sliding_window", 1),
    (QWEN2 | {"use_sliding_window": True}, "max_window_layers", -1),
    (QWEN2, "layer_types", ["sliding_attention"] * 24),  # the window is off
    (MISTRAL, "layer_types", ["full_attention"] * 32),  # every layer has the window
    (SMOLLM2, "layer_types", ["sliding_attention"] * 30),
    (GEMMA3_270M, "layer_types", ["full_attention"] * 17),
    (GEMMA3_270M, "layer_types", ["chunked_attention"] * 18),
    (GEMMA3_270M, "layer_types", [[]] * 18),
    (GEMMA3_270M, "layer_types", "full_attention"),
    (GEMMA3_270M, "attn_logit_softcapping", 50.0),
    (GEMMA3_270M, "final_logit_softcapping", 30.0),
    (GEMMA3_270M, "use_bidirectional_attention", True),
    (SMOLLM2, "partial_rotary_factor", 0.5),
    (SMOLLM2, "rope_scaling", "linear"),
    (SMOLLM2, "rope_parameters", [1]),
]  # fmt: skip
BAD_SCALING = [
    ("rope_type", {"rope_type": "dynamic", "factor": 2.0}),
    ("rope_type", {"rope_type": "longrope"}),
    ("rope_type", {"rope_type": ["linear"]}),
    ("rope_type", {"type": "mrope", "mrope_section": [1]}),
    ("rope_theta", SCALING | {"rope_theta": NAN}),
    ("partial_rotary_factor", SCALING | {"partial_rotary_factor": 0.25}),
    *(("factor", SCALING | {"factor": bad}) for bad in (0, -1, NAN, INF, None, True, "8", 5e-324)),
    ("factor", {"rope_type": "yarn"}),
    ("low_freq_factor", LLAMA3 | {"low_freq_factor": 0}),
    ("high_freq_factor", LLAMA3 | {"high_freq_factor": 1.0}),  # not above low_freq_factor
    ("high_freq_factor", LLAMA3 | {"high_freq_factor": None}),
    ("original_max_position_embeddings", LLAMA3 | {"original_max_position_embeddings": 0.5}),
    ("beta_fast", {"rope_type": "yarn", "factor": 2.0, "beta_fast": 0}),
    ("beta_slow", {"rope_type": "yarn", "factor": 2.0, "beta_slow": 5e-324}),
    ("truncate", {"rope_type": "yarn", "factor": 2.0, "truncate": 1}),
    ("attention_factor", {"rope_type": "yarn", "factor": 2.0, "attention_factor": -1.0}),
    ("mscale", {"rope_type": "yarn", "factor": 2.0, "mscale": "1", "mscale_all_dim": 1.0}),
]


@pytest.mark.parametrize(("config", "name", "value"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_a_bad_field_is_named(config, name, value):
    with pytest.raises(ParetobitError, match=name) as error:
        resolve(config | {name: value})
    assert len(str(error.value)) < 300 and error.value.hint


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(("name", "scaling"), BAD_SCALING, ids=lambda x: x if isinstance(x, str) else "")
def test_a_bad_rotary_setting_is_named(spelling, name, scaling):
    with pytest.raises(ParetobitError, match=name):
        resolve(SMOLLM2 | {spelling: scaling})
    with pytest.raises(ParetobitError, match=f"{spelling}.full_attention"):
        resolve(GEMMA3_270M | {spelling: {"full_attention": scaling, "sliding_attention": {}}})


@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "vocab_size", "intermediate_size"])
def test_a_missing_size_is_named(name):
    with pytest.raises(ParetobitError, match=f"{name} is None"):
        resolve({k: v for k, v in SMOLLM2.items() if k != name})


@pytest.mark.parametrize("config", [None, [], "llama", 7])
def test_a_config_must_be_an_object(config):
    with pytest.raises(ParetobitError, match="not an object"):
        resolve(config)


SCALARS = st.none() | st.booleans() | st.integers(-2, 1 << 70) | st.floats() | st.text(max_size=9)
ANY = st.recursive(SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=9), x, max_size=3))
ROTARY = ("rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "truncate", "beta_fast",
          "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "original_max_position_embeddings")  # fmt: skip
SCALINGS = st.dictionaries(st.sampled_from(ROTARY), SCALARS) | st.builds(
    lambda kind, rest: rest | {"rope_type": kind, "factor": 2.0},
    st.sampled_from(["linear", "llama3", "yarn"]),
    st.dictionaries(st.sampled_from(ROTARY), st.floats(1e-7, 1e7)),
)


@settings(deadline=None)  # a shared machine pauses
@given(st.data())
def test_hostile_configs_resolve_or_are_refused(data):
    """Whatever a field holds: an Arch that is sound, whose frequencies are finite, or a ParetobitError."""
    config = data.draw(st.sampled_from(list(PUBLISHED.values())))
    names = st.sampled_from([*config, *MOST, "text_config", "layer_types"])
    config = config | data.draw(st.dictionaries(names, ANY, max_size=2))
    if data.draw(st.booleans()):
        config["rope_scaling"] = data.draw(SCALINGS)
    config = json.loads(json.dumps(config))
    try:
        arch = resolve(config)
    except ParetobitError as error:
        assert len(str(error)) < 300
        return
    assert len(arch.ropes) == len(arch.windows) == arch.layers <= MOST["num_hidden_layers"]
    assert arch.shapes()[EMBED] == (arch.vocab, arch.hidden)
    for rope in set(arch.ropes):
        radians, factor = frequencies(rope, arch.head_dim)
        assert len(radians) == arch.head_dim // 2
        assert all(0 <= f <= 1e6 for f in radians) and 0 < factor <= 1e6


@pytest.mark.parametrize("name", ["SmolLM2-135M", "Llama-3.2-1B", "Qwen2.5 with yarn", "gemma-3-270m", "gemma-3-4b"])
def test_frequencies_are_those_of_transformers(name):
    """theirs are float32 powers: rounding 2i/d to 2⁻²⁴ moves theta^(2i/d) by ln(theta)·2⁻²⁴ < 14·2⁻²⁴ relatively;
    the power, the reciprocal and the scaling round a few times more. 20·2⁻²⁴ covers all of it."""
    arch, config = resolve(PUBLISHED[name]), transformers.AutoConfig.for_model(**modern(PUBLISHED[name]))
    modeling = importlib.import_module(type(config).__module__.replace("configuration", "modeling"))
    rotary = next(x for n, x in vars(modeling).items() if n.endswith("RotaryEmbedding"))(config)
    for layer in (0, 5):
        kind = f"{config.layer_types[layer]}_" if "gemma" in arch.model_type else ""
        theirs = getattr(rotary, f"{kind}inv_freq")
        radians, factor = frequencies(arch.ropes[layer], arch.head_dim)
        assert radians == pytest.approx(theirs.tolist(), rel=20 * 2**-24)
        assert factor == pytest.approx(getattr(rotary, f"{kind}attention_scaling"), rel=1e-12)
