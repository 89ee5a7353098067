"""The tree of prefixes, against a list that is searched from end to end."""

from __future__ import annotations

import random

from paretobit.server.prefixes import Prefixes, Trie, alike


class Slots:
    """A session that only counts: 10 bytes a token."""

    def __init__(self) -> None:
        self.open_slots: dict[int, int] = {}
        self.count = 0

    @property
    def kv_bytes(self) -> int:
        return 10 * sum(self.open_slots.values())

    def open(self) -> int:
        self.count += 1
        self.open_slots[self.count] = 0
        return self.count

    def fork(self, slot: int, length: int) -> int:
        assert length <= self.open_slots[slot]
        made = self.open()
        self.open_slots[made] = length
        return made

    def close(self, slot: int) -> None:
        del self.open_slots[slot]


def test_the_tree_finds_what_a_search_finds() -> None:
    chance, tree, listed = random.Random(0), Trie(), {}
    for step in range(1000):
        tokens = tuple(chance.choices(range(3), k=chance.randrange(1, 9)))
        if tokens in listed and chance.random() < 0.6:
            tree.remove(tokens)
            del listed[tokens]
        else:
            assert tree.add(tokens, step) == listed.get(tokens)
            listed[tokens] = step
        wanted = tuple(chance.choices(range(3), k=chance.randrange(0, 9)))
        length, slot = tree.longest(wanted)
        assert length == max((alike(wanted, known) for known in listed), default=0)
        found = next((known for known, number in listed.items() if number == slot), ())
        assert (slot is None) == (length == 0) and alike(found, wanted) == length
    for tokens in listed:
        tree.remove(tokens)
    assert not tree._root.children


def test_what_is_kept_stays_within_the_limit_and_the_oldest_goes_first() -> None:
    session = Slots()
    prefixes = Prefixes(session, limit=1000)

    def run(tokens: list[int]) -> int:
        slot, known = prefixes.open(tokens)
        session.open_slots[slot] = len(tokens)
        prefixes.keep(slot, tokens)
        return known

    texts = [[number] * 40 for number in range(5)]
    assert [run(text) for text in texts] == [0] * 5
    assert session.kv_bytes == 800 and len(prefixes) == 2
    assert run(texts[4] + [7]) == 40  # the continuation takes the place of what it continues
    assert len(prefixes) == 2
    assert run(texts[3]) == 39  # never all: the last token's logits are needed
    assert run(texts[0]) == 0
    assert run(texts[3]) == 39 and run(texts[4] + [7]) == 0  # used longest ago
    assert prefixes.clear() and not prefixes.clear() and session.kv_bytes == 0


def test_a_running_answer_shares_its_prompt() -> None:
    session = Slots()
    prefixes = Prefixes(session, limit=1000)
    session.open_slots[77] = 30
    slot, known = prefixes.open(list(range(40)), [(77, list(range(30))), (78, [1, 2])])
    assert known == 30 and session.open_slots[slot] == 30
