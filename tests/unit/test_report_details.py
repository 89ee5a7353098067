"""What eval keeps beside its figures, against brute force, and the file that holds it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import paretobit as pb
from paretobit.checkpoint import open_model
from paretobit.compress.model import Decoder
from paretobit.errors import ParetobitError
from paretobit.evals.divergence import WORST_WINDOWS, compare
from paretobit.evals.text import WINDOW, encode_windows, read_text
from paretobit.evals.writing import PROMPTS, greedy
from paretobit.reports import details
from paretobit.runtime.tokenizer import Tokenizer
from paretobit.verbs.details import BINS, CONTINUED, FIRST, STEP, continuations, details_of, spread_of
from tests.reports import pack, some_details

VOCAB, SIZE = 23, 16


def bigram(table: np.ndarray):
    return lambda tokens, first: table[tokens[:, first:]]


@pytest.fixture(scope="module")
def packed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(model, tmp_path_factory.mktemp("details") / "small", "w2g16")


@pytest.mark.parametrize("seed", range(5))
def test_the_worst_windows_against_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    theirs = (3 * random.standard_normal((VOCAB, VOCAB))).astype(np.float32)
    ours = theirs + random.standard_normal((VOCAB, VOCAB)).astype(np.float32)
    windows = random.integers(0, VOCAB, (20, SIZE))
    first = SIZE // 2
    flips = (ours.argmax(1) != theirs.argmax(1))[windows[:, first:-1]].sum(1)
    found = compare(bigram(ours), windows, bigram(theirs))
    assert len(found.worst) == WORST_WINDOWS
    wanted = sorted(range(20), key=lambda i: (-flips[i], i))[:WORST_WINDOWS]
    assert [window.index for window in found.worst] == wanted
    assert found.kl is not None
    for window in found.worst:
        now = windows[window.index, first:-1]
        assert window.flips == flips[window.index] and (window.tokens == windows[window.index]).all()
        assert (window.top == ours[now].argmax(1)).all() and (window.reference_top == theirs[now].argmax(1)).all()
        for table, p in ((ours, window.p), (theirs, window.reference_p)):
            exps = np.exp(table[now].astype(np.float64))
            # Two roundings and an exponential of float32 in each of VOCAB terms: 8 · 2^-24 and some.
            assert np.allclose(p, exps.max(1) / exps.sum(1), rtol=1e-5, atol=0)
        assert (window.kl == found.kl.reshape(20, -1)[window.index]).all()
    assert set(found.per_window) == set(compare(bigram(ours), windows, bigram(theirs)).per_window)
    assert not any("top" in name and name != "same_top1" for name in found.per_window)
    assert compare(bigram(ours), windows).worst == ()


def test_the_histogram_against_brute_force() -> None:
    kl = np.abs(np.random.default_rng(0).standard_normal(5000)) ** 6
    kl[:4] = 0.0, 1e-300, 1e6, 10**FIRST
    found = spread_of(kl)
    assert sum(found.counts) == 5000 and len(found.counts) == BINS
    for i, count in enumerate(found.counts):
        low = 0.0 if i == 0 else 10 ** (FIRST + STEP * i)
        high = np.inf if i == BINS - 1 else 10 ** (FIRST + STEP * (i + 1))
        assert count == ((low <= kl) & (kl < high)).sum(), i
    for share, nats in found.quantiles:
        assert nats == pytest.approx(np.quantile(kl, share))


def test_greedy_writes_what_the_decoder_writes_with_its_cache(model: Path) -> None:
    source = open_model(model)
    decoder, tokenizer = Decoder(source), Tokenizer(source.companions)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    assert len({len(prompt) for prompt in prompts}) > 3  # filled up to the longest
    for ends in ((), tokenizer.eos_ids, tuple(range(0, 200, 3))):
        assert greedy(decoder.logits, prompts, 12, ends) == decoder.generate(prompts, 12, eos_ids=ends)


def test_details_of_an_evaluation(packed: Path, model: Path, text: Path) -> None:
    made, source = pb.Artifact(packed), open_model(model)
    tokenizer = Tokenizer(source.companions)
    windows = encode_windows(tokenizer, read_text(text), WINDOW, 3)
    models = Decoder(source).logits, Decoder(made).logits
    compared = compare(models[1], windows, models[0])
    written = continuations(("original", "packed"), models, tokenizer, 512, made.arch.vocab)
    found = details_of(made, compared, tokenizer, "tiny", "command", written)
    assert written[1] is None and [each.prompt for each in found.continuations] == [PROMPTS[i] for i in CONTINUED]
    assert (found.artifact, len(found.windows)) == (made.hash, WORST_WINDOWS)
    for window, seen in zip(found.windows, compared.worst, strict=True):
        assert len(window.tokens) == 255 and window.flips == seen.flips > 0
        said = "".join(token.text for token in window.tokens)
        assert tokenizer.decode(windows[window.window].tolist()).endswith(said) and len(said) > 255
        for i, token in enumerate(window.tokens):
            target = windows[window.window, 257 + i]
            assert (token.original is not None) == (seen.top[i] != seen.reference_top[i])
            assert (token.right == "original") == (token.original is not None and seen.reference_top[i] == target)
            assert (token.right == "quantized") == (token.original is not None and seen.top[i] == target)


def test_why_nothing_is_written(model: Path) -> None:
    source = open_model(model)
    tokenizer, logits = Tokenizer(source.companions), Decoder(source).logits
    texts, why = continuations(("a", "b"), (logits, logits), tokenizer, 30, 9999)
    assert texts == [] and why is not None and "do not fit a context of 30" in why

    assert "beyond the model's 3" in (continuations(("a", "b"), (logits, logits), tokenizer, 512, 3)[1] or "")

    def broken(tokens: np.ndarray, first: int) -> np.ndarray:
        raise ParetobitError("the machine is on fire", hint="leave")

    assert continuations(("a", "b"), (logits, broken), tokenizer, 512, 9999) == (
        [],
        "b does not go on: the machine is on fire",
    )


def test_the_file_comes_back(packed: Path, tmp_path: Path) -> None:
    assert details.read(tmp_path) is None
    for word in (" word", "é\n\t", "\ud800", "</script>", ""):
        wanted = some_details(packed, word)
        details.write(tmp_path, wanted)
        assert details.read(tmp_path) == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["details.json"]
    facts = json.loads((tmp_path / "details.json").read_text())
    assert facts["version"] == 1 and "original" not in facts["windows"][0]["tokens"][0]


def test_a_file_that_would_be_too_large_is_not_written(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ParetobitError, match="would take"):
        details.write(tmp_path, some_details(packed, "x" * details.MOST_BYTES))
    assert not list(tmp_path.iterdir())
