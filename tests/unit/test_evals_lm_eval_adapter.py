"""The harness's three requests over a bigram model; lm_eval itself is not needed."""

import subprocess
import sys
import types
from collections import namedtuple

import numpy as np
import pytest

from paretobit.errors import ParetobitError
from paretobit.evals import lm_eval_adapter
from paretobit.evals.lm_eval_adapter import Adapter

Instance = namedtuple("Instance", "args")
LETTERS = "\x00" + " abcdefghijklmnopqrstuvwxyz"  # 0 is end-of-text
# z predicts a, a predicts b, …, y predicts z: greedy decoding recites the alphabet.
LOGITS = np.random.default_rng(0).uniform(-1, 1, (28, 28)).astype(np.float32)
for _letter in range(2, 28):
    LOGITS[_letter, (_letter - 1) % 26 + 2] = 5


class Tokens:
    bos_id = None
    eos_ids = (0,)

    def encode(self, text, add_special=True):
        return [LETTERS.index(letter) for letter in text]

    def decode(self, ids):
        return "".join(LETTERS[i] for i in ids)

    def chat(self, messages):
        return "".join(message["content"] for message in messages)


class Local(Adapter):
    longest = 0

    @staticmethod
    def open(artifact):
        def logits(tokens, first):
            Local.longest = max(Local.longest, tokens.shape[1])
            return LOGITS[tokens[:, first:]]

        return logits, Tokens()


def by_hand(ids, start):
    rows = LOGITS.astype(np.float64)
    logs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return sum(logs[now, following] for now, following in zip(ids[start - 1 : -1], ids[start:], strict=True))


NEAR = 1e-4  # 40 tokens of 28-entry rows: 40·(6 + 6)·2^-24 is 3e-5


def test_loglikelihood():
    asked = [("abc", "def"), ("abc", "dex"), ("", "abc"), ("abc", ""), ("ab ", "c")]
    found = Local("OUT").loglikelihood([Instance(args) for args in asked])
    encode = Tokens().encode
    cases = [
        (encode("abcdef"), 3),
        (encode("abcdex"), 3),
        ([0, *encode("abc")], 1),
        ([0], 1),
        (encode("ab c"), 2),
    ]
    expected = [by_hand(ids, start) for ids, start in cases]
    assert [likelihood for likelihood, _ in found] == pytest.approx(expected, abs=NEAR)
    assert [greedy for _, greedy in found][:2] == [True, False]
    assert found[3] == (0.0, True)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 40])
def test_rolling_scores_every_token_once_within_the_length(length):
    text = "the quick brown fox jumps over"
    Local.longest = 0
    found = Local("OUT", max_length=length).loglikelihood_rolling([Instance((text,)), Instance(("",))])
    # In a bigram model how much context a chunk keeps does not matter: the sum is that of the whole text.
    assert found == pytest.approx([by_hand([0, *Tokens().encode(text)], 1), 0.0], abs=NEAR)
    assert Local.longest == min(length, len(text))


def test_rolling_gives_the_last_chunk_a_full_context():
    chunks = Local("OUT", max_length=4)._chunks("abcdefghij")  # ids 2…11 after the 0 that stands for nothing
    assert [(chunk.tokens, chunk.start) for chunk in chunks] == [
        ((0, 2, 3, 4, 5), 1),
        ((5, 6, 7, 8, 9), 1),
        ((7, 8, 9, 10, 11), 3),
    ]


def test_generation_is_greedy_and_stops():
    model = Local("OUT", max_length=20)
    Local.longest = 0
    asked = [
        ("abc", {"until": ["i", "gh"], "max_gen_toks": 10}),
        ("abc", {"until": "x", "max_gen_toks": 4, "do_sample": True, "temperature": 0}),
        ("a" * 50, {"max_gen_toks": 3}),
    ]
    assert model.generate_until([Instance(args) for args in asked]) == ["def", "defg", "bcd"]
    assert Local.longest <= 20
    with pytest.raises(ParetobitError, match="does not sample"):
        model.generate_until([Instance(("abc", {"do_sample": True}))])


def test_generation_ends_at_end_of_text(monkeypatch):
    ending = LOGITS.copy()
    ending[LETTERS.index("e"), 0] = 9
    monkeypatch.setattr(sys.modules[__name__], "LOGITS", ending)
    assert Local("OUT").generate_until([Instance(("abc", {}))]) == ["de"]


def test_arguments():
    assert Local("OUT", max_length="64", batch_size=1, device="cpu").max_length == 64
    with pytest.raises(ParetobitError, match="unknown model_args: bits"):
        Local("OUT", bits=3)
    model = Local("OUT")
    assert model.apply_chat_template([{"content": "a"}, {"content": "b"}]) == "ab"
    with pytest.raises(ParetobitError, match="prefilled"):
        model.apply_chat_template([], add_generation_prompt=False)


def test_registers_where_lm_eval_is_installed(monkeypatch):
    registered = {}

    class LM:
        def __init__(self):
            self.rank = 0

    def register_model(name):
        return lambda cls: registered.setdefault(name, cls)

    for name, members in (
        ("lm_eval", {}), ("lm_eval.api", {}), ("lm_eval.api.model", {"LM": LM}),
        ("lm_eval.api.registry", {"register_model": register_model}),
    ):  # fmt: skip
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    model = lm_eval_adapter.register()
    assert registered == {"paretobit": model} and issubclass(model, LM)
    monkeypatch.setattr(Adapter, "open", staticmethod(Local.open))
    assert model("OUT").rank == 0
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    assert lm_eval_adapter.register() is None


def test_evaluation_does_not_import_torch():
    code = "import paretobit.evals, paretobit.reports.results, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
