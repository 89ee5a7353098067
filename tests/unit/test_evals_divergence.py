"""Divergence and perplexity against brute force in float64 on tiny vocabularies."""

import json
import math

import numpy as np
import pytest

from paretobit.errors import ParetobitError
from paretobit.evals import perplexity
from paretobit.evals.divergence import Comparison, compare, paired
from paretobit.evals.perplexity import mean_stderr, ratio_stderr

VOCAB, SIZE, COUNT = 37, 16, 5
CONTRACT = {"perplexity", "kl_divergence", "same_top1", "next_token_accuracy", "tokens", "protocol"}


def bigram(table):
    """Logits of position i are row tokens[i] of the table."""
    return lambda tokens, first: np.asarray(table, dtype=np.float32)[tokens[:, first:]]


def case(seed=0, spread=4.0, change=0.7, vocab=VOCAB, count=COUNT):
    rng = np.random.default_rng(seed)
    theirs = (spread * rng.standard_normal((vocab, vocab))).astype(np.float32)
    ours = theirs + (change * rng.standard_normal((vocab, vocab))).astype(np.float32)
    cut = rng.integers(0, vocab, (count, SIZE))
    for i in range(1, SIZE):  # every other token is what the original expects: there are hits and misses
        cut[:, i] = np.where(rng.random(count) < 0.5, theirs[cut[:, i - 1]].argmax(axis=1), cut[:, i])
    return ours, theirs, cut


def brute(ours, theirs, cut):
    """Every score, token by token, straight from the definitions in float64: name -> (windows, scored)."""
    out = {name: [] for name in ("nll", "hit", "reference_nll", "reference_hit", "kl", "same", "delta")}
    for window in cut:
        for i in range(SIZE // 2, SIZE - 1):
            now, following = int(window[i]), int(window[i + 1])
            x, y = theirs[now].astype(np.float64), ours[now].astype(np.float64)
            p, q = np.exp(x) / np.exp(x).sum(), np.exp(y) / np.exp(y).sum()
            out["nll"].append(-math.log(q[following]))
            out["reference_nll"].append(-math.log(p[following]))
            out["hit"].append(float(np.argmax(y) == following))
            out["reference_hit"].append(float(np.argmax(x) == following))
            out["kl"].append(sum(p[v] * math.log(p[v] / q[v]) for v in range(len(p))))
            out["same"].append(float(np.argmax(x) == np.argmax(y)))
            out["delta"].append(q[following] - p[following])
    return {name: np.reshape(values, (len(cut), -1)) for name, values in out.items()}


def bounds(ours, theirs):
    """The largest error of nll and of KL that float32 passes can make.

    With u = 2^-24: x - peak is rounded once, an absolute error of u·R where R is the range of a row's
    logits; numpy's float32 exp is within 3 ulp = 6u. So each exp, and with it Z, is off by a relative
    d = (R + 6)u, and ln Z by d. In the KL, the sum of e^x·(x - y)/Z_x has weights off by 2d and gaps and
    products by 2u, all times the largest gap G, and two ln Z add 2d.
    """
    u = 2.0**-24
    reach = max(float(np.ptp(table, axis=1).max()) for table in (ours, theirs))
    gap = float(np.abs(ours.astype(np.float64) - theirs).max())
    d = (reach + 6) * u
    return d, (2 * d + 2 * u) * gap + 2 * d


def test_every_score_equals_brute_force():
    ours, theirs, cut = case()
    nll_bound, kl_bound = bounds(ours, theirs)
    found, true = compare(bigram(ours), cut, bigram(theirs)), brute(ours, theirs, cut)
    assert np.abs(found.kl - true["kl"].reshape(-1)).max() < kl_bound < 1e-4
    for name in ("nll", "reference_nll"):
        assert np.abs(found.per_window[name] - true[name].mean(axis=1)).max() < nll_bound < 1e-5
    # Shares are exact. A probability is e^-nll ≤ 1, so Δp is off by b = 2·nll_bound, its square by 2b + b².
    for name, key in (("hit", "hit"), ("reference_hit", "reference_hit"), ("same_top1", "same")):
        assert found.per_window[name].tolist() == true[key].mean(axis=1).tolist()
    squared = (true["delta"] ** 2).mean(axis=1)
    assert np.abs(found.per_window["squared_delta_p"] - squared).max() < 4 * nll_bound + 4 * nll_bound**2
    assert (found.tokens, found.windows) == (COUNT * 7, COUNT)
    assert 0 < found.per_window["hit"].mean() < 1  # the case tells hits from misses
    assert 0 < found.per_window["same_top1"].mean() < 1


def test_aggregates_follow_from_the_tokens():
    ours, theirs, cut = case(1)
    found, true = compare(bigram(ours), cut, bigram(theirs)), brute(ours, theirs, cut)
    close = {"rel": 1e-5}  # bounds() is 3e-6 here, relative to values of order one
    out = found.to_json()
    assert out["perplexity"] == pytest.approx(math.exp(true["nll"].mean()), **close)
    assert out["reference_perplexity"] == pytest.approx(math.exp(true["reference_nll"].mean()), **close)
    assert out["rms_delta_p"] == pytest.approx(math.sqrt((true["delta"] ** 2).mean()), **close)
    ordered = sorted(true["kl"].reshape(-1))
    for key, share in (("median", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)):
        low = share * (len(ordered) - 1)  # linear between the neighbours
        below, above = ordered[math.floor(low)], ordered[math.ceil(low)]
        quantile = below + (low - math.floor(low)) * (above - below)
        assert out["kl_divergence"][key] == pytest.approx(quantile, **close)
    assert out["kl_divergence"]["mean"] == pytest.approx(true["kl"].mean(), **close)


def stderr(values):
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def test_standard_errors_are_over_windows_and_paired():
    ours, theirs, cut = case(2, count=9)
    found, true = compare(bigram(ours), cut, bigram(theirs)), brute(ours, theirs, cut)
    out, close = (
        found.to_json(),
        {"rel": 1e-4},
    )  # differences of window means: 3e-6 against spreads of order 0.1
    assert out["kl_divergence"]["stderr"] == pytest.approx(stderr(true["kl"].mean(axis=1)), **close)
    assert out["same_top1_stderr"] == pytest.approx(stderr(true["same"].mean(axis=1)), **close)
    assert out["next_token_accuracy_stderr"] == pytest.approx(stderr(true["hit"].mean(axis=1)), **close)
    gain = (true["nll"] - true["reference_nll"]).mean(axis=1)
    assert out["ln_perplexity_ratio"] == pytest.approx(gain.mean(), **close)
    assert out["ln_perplexity_ratio_stderr"] == pytest.approx(stderr(gain), **close)
    expected = math.exp(true["nll"].mean()) * stderr(true["nll"].mean(axis=1))
    assert out["perplexity_stderr"] == pytest.approx(expected, **close)


def test_ratio_error_equals_a_numerical_infinitesimal_jackknife():
    # The delta method is the variance of the ratio's slopes in the samples' weights: take them numerically.
    rng = np.random.default_rng(3)
    bottom = rng.uniform(0.2, 0.6, 30)
    top = 0.9 * bottom + rng.normal(0, 0.02, 30)
    ratio, found = ratio_stderr(top, bottom)
    assert ratio == pytest.approx(top.sum() / bottom.sum(), rel=1e-12)
    slopes, step = [], 1e-6
    for i in range(30):
        weights = np.ones(30)
        weights[i] += step
        slopes.append(((weights * top).sum() / (weights * bottom).sum() - ratio) / step)
    assert found == pytest.approx(math.sqrt(sum(s**2 for s in slopes) * 30 / 29), rel=1e-4)  # step's own error ~3e-8·30
    assert found < 0.5 * math.hypot(stderr(top), stderr(bottom)) / bottom.mean()  # pairing pays
    assert ratio_stderr(top, np.zeros(30)) == (None, None)
    assert mean_stderr(np.array([2.0])) == (2.0, None)


def test_accuracy_retained_is_the_paired_ratio():
    ours, theirs, cut = case(4, spread=1, count=40)
    found = compare(bigram(ours), cut, bigram(theirs))
    hits, before = found.per_window["hit"], found.per_window["reference_hit"]
    assert before.sum() > 0
    ratio, error = found.next_token_accuracy_retained
    assert ratio == pytest.approx(hits.sum() / before.sum(), rel=1e-12)
    assert error == pytest.approx(stderr((hits - ratio * before) / before.mean()), rel=1e-12)


def test_equal_models_diverge_by_exactly_nothing():
    _, theirs, cut = case()
    out = compare(bigram(theirs), cut, bigram(theirs)).to_json()
    nothing = {"mean": 0, "stderr": 0, "median": 0, "p99": 0, "p999": 0, "max": 0}
    assert out["kl_divergence"] == nothing
    assert (out["same_top1"], out["rms_delta_p"], out["ln_perplexity_ratio"]) == (1, 0, 0)


def test_a_constant_added_to_the_logits_changes_nothing():
    _, theirs, cut = case()
    moved = theirs + np.float32(8)
    nll_bound, kl_bound = bounds(moved, theirs)
    found = compare(bigram(moved), cut, bigram(theirs))
    assert found.kl.max() < kl_bound + 2.0**-19  # theirs + 8 is rounded, by 2^-20 below 32
    assert abs(found.ln_perplexity_ratio[0]) < 2 * nll_bound + 2.0**-19


def test_two_symbols_by_hand():
    p, q = np.array([0.75, 0.25]), np.array([0.5, 0.5])
    cut = np.tile([0, 0, 0, 0, 0, 1, 0, 0], (3, 1))  # scored targets: 1, 0, 0
    found = compare(bigram(np.log([q, q])), cut, bigram(np.log([p, p])))
    out = found.to_json()
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    tiny = 1e-6  # 2-symbol logits of order one: bounds() gives 1e-6
    assert out["kl_divergence"]["mean"] == pytest.approx(kl, abs=tiny)
    assert out["perplexity"] == pytest.approx(2, abs=4 * tiny)
    assert out["reference_perplexity"] == pytest.approx((0.25 * 0.75 * 0.75) ** (-1 / 3), abs=4 * tiny)
    assert out["rms_delta_p"] == pytest.approx(0.25, abs=tiny)
    assert out["next_token_accuracy"] == pytest.approx(2 / 3, rel=1e-12)  # a tie goes to the lower id
    assert out["same_top1"] == 1


def test_the_protocol_of_512_tokens():
    seen = []

    def uniform(tokens, first):
        seen.append((tokens.shape, first))
        return np.zeros((tokens.shape[0], tokens.shape[1] - first, 10), dtype=np.float32)

    cut = np.zeros((4, 512), dtype=np.int64)
    cut[:, 257:] = 3
    cut[:, 0] = 9
    out = compare(uniform, cut, bos_id=9).to_json()
    # Position 511 predicts nothing and the model is not asked for it: 511 inputs, logits from 256 on.
    assert {(shape[1], first) for shape, first in seen} == {(511, 256)}
    assert out["tokens"] == 4 * 255
    assert out["perplexity"] == pytest.approx(10, rel=1e-6)  # ln 10 in float64 of a float32-exact sum
    scored = "positions 256-510 predict the next (255 a window)"
    assert out["protocol"] == f"windows of 512 tokens, BOS replaces the first token, {scored}"


def test_batches_do_not_change_the_result_and_stay_within_the_budget(monkeypatch):
    ours, theirs, cut = case(5, count=11)
    whole = compare(bigram(ours), cut, bigram(theirs))
    sizes = []

    def watched(tokens, first):
        out = bigram(ours)(tokens, first)
        sizes.append(out.nbytes)
        return out

    monkeypatch.setattr(perplexity, "LOGITS_BYTES", 3 * 7 * VOCAB * 4)
    monkeypatch.setattr(perplexity, "SCRATCH_ELEMENTS", 2 * VOCAB)
    heard = []
    parts = compare(watched, cut, bigram(theirs), advance=heard.append)
    assert heard == [1, 3, 3, 3, 1]
    assert max(sizes) == 3 * 7 * VOCAB * 4
    assert parts.kl.tolist() == whole.kl.tolist()
    assert parts.to_json() == whole.to_json()


def test_batch_size_by_vocabulary():
    assert perplexity.batch_size(255, 262144) == 1
    assert perplexity.batch_size(255, 49152) == 5
    assert perplexity.batch_size(255, 100) == perplexity.MAX_BATCH
    assert perplexity.batch_size(255, 10**9) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whose", ["model", "original"])
def test_non_finite_logits_name_the_window(bad, whose):
    ours, theirs, cut = case(6, count=12)
    cut[cut == 5] = 4
    cut[9, 11] = 5  # only window 9 (in a later batch) reads row 5, at its scored position 11 - 8
    table = ours if whose == "model" else theirs
    table[5, (cut[9, 12] + 1) % VOCAB] = bad  # not even the true token's logit
    with pytest.raises(ParetobitError, match=rf"the {whose}'s logits of window 9 .* scored position 3"):
        compare(bigram(ours), cut, bigram(theirs))
    if whose == "model":
        with pytest.raises(ParetobitError, match="window 9"):
            compare(bigram(ours), cut)


def test_without_an_original_there_is_perplexity():
    ours, theirs, cut = case()
    alone = compare(bigram(ours), cut).to_json()
    both = compare(bigram(ours), cut, bigram(theirs)).to_json()
    assert alone.keys() == both.keys() >= CONTRACT
    for key in (
        "perplexity",
        "perplexity_stderr",
        "next_token_accuracy",
        "tokens",
        "protocol",
        "windows_sha256",
    ):
        assert alone[key] == both[key] is not None
    for key in (
        "kl_divergence",
        "same_top1",
        "reference_perplexity",
        "next_token_accuracy_retained",
        "rms_delta_p",
    ):
        assert alone[key] is None and both[key] is not None


@pytest.mark.parametrize("count", [1, 3])
def test_json_is_plain_and_has_the_documented_keys(count):
    ours, theirs, cut = case(count=count)
    out = compare(bigram(ours), cut, bigram(theirs)).to_json()
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert out.keys() >= CONTRACT
    assert out["kl_divergence"].keys() == {"mean", "stderr", "median", "p99", "p999", "max"}
    assert (out["kl_divergence"]["stderr"] is None) == (count == 1)


def test_contract_violations_are_named():
    ours, theirs, cut = case()
    with pytest.raises(ParetobitError, match="37 vocabulary entries, the original 36"):
        compare(bigram(ours), cut % 36, bigram(theirs[:, :36]))
    with pytest.raises(ParetobitError, match="the model has 20 entries"):
        compare(lambda tokens, first: bigram(ours)(tokens, first)[:, :, :20], cut)
    with pytest.raises(ParetobitError, match="logits of shape"):
        compare(lambda tokens, first: bigram(ours)(tokens, 0), cut)


def test_two_artifacts_are_compared_window_by_window():
    ours, theirs, cut = case(7, count=10)
    worse = ours + np.random.default_rng(8).standard_normal(ours.shape).astype(np.float32)
    a = compare(bigram(ours), cut, bigram(theirs))
    b = compare(bigram(worse), cut, bigram(theirs))
    out = paired(a, b)
    kl = (brute(ours, theirs, cut)["kl"] - brute(worse, theirs, cut)["kl"]).mean(axis=1)
    assert out["kl_difference"] == pytest.approx(kl.mean(), rel=1e-4)
    assert out["kl_difference_stderr"] == pytest.approx(stderr(kl), rel=1e-4)
    assert out["ln_perplexity_ratio"] == pytest.approx(math.log(a.perplexity / b.perplexity), rel=1e-9)
    assert out["kl_lower"] is True and paired(b, a)["kl_lower"] is False and paired(a, a)["kl_lower"] is False
    assert out["windows"] == 10


def made(kl, windows=None):
    """A comparison with these window means of KL and nothing else of interest."""
    values = np.asarray(kl, dtype=np.float64)
    names = ("nll", "hit", "reference_nll", "reference_hit", "same_top1", "squared_delta_p")
    means = {name: np.ones(len(values)) for name in names} | {"kl_divergence": values}
    return Comparison("", len(values), len(values), "same", means, values)


def test_a_bar_holds_on_80_windows_or_by_more_than_a_standard_error():
    # 4 windows differing by -1 ± s: mean -1, standard error s/sqrt(3) of ±s. Below s = sqrt(3) the bar holds.
    noise = np.array([1, -1, 1, -1])
    assert paired(made(10 - 1 + 1.7 * noise), made([10] * 4))["kl_lower"] is True
    assert paired(made(10 - 1 + 1.8 * noise), made([10] * 4))["kl_lower"] is False
    assert paired(made(np.tile(10 - 1 + 30 * noise, 20)), made([10] * 80))["kl_lower"] is True


def test_what_cannot_be_paired_is_refused():
    ours, theirs, cut = case()
    a = compare(bigram(ours), cut, bigram(theirs))
    with pytest.raises(ParetobitError, match="different windows"):
        paired(a, compare(bigram(ours), cut[::-1], bigram(theirs)))
    with pytest.raises(ParetobitError, match="different originals"):
        paired(a, compare(bigram(ours), cut, bigram(ours)))
    with pytest.raises(ParetobitError, match="different originals"):
        paired(a, compare(bigram(ours), cut))
