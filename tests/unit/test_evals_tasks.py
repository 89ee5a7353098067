"""Task scores against likelihoods worked out by hand from tables of next-token probabilities."""

import json
import math
import re
import sys

import numpy as np
import pytest

from paretobit.errors import ParetobitError
from paretobit.evals import perplexity
from paretobit.evals.tasks import (
    Request,
    Task,
    TaskResult,
    encode_pair,
    evaluate_task,
    pairs,
    prompt,
    read_task,
    score,
    truncate,
)

tasks = sys.modules["paretobit.evals.tasks"]


class Words:
    """Words with the space before them are tokens (as in BPE), "New York" is one; ids as words come."""

    def __init__(self, bos_id=None, eos_ids=(0,)):
        self.bos_id, self.eos_ids = bos_id, eos_ids
        self.words = ["<eos>", "<bos>"]

    def encode(self, text, add_special=True):
        assert add_special is False
        for word in (found := re.findall(r"<bos>|<eos>| ?New York| ?[^\s<]+|\s", text)):
            if word not in self.words:
                self.words.append(word)
        return [self.words.index(word) for word in found]

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)


def bigram(table):
    return lambda tokens, first: np.asarray(table, dtype=np.float32)[tokens[:, first:]]


def table(vocab=64, seed=0):
    return (2 * np.random.default_rng(seed).standard_normal((vocab, vocab))).astype(np.float32)


def by_hand(logits, tokens, start):
    """Log-likelihood of tokens[start:] in a bigram model, and whether each is the arg-max, in float64."""
    total, greedy = 0.0, True
    for now, following in zip(tokens[start - 1 : -1], tokens[start:], strict=True):
        row = logits[now].astype(np.float64)
        total += row[following] - math.log(np.exp(row).sum())
        greedy &= int(np.argmax(row)) == following
    return total, greedy


EXACT = 3e-5  # 20 tokens, each off by (range of its row's logits + 6)·2^-24 at worst, the range being 15


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- tokens ---


@pytest.mark.parametrize("context", ["the cat", "the cat "])
def test_the_space_before_a_continuation_belongs_to_it(context):
    words = Words()
    request = encode_pair(words, context, "sat" if context.endswith(" ") else " sat")
    assert words.decode(request.tokens) == "the cat sat"
    assert words.decode(request.tokens[request.start :]) == " sat"


def test_tokens_are_those_of_the_whole_text():
    # "in New" alone ends in " New"; with " York" after it the two merge, and the merged token is scored.
    words = Words()
    request = encode_pair(words, "in New", " York")
    assert [words.words[i] for i in request.tokens] == ["in", " New York"]
    assert request.start == 1
    merged = encode_pair(words, "New", " York")  # nothing is left of the context: end-of-text stands for it
    assert [words.words[i] for i in merged.tokens] == ["<eos>", "New York"] and merged.start == 1


def test_bos_is_added_once_where_the_tokenizer_adds_it():
    words = Words(bos_id=1)
    assert encode_pair(words, "the cat", " sat").tokens[0] == 1
    assert encode_pair(words, "the cat", " sat").start == 3
    templated = encode_pair(words, "<bos>the cat", " sat")
    assert templated == encode_pair(words, "the cat", " sat")
    sentence = encode_pair(words, "", "the cat sat")
    assert (words.decode(sentence.tokens), sentence.start) == ("<bos>the cat sat", 1)


def test_without_bos_a_first_token_is_scored_after_end_of_text():
    words = Words()
    sentence = encode_pair(words, "", "the cat sat")
    assert (words.decode(sentence.tokens), sentence.start) == ("<eos>the cat sat", 1)
    assert words.decode(encode_pair(words, "the cat", " sat").tokens) == "the cat sat"
    assert encode_pair(Words(eos_ids=(1, 0)), "", "the cat") == encode_pair(words, "", "the cat")
    with pytest.raises(ParetobitError, match="neither BOS nor end-of-text"):
        encode_pair(Words(eos_ids=()), "", "the cat sat")
    with pytest.raises(ParetobitError, match="encodes to no token"):
        encode_pair(words, "", "")


def test_truncation_takes_the_start_of_the_context_only():
    request = Request((1, 2, 3, 4, 5, 6), 4)
    assert truncate(request, None) == truncate(request, 5) == request
    assert truncate(request, 3) == Request((3, 4, 5, 6), 2)  # 3 inputs: 3 4 5; scored: 5 6
    assert truncate(request, 2) == Request((4, 5, 6), 1)
    with pytest.raises(ParetobitError, match="a continuation has 2 tokens, the model takes 1"):
        truncate(request, 1)


@pytest.mark.parametrize(
    ("query", "context"),
    [
        ("Question: Why?", "Question: Why?\nAnswer:"),
        ("Question: Why?\n", "Question: Why?\nAnswer:"),
        ("Passage: It is.\nQuestion: is it?", "Passage: It is.\nQuestion: is it?\nAnswer:"),
        ("Question: Why?\nAnswer:", "Question: Why?\nAnswer:"),
        ("The man slept, because ", "The man slept, because"),
        ("He asked a Question: why", "He asked a Question: why"),
    ],
)
def test_questions_are_followed_by_answer(query, context):
    assert prompt(query) == context
    row = {"query": query, "choices": [" a", "b c"], "gold": 0}
    assert pairs("choice", row) == [(context, " a"), (context, " b c")]


# --- scores ---


@pytest.mark.parametrize("scratch", [2 * 64, 1 << 18])  # two rows at a time, and all at once
def test_scores_equal_sums_by_hand(monkeypatch, scratch):
    monkeypatch.setattr(perplexity, "SCRATCH_ELEMENTS", scratch)
    logits, rng = table(), np.random.default_rng(1)
    requests = [
        Request(tuple(rng.integers(0, 64, n).tolist()), int(rng.integers(1, n))) for n in rng.integers(2, 22, 60)
    ]
    chain = [3]
    for _ in range(5):
        chain.append(int(np.argmax(logits[chain[-1]])))
    requests += [Request(tuple(chain), 1), Request((*chain[:-1], (chain[-1] + 1) % 64), 1)]
    requests.append(Request((chain[0] + 1, *chain), 1))  # only the first token is not the likeliest
    likelihood, greedy = score(bigram(logits), requests)
    true = [by_hand(logits, r.tokens, r.start) for r in requests]
    assert np.abs(likelihood - [t for t, _ in true]).max() < EXACT
    assert greedy.tolist() == [g for _, g in true]
    assert greedy[-3:].tolist() == [True, False, False]


@pytest.mark.parametrize(("most_tokens", "most_rows"), [(60, 10**9), (10**9, 40)])
def test_batching_and_padding_change_nothing(monkeypatch, most_tokens, most_rows):
    logits, rng = table(), np.random.default_rng(2)

    def causal(tokens, first):  # depends on all that came before, as a decoder does
        return logits[np.cumsum(tokens, axis=1)[:, first:] % 64]

    requests = [Request(tuple(rng.integers(0, 64, n).tolist()), n // 2) for n in rng.integers(2, 22, 50)]
    alone = [score(causal, [request])[0][0] for request in requests]
    shapes, heard = [], []

    def watched(tokens, first):
        shapes.append((tokens.size, tokens.shape[0] * (tokens.shape[1] - first)))
        return causal(tokens, first)

    monkeypatch.setattr(tasks, "BATCH_TOKENS", most_tokens)
    monkeypatch.setattr(tasks, "LOGITS_BYTES", most_rows * 64 * 4)
    together = score(watched, requests, heard.append)[0]
    assert together.tolist() == alone
    assert sum(heard) == len(requests)
    assert len(shapes) < len(requests) / 2  # they are batched
    assert all(size <= most_tokens and rows <= most_rows for size, rows in shapes)


def test_one_token_choices_share_a_forward():
    seen = []

    def watched(tokens, first):
        seen.append(len(tokens))
        return bigram(table())(tokens, first)

    requests = [Request((4, 5, 6, choice), 3) for choice in (7, 8, 9)] + [Request((4, 5, 6, 7), 2)]
    likelihood, _ = score(watched, requests)
    assert sum(seen) == 1
    for found, request in zip(likelihood, requests, strict=True):
        assert found == pytest.approx(by_hand(table(), request.tokens, request.start)[0], abs=EXACT)


def test_scores_refuse_what_is_not_a_number_and_foreign_tokens():
    broken = table()
    broken[5, 60] = np.nan
    with pytest.raises(ParetobitError, match="not finite at request 2"):
        score(bigram(broken), [Request((1, 2, 3), 1), Request((4, 5, 6), 1)])
    with pytest.raises(ParetobitError, match="token 99 is outside the model's 64"):
        score(bigram(table()), [Request((1, 99), 1)])


# --- tasks ---


def choice_task(rows):
    return Task("t", "choice", tuple(rows), tuple(range(1, len(rows) + 1)))


def test_choices_by_sum_by_characters_and_by_bytes():
    words = Words()
    rows = [{"query": "say", "choices": ["a", "bb bb bb", "ééé"], "gold": g} for g in (0, 1, 2)]
    ids = words.encode("say a bb ééé", add_special=False)
    say, a, bb, e = ids
    logits = np.full((16, 16), -30.0, dtype=np.float32)
    logits[:, 15] = 0  # takes the rest of the probability
    for now, following, p in ((say, a, 0.3), (say, bb, 0.2), (bb, bb, 0.5), (say, e, 0.1)):
        logits[now, following] = math.log(p)
    for row in range(16):
        others = sum(math.exp(v) for i, v in enumerate(logits[row].tolist()) if i != 15)
        logits[row, 15] = math.log(1 - others)
    # sums: ln .3 = -1.20, ln .05 = -3.00, ln .1 = -2.30; by 1, 8, 3 characters: -1.20, -0.37, -0.77;
    # by 1, 8, 6 bytes: -1.20, -0.374, -0.384.
    found = evaluate_task(choice_task(rows), words, bigram(logits))
    assert found.candidate["acc"].tolist() == [1, 0, 0]
    assert found.candidate["acc_norm"].tolist() == [0, 1, 0]
    assert found.candidate["acc_bytes"].tolist() == [0, 1, 0]
    assert found.chance.tolist() == [1 / 3] * 3
    logits[say, e] = math.log(0.11)  # by bytes -0.368 beats -0.374, by characters -0.74 does not
    found = evaluate_task(choice_task(rows), words, bigram(logits))
    assert found.candidate["acc_bytes"].tolist() == [0, 0, 1]
    assert found.candidate["acc_norm"].tolist() == [0, 1, 0]


def test_continuations_greedy_match_and_perplexity():
    words, logits = Words(), table()
    rows = [{"context": "one two ", "continuation": f"w{i}"} for i in range(8)]
    two, *ends = words.encode("two w0 w1 w2 w3 w4 w5 w6 w7", add_special=False)
    two = words.encode("one two", add_special=False)[1]
    best = ends[3]
    logits[two, best] = 20
    task = Task("t", "continuation", tuple(rows), tuple(range(8)))
    out = evaluate_task(task, words, bigram(logits)).to_json()
    true = [by_hand(logits, (two, end), 1)[0] for end in ends]
    assert out["acc"] == 1 / 8
    assert out["acc_stderr"] == pytest.approx(math.sqrt((1 / 8) * (7 / 8) / 7), rel=1e-12)
    assert out["perplexity"] == pytest.approx(math.exp(-np.mean(true)), rel=8 * EXACT)
    assert (out["metric"], out["chance"]) == ("acc", 0)


def test_pairs_compare_whole_sentences():
    words, logits = Words(), table(seed=3)
    rows = [{"uid": "x", "sentence_good": f"a b{i} c", "sentence_bad": f"a c b{i} d{i}"} for i in range(20)]
    rows.append({"sentence_good": "a b", "sentence_bad": "a b"})  # a tie is not a preference
    task = Task("t", "pair", tuple(rows), tuple(range(21)))
    found = evaluate_task(task, words, bigram(logits))
    true = []
    for row in rows:
        good, bad = (
            by_hand(logits, [0, *words.encode(row[key], add_special=False)], 1)[0]
            for key in ("sentence_good", "sentence_bad")
        )
        true.append(float(good > bad))
    assert found.candidate["acc"].tolist() == true
    assert 0 < sum(true) < 20 and true[-1] == 0
    assert found.chance.tolist() == [0.5] * 21


def result(now, before, chance, kind="pair"):
    metric = "acc_norm" if kind == "choice" else "acc"
    arrays = [{metric: np.asarray(values, dtype=np.float64)} for values in (now, before)]
    return TaskResult("t", kind, 0, np.broadcast_to(np.float64(chance), (len(now),)), arrays[0], arrays[1])


def test_flips_and_retention_above_chance():
    now, before = [1, 1, 0, 0, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 0, 1]
    out = result(now, before, 0.5).to_json()
    assert out["flips"] == {"right_to_wrong": 3 / 8, "wrong_to_right": 1 / 8}
    assert out["retained"] == pytest.approx((5 / 8 - 0.5) / (7 / 8 - 0.5), rel=1e-12)
    assert out["difference"] == -2 / 8
    differences = np.subtract(now, before)
    assert out["difference_stderr"] == pytest.approx(differences.std(ddof=1) / math.sqrt(8), rel=1e-12)
    assert out["reference"]["acc"] == 7 / 8
    assert json.loads(json.dumps(out, allow_nan=False)) == out


def test_retention_error_equals_a_numerical_infinitesimal_jackknife():
    rng = np.random.default_rng(4)
    before = (rng.random(200) < 0.7).astype(float)
    now = np.where(rng.random(200) < 0.9, before, 1 - before)
    chance = rng.choice([0.25, 0.5], 200)
    found = result(now, before, chance, "choice").retained

    def retained(weights):
        return (weights * (now - chance)).sum() / (weights * (before - chance)).sum()

    step = 1e-6
    slopes = [(retained(np.ones(200) + step * np.eye(200)[i]) - retained(np.ones(200))) / step for i in range(200)]
    assert found[0] == pytest.approx(retained(np.ones(200)), rel=1e-12)
    assert found[1] == pytest.approx(math.sqrt(np.square(slopes).sum() * 200 / 199), rel=1e-4)


def test_nothing_is_retained_of_an_original_at_chance():
    assert result([1, 0, 1, 1], [1, 0, 1, 0], 0.5).retained == (None, None)
    alone = TaskResult("t", "pair", 0, np.full(2, 0.5), {"acc": np.ones(2)}, None).to_json()
    assert alone["flips"] is alone["retained"] is alone["reference"] is None
    assert alone["acc"] == 1


def test_candidate_and_original_are_scored_on_the_same_requests():
    words = Words()
    rows = [{"query": f"q{i}", "choices": [f"x{i}", f"y{i}"], "gold": i % 2} for i in range(12)]
    heard = []
    both = evaluate_task(choice_task(rows), words, bigram(table(seed=5)), bigram(table(seed=6)), advance=heard.append)
    assert sum(heard) == pytest.approx(1)
    for seed, scores in ((5, both.candidate), (6, both.reference)):
        alone = evaluate_task(choice_task(rows), words, bigram(table(seed=seed)))
        assert {k: v.tolist() for k, v in alone.candidate.items()} == {k: v.tolist() for k, v in scores.items()}
    assert both.candidate["acc"].tolist() != both.reference["acc"].tolist()


def test_truncated_rows_are_counted_and_too_long_ones_named():
    words = Words()
    rows = [
        {"query": "a b c d", "choices": ["x", "y"], "gold": 0},
        {"query": "a", "choices": ["x", "y"], "gold": 0},
    ]
    assert evaluate_task(choice_task(rows), words, bigram(table()), max_tokens=3).to_json()["truncated"] == 1
    rows[1]["choices"][1] = "v w x y z"
    with pytest.raises(ParetobitError, match="t, line 2: a continuation has 5 tokens, the model takes 3"):
        evaluate_task(choice_task(rows), words, bigram(table()), max_tokens=3)


# --- files ---

GOOD = {"query": "q", "choices": ["a", "b"], "gold": 1}


def test_kinds_are_told_by_their_fields(tmp_path):
    path = tmp_path / "mine.jsonl"
    for kind, row in (
        ("choice", GOOD | {"id": 3}),
        ("continuation", {"context": "a", "continuation": "b"}),
        ("pair", {"sentence_good": "a", "sentence_bad": "b", "uid": "u"}),
    ):
        task = read_task(write(path, [row, row]))
        assert (task.name, task.kind, len(task.rows), task.lines) == ("mine", kind, 2, (1, 2))


def test_a_limit_spreads_over_the_file(tmp_path):
    path = write(tmp_path / "t.jsonl", [GOOD | {"id": i} for i in range(10)])
    assert [row["id"] for row in read_task(path, limit=4).rows] == [0, 2, 5, 7]
    assert len(read_task(path, limit=99).rows) == 10
    with pytest.raises(ParetobitError, match="0 rows"):
        read_task(path, limit=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "q", "choices": ["a", "b"]}, "not the fields of a task"),
        ({"sentence_good": "a", "sentence_bad": "b"}, "not the fields of a task"),
        (GOOD | {"gold": 2}, "'gold' is 2, not the index of one of 2 choices"),
        (GOOD | {"gold": -1}, "'gold' is -1"),
        (GOOD | {"gold": True}, "'gold' is True"),
        (GOOD | {"gold": "0"}, "'gold' is '0'"),
        (GOOD | {"choices": ["a"]}, "'choices' is not a list of two"),
        (GOOD | {"choices": "ab"}, "'choices' is not a list of two"),
        (GOOD | {"choices": ["a", ""]}, r"'choices\[1\]' is not a text"),
        (GOOD | {"choices": ["a", 3]}, r"'choices\[1\]' is not a text"),
        (GOOD | {"query": " "}, "'query' is not a text"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path, row, message):
    path = write(tmp_path / "t.jsonl", [GOOD, GOOD, row])
    with pytest.raises(ParetobitError, match=rf"t.jsonl', line 3: .*{message}"):
        read_task(path)


def test_files_that_are_no_task(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("\n")
    with pytest.raises(ParetobitError, match="has no rows"):
        read_task(path)
    path.write_text('{"query"')
    with pytest.raises(ParetobitError, match="line 1: not JSON"):
        read_task(path)
