"""Conversations: history in the model's template, no token computed twice, a full context, files."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from checkpoints import TEMPLATE

from paretobit.errors import ParetobitError
from paretobit.runtime.conversation import Conversation, checked
from paretobit.runtime.sampler import Sampling
from tests.parrot import parrot_model

GREEDY = Sampling()
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def say(conversation: Conversation, text: str) -> str:
    return "".join(conversation.answer(text))


def test_history_goes_into_the_template() -> None:
    model, session = parrot_model()
    conversation = Conversation(model, GREEDY, system="Be kind.")
    assert say(conversation, "Hello you") == "Hello you!"
    assert say(conversation, "日本 😀") == "日本 😀!"
    wanted = [system("Be kind."), user("Hello you"), assistant("Hello you!"), user("日本 😀"), assistant("日本 😀!")]
    assert conversation.messages == wanted
    prompt = model.tokenizer.chat(wanted[:-1])
    answer = model.tokenizer.encode("日本 😀!")
    (held,) = session.slots.values()
    assert held == model.tokenizer.encode(prompt, add_special=False) + answer


def test_a_turn_computes_only_what_is_new() -> None:
    model, session = parrot_model()
    conversation = Conversation(model, GREEDY, system="Be kind and patient with everyone.")
    for turn, text in enumerate(("Hello you", "count 7", "hush", "More")):
        (before,) = session.slots.values()
        before, start = list(before), len(session.fed)
        said = say(conversation, text)
        prompt = model.tokenizer.encode(model.tokenizer.chat(conversation.messages[:-1]), add_special=False)
        # All that is in the cache is the beginning of the next prompt: the template ends the answer with the end token.
        assert prompt[: len(before)] == before and (turn == 0 or len(before) > 20)
        assert session.fed[start] == prompt[len(before) :]
        answer = model.tokenizer.encode(said)
        assert session.fed[start + 1 :] == [[token] for token in answer]
        last = conversation.last
        assert last is not None and last.fed_tokens == len(prompt) - len(before) and last.prompt_tokens == len(prompt)


def test_what_changes_the_past_computes_from_there_on() -> None:
    model, session = parrot_model()
    conversation = Conversation(model, GREEDY, system="Be kind.")
    say(conversation, "Hello")
    conversation.system("Be curt.")
    say(conversation, "Hello")
    words = model.tokenizer.encode(model.tokenizer.chat(conversation.messages[:-1]), add_special=False)
    common = model.tokenizer.encode("<|im_start|>system\nBe ", add_special=False)
    (turn,) = [fed for fed in session.fed[1:] if len(fed) > 1]
    assert len(words) - len(turn) >= len(common) - 1 and words[-len(turn) :] == turn
    assert len(words) - len(turn) <= len(common) + 1


def test_again() -> None:
    model, session = parrot_model()
    conversation = Conversation(model, Sampling(temperature=8.0, seed=3), 6)
    first = say(conversation, "Hello there")
    fed = len(session.fed)
    second = "".join(conversation.again())
    assert len(session.fed[fed]) == 1  # only the prompt's last token, for its logits
    assert first != second and conversation.messages == [user("Hello there"), assistant(second)]
    with pytest.raises(ParetobitError, match="there is no answer to give again; hint: say something first"):
        list(Conversation(model, GREEDY, system="x").again())


def test_equal_seeds_hold_equal_conversations() -> None:
    def talk(seed: int) -> list[str]:
        conversation = Conversation(parrot_model()[0], Sampling(temperature=4.0, seed=seed), 8)
        return [say(conversation, text) for text in ("one", "two", "three")]

    assert talk(1) == talk(1) != talk(2)


@pytest.mark.parametrize("way", ["interrupted", "closed"])
def test_an_answer_cut_short_is_kept(way: str) -> None:
    model, session = parrot_model()
    conversation = Conversation(model, GREEDY)
    say(conversation, "Hi")
    if way == "interrupted":
        session.patience = 4
        with pytest.raises(KeyboardInterrupt):
            say(conversation, "count 9")
        session.patience = -1
    else:
        with closing(conversation.answer("count 9")) as pieces:
            for _ in range(4):
                next(pieces)
    assert conversation.messages[2:] == [user("count 9"), assistant("1 2 ")]
    assert say(conversation, "On") == "On!"
    (held,) = session.slots.values()
    text = model.tokenizer.decode(held, skip_special=False)
    assert "<|im_start|>assistant\n1 2 <|im_end|>" in text and text.endswith("assistant\nOn!")


def test_a_turn_without_an_answer_is_taken_back() -> None:
    model, session = parrot_model()
    conversation = Conversation(model, GREEDY)
    say(conversation, "Hi")
    before = list(conversation.messages)
    session.patience = 0
    for turn in (conversation.answer("count 9"), conversation.again()):
        with pytest.raises(KeyboardInterrupt):
            list(turn)
        assert conversation.messages == before
    session.patience = -1
    with closing(conversation.answer("count 9")):
        pass
    assert conversation.messages == before
    assert say(conversation, "hush") == "" and conversation.messages[2:] == [user("hush"), assistant("")]


def test_a_full_context_leaves_out_the_oldest_turns() -> None:
    told: list[str] = []
    model, session = parrot_model(context=200)
    conversation = Conversation(model, GREEDY, 64, system="Be kind.", tell=told.append)
    texts = [f"message {i} of this talk" for i in range(12)]
    held: list[int] = []
    for text in texts:
        before, fed, warned = len(held), len(session.fed), len(told)
        assert say(conversation, text) == f"{text}!"
        last = conversation.last
        assert last is not None and last.fed_tokens == len(session.fed[fed])
        if len(told) == warned:  # between two times, turns compute only what is new
            assert last.fed_tokens == last.prompt_tokens - before
        (slot,) = session.slots.values()
        held = list(slot)
        shown = model.tokenizer.decode(held, skip_special=False)
        assert shown.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n") and text in shown
    assert [m["content"] for m in conversation.messages if m["role"] == "user"] == texts  # nothing is lost
    assert texts[0] not in shown and texts[-2] in shown
    assert all("the context of 200 tokens is full: the oldest " in line for line in told)
    assert 1 < len(told) <= len(texts) // 2  # each time it makes more room than it needs


def test_an_answer_takes_the_room_there_is() -> None:
    model, _ = parrot_model(context=100)
    conversation = Conversation(model, GREEDY, 512)
    assert say(conversation, "count 99").startswith("1 2 3")
    last = conversation.last
    assert last is not None and last.finish == "length"
    assert last.prompt_tokens + len(last.tokens) == 100
    assert say(conversation, "ok") == "ok!"


def test_a_message_that_does_not_fit_is_refused_and_forgotten() -> None:
    model, _ = parrot_model(context=100)
    conversation = Conversation(model, GREEDY, 512)
    say(conversation, "Hi")
    before = list(conversation.messages)
    with pytest.raises(ParetobitError, match=r"a message of \d+ tokens does not fit the context of 100; hint: say it"):
        say(conversation, "word " * 100)
    assert conversation.messages == before and say(conversation, "ok") == "ok!"


def test_system_messages() -> None:
    model, _ = parrot_model()
    conversation = Conversation(model, GREEDY)
    say(conversation, "Hi")
    conversation.system("Be brief.")
    assert conversation.messages == [system("Be brief."), user("Hi"), assistant("Hi!")]
    conversation.system("Be long.")
    conversation.reset()
    assert conversation.messages == [system("Be long.")]
    conversation.system("")
    assert conversation.messages == []


def test_a_template_that_takes_no_system_message() -> None:
    model, _ = parrot_model(template=NO_SYSTEM)
    with pytest.raises(ParetobitError, match="no system role"):
        Conversation(model, GREEDY, system="Be kind.")
    conversation = Conversation(model, GREEDY)
    with pytest.raises(ParetobitError, match="no system role"):
        conversation.system("Be kind.")
    assert conversation.messages == [] and say(conversation, "Hi") == "Hi!"


def test_a_model_without_a_template() -> None:
    with pytest.raises(ParetobitError, match="has no chat template; hint: use run instead"):
        Conversation(parrot_model(template=None)[0], GREEDY)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, _ = parrot_model()
    conversation = Conversation(model, GREEDY, system='Be "kind".')
    say(conversation, "日本\t😀 \\ \x1b[0m")
    conversation.save(tmp_path / "talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved == {"messages": conversation.messages} and "日本" in (tmp_path / "talk.json").read_text()
    other = Conversation(model, GREEDY)
    other.load(tmp_path / "talk.json")
    assert other.messages == conversation.messages
    assert say(other, "Hi") == say(conversation, "Hi") and other.messages == conversation.messages
    (tmp_path / "list.json").write_text(json.dumps(saved["messages"]))
    other.load(tmp_path / "list.json")
    assert other.messages == saved["messages"]
    conversation.save(tmp_path / "talk.md")
    text = (tmp_path / "talk.md").read_text()
    assert text.startswith('## system\n\nBe "kind".\n\n## user\n\n日本') and text.endswith("## assistant\n\nHi!\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.json", "talk.json", "talk.md"]
    with pytest.raises(ParetobitError, match="nowhere"):
        conversation.save(tmp_path / "nowhere" / "talk.json")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"3", b"{}", b'{"messages": 3}', b"[3]", b'[{"role": "user"}]', b'[{"content": "x"}]',
        b'[{"role": "tool", "content": "x"}]', b'[{"role": "user", "content": 3}]', b"[" * 100_000, b"\xff\xfe",
        b'[{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]',
        b'[{"role": ["user"], "content": "x"}]',
    ],
)  # fmt: skip
def test_files_that_are_no_conversation(content: bytes, tmp_path: Path) -> None:
    conversation = Conversation(parrot_model()[0], GREEDY)
    say(conversation, "Hi")
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ParetobitError, match=r"x\.json.*; hint: give a JSON file that /save wrote"):
        conversation.load(tmp_path / "x.json")
    assert conversation.messages == [user("Hi"), assistant("Hi!")]
    with pytest.raises(ParetobitError, match=r"y\.json"):
        conversation.load(tmp_path / "y.json")


def test_what_else_a_message_holds_is_left_out() -> None:
    assert checked([{"role": "user", "content": "x", "name": "y"}], "file") == [user("x")]


def test_no_room_for_an_answer() -> None:
    with pytest.raises(ParetobitError, match="max_new_tokens 0 is out of range"):
        Conversation(parrot_model()[0], GREEDY, 0)
