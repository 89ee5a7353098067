"""Prompts to text, with a session that says what the test wants: what is given out, where it ends, what it computes."""

from __future__ import annotations

import numpy as np
import pytest

import paretobit as pb
from paretobit.errors import ParetobitError
from paretobit.runtime.generate import Model, Slot
from paretobit.runtime.sampler import Sampling
from paretobit.runtime.tokenizer import Tokenizer
from tests.parrot import END, VOCAB, ParrotSession, scripted, tiny_files

TOKENIZER = Tokenizer(tiny_files())
PROMPT = "The capital"
LONG = len(TOKENIZER.encode(PROMPT))


def saying(text: str | list[int], context: int = 512) -> tuple[Model, ParrotSession]:
    """A model that answers PROMPT with `text`, a token a byte where it is not ASCII."""
    ids = text if isinstance(text, list) else TOKENIZER.encode(text)
    session = ParrotSession(scripted(LONG, ids), context)
    return Model(session, TOKENIZER), session


def test_the_text_comes_in_pieces_and_as_a_whole() -> None:
    answer = " of France is Paris. Le café 日本 😀!"
    model, session = saying(answer)
    pieces: list[str] = []
    assert model.generate(PROMPT, 64, stream=pieces.append) == answer == "".join(pieces)
    assert len(pieces) > 5 and all(pieces) and "\ufffd" not in "".join(pieces)
    assert "😀" in pieces and "日" in pieces  # four and three tokens, one piece
    assert session.fed == [TOKENIZER.encode(PROMPT), *([token] for token in TOKENIZER.encode(answer))]
    assert session.slots == {}


def test_a_prompt_of_tokens_is_taken_as_it_is() -> None:
    model, session = saying(" x")
    assert model.generate(TOKENIZER.encode(PROMPT)) == model.generate(np.int64(TOKENIZER.encode(PROMPT))) == " x"
    assert session.fed[0] == TOKENIZER.encode(PROMPT)


@pytest.mark.parametrize(
    ("most", "stop", "text", "finish"),
    [
        (64, (), " one two three four", "eos"),
        (5, (), None, "length"),
        (64, "two", " one ", "stop"),
        (64, ["e f", "three"], " one two ", "stop"),
        (64, [" three four five"], " one two three four", "eos"),  # begun, never complete: given out at the end
        (64, ["four", "r"], " one two th", "stop"),
        (64, ["<|im_end|>"], " one two three four", "eos"),
    ],
)
def test_where_it_ends(most: int, stop: str | list[str], text: str | None, finish: str) -> None:
    model, session = saying(" one two three four")
    generation = model.stream(PROMPT, Sampling(), most, stop)
    pieces = list(generation)
    if text is None:
        text = TOKENIZER.decode(TOKENIZER.encode(" one two three four")[:most])
    assert "".join(pieces) == generation.text == text
    assert generation.finish == finish
    decoded = TOKENIZER.decode(generation.tokens)
    assert decoded.startswith(text) and (finish == "stop" or decoded == text)
    assert (generation.prompt_tokens, generation.fed_tokens) == (LONG, LONG)
    # The last token is never computed, unless the end follows it.
    assert generation.steps == len(session.fed) - 1 == len(generation.tokens) - (finish != "eos")
    assert session.slots == {} and next(generation, None) is None


def test_any_token_that_ends_and_any_special_one_that_is_asked_for() -> None:
    text = TOKENIZER.encode(" one")
    for stop, finish in (("<|endoftext|>", "stop"), ((), "length")):
        model, _ = saying([*text, 0, *text])
        generation = model.stream(PROMPT, Sampling(), 7, stop)
        assert (generation.read(), generation.finish) == (
            " one" if stop else " one one"[: len(generation.text)],
            finish,
        )
    model, _ = saying([*text, END, *text])
    assert model.generate(PROMPT) == " one"


def test_half_a_character_at_the_limit() -> None:
    model, _ = saying("日本")
    ids = TOKENIZER.encode("日本")
    assert len(ids) == 6
    pieces = list(model.stream(PROMPT, Sampling(), 4))
    assert pieces == ["日", "\ufffd"] and "".join(pieces) == TOKENIZER.decode(ids[:4])


def test_sampling_is_seeded() -> None:
    level = Model(ParrotSession(lambda tokens: 2 if len(tokens) > 40 else 7), TOKENIZER)
    settings = {"temperature": 3.0, "logit_bias": {2: -100}}
    texts = [level.generate(PROMPT, 20, seed=seed, **settings) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert level.generate(PROMPT, 20, **settings, top_k=1) == level.generate(PROMPT, 20)


def test_penalties_count_the_prompt_and_the_answer() -> None:
    model = Model(ParrotSession(lambda tokens: 50), TOKENIZER)
    plain = model.stream([50, 51], Sampling(), 4)
    plain.read()
    assert plain.tokens == [50] * 4
    frequent = model.stream([50, 51], Sampling(frequency_penalty=5.0), 4)
    frequent.read()
    assert frequent.tokens[:2] == [50, 50] and frequent.tokens[2] != 50  # 8, then 3, then less than all others' 0
    for prompt, token in (([51], 50), ([50], 0)):  # 8 / 1000 is less than the 0.01 of token 0
        repeated = model.stream(prompt, Sampling(repetition_penalty=1000.0, logit_bias={0: 0.01}), 1)
        repeated.read()
        assert repeated.tokens == [token]


def test_logits() -> None:
    model, _ = saying(" x")
    found = model.logits(TOKENIZER.encode(PROMPT))
    assert found.shape == (LONG, VOCAB) and found.dtype == np.float32
    assert np.argmax(found[-1]) == TOKENIZER.encode(" x")[0]


def test_what_does_not_fit_is_told_before_anything_is_computed() -> None:
    model, session = saying(" x", context=LONG + 10)
    assert model.generate(PROMPT, 10) == " x"
    session.fed.clear()
    for prompt, most, message in (
        (PROMPT, 11, rf"a prompt of {LONG} tokens and 11 new ones do not fit .* of {LONG + 10}; hint: .* \(-n 10\)"),
        (PROMPT * 9, 1, "do not fit the context .*; hint: shorten the prompt"),
        ("", 1, "the prompt is empty; hint: give some text"),
        ([], 1, "the prompt is empty"),
        (PROMPT, 0, "max_new_tokens 0 is out of range"),
        (PROMPT, 2.5, "max_new_tokens 2.5 is out of range"),
    ):
        with pytest.raises(ParetobitError, match=message):
            model.generate(prompt, most)
    assert session.fed == [] and session.slots == {}


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"logit_bias": {VOCAB: 1.0}}, {"stop": ["x", ""]}, {"seed": -1}]
)
def test_arguments_that_make_no_sense(wrong: dict) -> None:
    model, session = saying(" x")
    with pytest.raises(ParetobitError):
        model.generate(PROMPT, 8, **wrong)
    assert session.fed == [] and session.slots == {}


def test_logits_that_are_no_numbers_end_it() -> None:
    model, session = saying(" one two")
    good = session._logits
    session._logits = lambda tokens: good(tokens) if len(tokens) < LONG + 2 else np.full(VOCAB, np.nan, np.float32)
    pieces: list[str] = []
    with pytest.raises(ParetobitError, match="the logit of token 0 is not a number; hint: the model is damaged"):
        model.generate(PROMPT, 8, stream=pieces.append)
    assert pieces and session.slots == {}


def test_interrupted_it_frees_its_slot_and_keeps_its_text() -> None:
    model, session = saying(" one two three")
    session.patience = 4
    generation = model.stream(PROMPT, Sampling(), 64)
    with pytest.raises(KeyboardInterrupt):
        generation.read()
    assert generation.text and " one two three".startswith(generation.text)
    assert (generation.finish, session.slots, generation.read()) == ("", {}, generation.text)


def test_closed_it_says_no_more() -> None:
    model, session = saying(" one two three")
    for read in (0, 2):
        generation = model.stream(PROMPT, Sampling(), 64)
        pieces = [next(generation) for _ in range(read)]
        generation.close()
        assert (generation.read(), list(generation), session.slots) == ("".join(pieces), [], {})


def test_a_slot_computes_what_is_new() -> None:
    session = ParrotSession(lambda tokens: sum(tokens) % VOCAB)
    slot = Slot(session)
    for tokens, fed in (
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 3, 4, 5], [4, 5]),
        ([1, 2, 9], [9]),
        ([1, 2, 9], [9]),  # the last one again, for its logits
        ([1, 2], [2]),
        ([7, 2], [7, 2]),
        ([7], [7]),
    ):
        assert np.argmax(slot.become(tokens)) == sum(tokens) % VOCAB
        assert session.fed[-1] == fed and slot.tokens == tokens
        assert list(session.slots.values()) == [tokens]
    assert np.argmax(slot.append([5])) == 12 and slot.tokens == [7, 5]
    assert slot.fed == sum(len(tokens) for tokens in session.fed)
    session.patience = 0
    with pytest.raises(KeyboardInterrupt):
        slot.become([7, 8, 9])
    session.patience = -1
    assert slot.tokens == [7] and np.argmax(slot.become([7, 8, 9])) == 24
    slot.close()
    assert session.slots == {}


def test_names() -> None:
    assert pb.Model is Model and callable(pb.load)
    with pytest.raises(ParetobitError, match=r"paretobit\.json is missing"):
        pb.load("nowhere")
