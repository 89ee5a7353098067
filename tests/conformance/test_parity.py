"""The torch decoder against transformers, on tiny models with random weights, for every family and its variants.

Tolerance. Both libraries evaluate the same function in float32, in different orders. The truth is transformers
run in float64 throughout. An error of ours of the size of transformers' own float32 error is rounding; a wrong
formula is orders of magnitude larger. So: our error ≤ 4 × max(transformers' float32 error, 2⁻²³·max|truth|).
The factor is the spread between two maxima of a few thousand roundings; the floor is one rounding of the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import transformers
from torch.overrides import TorchFunctionMode

from paretobit.arch.resolve import resolve
from paretobit.arch.spec import EMBED, FINAL_NORM, HEAD, Arch
from paretobit.compress import model as model_module
from paretobit.compress.model import Decoder, finish
from paretobit.compress.sampling import sample
from paretobit.errors import ParetobitError

TINY = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LONG = YARN | {"original_max_position_embeddings": 2048}
WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 7, "sliding_window_pattern": 2}

CASES = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 20}),
    "llama, one key-value head": ("llama", {"num_key_value_heads": 1}),
    "llama, no groups": ("llama", {"num_key_value_heads": 4}),
    "llama, gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama, linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
    "llama, llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, yarn, fractional": ("llama", {"rope_parameters": LONG | {"truncate": False}}),
    "llama, yarn, one step": (
        "llama",
        {"rope_parameters": LONG | {"truncate": False, "beta_fast": 9.0, "beta_slow": 9.0}},
    ),
    "llama, yarn, wide ramp": (
        "llama",
        {"rope_parameters": LONG | {"rope_theta": 100.0, "beta_slow": 0.02}},
    ),
    "llama, yarn, factor": ("llama", {"rope_parameters": YARN | {"attention_factor": 1.3}}),
    "llama, yarn, mscale": ("llama", {"rope_parameters": YARN | {"mscale": 1.4, "mscale_all_dim": 0.7}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {}),
    "qwen2, window, tied": ("qwen2", WINDOW | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, window, biases": ("qwen3", WINDOW | {"head_dim": 12, "attention_bias": True}),
    "gemma3": ("gemma3_text", GEMMA),
    "gemma3, linear, untied": (
        "gemma3_text",
        GEMMA | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "tie_word_embeddings": False},
    ),
}
EPSILON = 2.0**-23


class Float64(TorchFunctionMode):
    """transformers computes norms and rotations in float32 whatever the model's type; here they are float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if x is torch.float32 else x for x in args)
        kwargs = {k: torch.float64 if x is torch.float32 else x for k, x in (kwargs or {}).items()}
        return func(*args, **kwargs)


@dataclass
class Memory:
    """A checkpoint in memory, which remembers what was read of it."""

    arch: Arch
    tensors: dict[str, np.ndarray]
    reads: list[tuple[str, slice | None]] = field(default_factory=list)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        self.reads.append((name, rows))
        return self.tensors[name][rows if rows is not None else slice(None)].copy()


@dataclass
class Case:
    """One model three times: ours, transformers', and transformers' in float64, with the same weights."""

    memory: Memory
    hf: torch.nn.Module
    hf64: torch.nn.Module
    tokens: np.ndarray


def build(name: str) -> Case:
    model_type, changes = CASES[name]
    config = transformers.AutoConfig.for_model(model_type, **TINY | changes)
    torch.manual_seed(len(name))
    hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for key, p in hf.named_parameters():
            # The default initialization leaves biases 0, norms 1 and attention flat, and so hides every mistake
            # in them. These spread: scores of a few units, biases and norms that matter.
            if p.dim() == 2:
                p.normal_(std=1.0 if key == EMBED else 1.5 * p.shape[1] ** -0.5)
            else:
                around = 1.0 if key.endswith("norm.weight") and model_type != "gemma3_text" else 0.0
                p.normal_(around, 0.3)
    with Float64():
        hf64 = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().double()
        hf64.load_state_dict(hf.state_dict())
    arch = resolve(config.to_dict())
    tensors = {key: p.detach().numpy() for key, p in hf.named_parameters()}
    tokens = np.random.default_rng(0).integers(0, arch.vocab, (2, 40))
    return Case(Memory(arch, tensors), hf, hf64, tokens)


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {name: build(name) for name in CASES}
    torch.set_num_threads(threads)


@pytest.fixture(params=CASES)
def case(request, cases) -> Case:
    return cases[request.param]


def check(ours, theirs, truth) -> None:
    """See the tolerance above."""
    ours, theirs, truth = (np.asarray(x, np.float64) for x in (ours, theirs, truth))
    tolerance = 4 * max(np.abs(theirs - truth).max(), EPSILON * np.abs(truth).max())
    assert np.abs(ours - truth).max() <= tolerance


def reference(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        theirs = case.hf(torch.from_numpy(case.tokens)).logits
        with Float64():
            truth = case.hf64(torch.from_numpy(case.tokens)).logits
    assert truth.dtype == torch.float64
    return theirs, truth


def test_every_family_has_a_case():
    from paretobit.arch.resolve import families

    everyone = {family.model_type for group in families().values() for family in group}
    assert everyone == {model_type for model_type, _ in CASES.values()}


def test_arch_names_the_tensors_of_transformers(case):
    assert case.memory.arch.shapes() == {name: x.shape for name, x in case.memory.tensors.items()}


def test_logits_equal_transformers(case):
    check(Decoder(case.memory).logits(case.tokens), *reference(case))


def test_float32_error_is_rounding_and_not_zero(case):
    """The tolerance means something: the references differ by rounding, and by no more."""
    theirs, truth = reference(case)
    error = (theirs - truth).abs().max() / truth.abs().max()
    assert 2**-26 < error < 2**-14


def test_taps_are_the_inputs_of_their_consumers(case):
    """Names, order and widths are arch.taps'; what is yielded is what transformers' projections receive."""
    arch, decoder = case.memory.arch, Decoder(case.memory)
    seen: dict[tuple[int, str], torch.Tensor] = {}
    hooks = []
    for i, m in enumerate((case.hf, case.hf64)):
        for layer in range(arch.layers):
            for tap in arch.taps(layer):
                for consumer in tap.consumers:
                    module = m.get_submodule(consumer.removesuffix(".weight"))
                    keep = lambda module, args, key=(i, consumer): seen.update({key: args[0]})  # noqa: E731
                    hooks.append(module.register_forward_pre_hook(keep))
    reference(case)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        x = decoder.embed(torch.from_numpy(case.tokens))
        for layer in range(arch.layers):
            steps = decoder.block(layer, decoder.weights(layer), x)
            for tap in arch.taps(layer):
                name, activation, _ = next(steps)
                assert (name, activation.shape) == (tap.name, (*case.tokens.shape, tap.width))
                for consumer in tap.consumers:
                    check(activation, seen[0, consumer], seen[1, consumer])
            x = finish(steps)


@pytest.mark.parametrize("layer", [0, 2])
def test_weights_replaced_during_a_pause_take_effect(cases, layer):
    case = cases["gemma3"]
    arch, decoder = case.memory.arch, Decoder(case.memory)
    x = torch.randn(2, 9, arch.hidden, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = finish(decoder.block(layer, decoder.weights(layer), x))
        for at, tap in enumerate(arch.taps(layer)):
            changed = {name: decoder.weights(layer)[name].roll(1, 0) for name in tap.consumers}
            expected = finish(decoder.block(layer, decoder.weights(layer) | changed, x))
            weights = decoder.weights(layer)
            steps = decoder.block(layer, weights, x)
            for _ in range(at + 1):
                next(steps)
            weights.update(changed)
            assert torch.equal(finish(steps), expected)
            assert not torch.allclose(expected, plain)
        assert torch.equal(finish(decoder.block(layer, decoder.weights(layer), x)), plain)


@pytest.mark.parametrize("name", ["llama, biases", "qwen3, window, biases", "gemma3"])
def test_gradients_equal_transformers(cases, name):
    """Of every tensor of every block, through the head, for a random projection of the logits."""
    case = cases[name]
    tokens = torch.from_numpy(case.tokens)
    slope = torch.randn(*tokens.shape, case.memory.arch.vocab, generator=torch.Generator().manual_seed(2))
    (case.hf(tokens).logits * slope).sum().backward()
    with Float64():
        (case.hf64(tokens).logits * slope.double()).sum().backward()
    decoder = Decoder(case.memory)
    with torch.inference_mode():  # what inference has touched must still be trainable
        decoder.logits(case.tokens)
    layers = [decoder.weights(layer) for layer in range(decoder.arch.layers)]
    x = decoder.embed(tokens)
    for layer, weights in enumerate(layers):
        weights.update({key: w.detach().requires_grad_() for key, w in weights.items()})
        x = finish(decoder.block(layer, weights, x))
    (decoder.head(x) * slope).sum().backward()
    theirs, truth = (dict(m.named_parameters()) for m in (case.hf, case.hf64))
    for weights in layers:
        for key, w in weights.items():
            check(w.grad, theirs[key].grad, truth[key].grad)


@pytest.mark.parametrize("rows", [7, 4096])
def test_streaming_equals_keeping_bit_for_bit(case, monkeypatch, rows):
    monkeypatch.setattr(model_module, "HEAD_ROWS", rows)
    kept, streamed = (Decoder(case.memory, keep=keep).logits(case.tokens) for keep in (True, False))
    assert np.array_equal(kept.view(np.uint32), streamed.view(np.uint32))


def test_streaming_reads_only_what_it_needs(cases, monkeypatch):
    case = cases["llama"]
    decoder = Decoder(case.memory, keep=False)
    monkeypatch.setattr(model_module, "HEAD_ROWS", 40)
    case.memory.reads.clear()
    decoder.embed(torch.tensor([[9, 3, 4, 9], [5, 96, 0, 3]]))
    assert case.memory.reads == [(EMBED, slice(a, b)) for a, b in ((0, 1), (3, 6), (9, 10), (96, 97))]
    case.memory.reads.clear()
    decoder.head(torch.zeros(1, 1, decoder.arch.hidden))
    assert case.memory.reads == [
        (FINAL_NORM, None),
        (HEAD, slice(0, 40)),
        (HEAD, slice(40, 80)),
        (HEAD, slice(80, 97)),
    ]


def test_keeping_reads_each_tensor_once(cases):
    memory = Memory(cases["llama, tied"].memory.arch, cases["llama, tied"].memory.tensors)
    decoder = Decoder(memory)
    for _ in range(2):
        decoder.logits(cases["llama, tied"].tokens)
    assert sorted(memory.reads, key=str) == sorted(((name, None) for name in memory.tensors), key=str)


def test_first_skips_positions(case):
    """The same numbers up to one matrix product, whose rounding may depend on how many rows it has: each logit
    is a sum of `hidden` products, so hidden·2⁻²⁴·Σ|x||w| bounds it; Σ|x||w| ≤ |x|·|w| by Cauchy and Schwarz."""
    decoder = Decoder(case.memory)
    whole, part = decoder.logits(case.tokens), decoder.logits(case.tokens, first=13)
    with torch.no_grad():
        x = decoder.head_input(decoder.hidden(torch.from_numpy(case.tokens)))
    w = torch.from_numpy(case.memory.tensors[EMBED if case.memory.arch.tied else HEAD])
    bound = case.memory.arch.hidden * EPSILON * float(x.norm(dim=-1).max() * w.norm(dim=-1).max())
    assert part.shape == (2, 27, 97) and part.dtype == np.float32
    assert np.abs(part - whole[:, 13:]).max() <= bound


def test_greedy_generation_equals_repeated_full_passes(case):
    """Prompts of three lengths, shorter and longer than the window of 7, 12 new tokens each."""
    decoder = Decoder(case.memory)
    prompts = [case.tokens[0, :5].tolist(), case.tokens[1, :11].tolist(), case.tokens[1, 20:25].tolist(), [3]]
    for prompt, out in zip(prompts, decoder.generate(prompts, 12), strict=True):
        text = list(prompt)
        for _ in range(12):
            text.append(int(decoder.logits(np.array([text]), first=len(text) - 1).argmax()))
        assert out == text[len(prompt) :]


def test_a_cache_filled_in_pieces_equals_one_pass(case):
    """Prefill in pieces of 1, 9 and 30 positions: a piece sees the cache before it, inside the window.

    The same function in another order, so the tolerance is that of transformers' own rounding."""
    arch, decoder = case.memory.arch, Decoder(case.memory)
    tokens = torch.from_numpy(case.tokens)
    shape = (2, arch.kv_heads, 40, arch.head_dim)
    caches = [(torch.full(shape, float("nan")), torch.full(shape, float("nan"))) for _ in range(arch.layers)]
    with torch.no_grad():
        pieces = [decoder.hidden(tokens[:, a:b], caches, a) for a, b in ((0, 1), (1, 10), (10, 40))]
        logits = decoder.head(torch.cat(pieces, 1))
    check(logits, *reference(case))


def test_generation_ends_before_the_first_end_token(cases):
    decoder = Decoder(cases["llama"].memory)
    prompts = [[5, 6], [7, 8], [1, 2, 3]]
    free = decoder.generate(prompts, 10)
    ends = (free[0][4], free[2][2])
    cut = decoder.generate(prompts, 10, eos_ids=ends)
    for whole, part in zip(free, cut, strict=True):
        stops = [i for i, token in enumerate(whole) if token in ends]
        assert part == whole[: stops[0] if stops else None]
    assert len(cut[0]) <= 4 and len(cut[2]) <= 2


def test_sampling_is_seeded(cases):
    decoder = Decoder(cases["llama"].memory)
    prompts = [[i] for i in range(16)]
    a, b, c = (decoder.generate(prompts, 8, temperature=1.0, seed=seed) for seed in (0, 0, 1))
    assert a == b != c
    assert decoder.generate(prompts, 0, temperature=1.0) == [[]] * 16


def test_sampling_follows_the_softmax():
    """Counts of 40,000 draws against their binomial spread; 6 sigma, so a right sampler fails once in 10⁸."""
    logits = torch.tensor([2.0, -1.0, 0.5, float("-inf"), 0.0, -30.0])
    n, temperature = 40_000, 0.7
    draws = sample(logits.expand(n, -1), temperature, torch.Generator().manual_seed(0))
    p = torch.softmax(logits.double() / temperature, -1)
    counts = torch.bincount(draws, minlength=6)
    assert ((counts - n * p).abs() <= 6 * (n * p * (1 - p)).sqrt() + 1e-9).all()
    assert counts[3] == 0


def test_sampling_at_the_edges(monkeypatch):
    """The smallest and the largest random number still choose a token that has a probability."""
    logits = torch.tensor([[float("-inf"), 0.0, 1.0, float("-inf")]])
    for u, token in ((0.0, 1), (1.0, 2)):  # 1.0 stands for a u that rounding has carried there
        monkeypatch.setattr(torch, "rand", lambda *shape, u=u, **options: torch.tensor([[u]]).double())
        assert sample(logits, 1.0, torch.Generator()).item() == token
    cold = sample(torch.tensor([[1.0, 3.0, 2.9]]), 1e-30, torch.Generator())
    assert cold.item() == 1


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "empty prompt"),
        ([[1] * 120], {}, "context of 128"),
        ([[97]], {}, "0 to 96"),
        ([[-1]], {}, "0 to 96"),
        ([[1]], {"temperature": -1.0}, "temperature -1.0"),
        ([[1]], {"temperature": float("nan")}, "temperature nan"),
    ],
)
def test_bad_requests_name_what_is_wrong(cases, prompts, options, message):
    with pytest.raises(ParetobitError, match=message):
        Decoder(cases["llama"].memory).generate(prompts, 10, **options)


def test_text_beyond_the_context_is_refused(cases):
    decoder = Decoder(cases["llama"].memory)
    decoder.logits(np.zeros((1, 128), np.int64))
    with pytest.raises(ParetobitError, match="129 tokens are beyond the model's context of 128"):
        decoder.logits(np.zeros((1, 129), np.int64))
