"""What earlier requests computed, found again by how a prompt begins: a radix tree of token sequences, and the slots of
a session that hold them. Slots share memory (Session.fork), so a beginning that many have is kept once."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from paretobit.runtime.session import Session

LEAST = 8  # tokens that are worth sharing


@dataclass
class Node:
    """edge: the tokens that lead here; slot: the one that holds exactly the tokens from the root to here, if any."""

    edge: tuple[int, ...] = ()
    slot: int | None = None
    children: dict[int, Node] = field(default_factory=dict)


class Trie:
    """Token sequences, each with the slot that holds it; what begins alike is stored once."""

    def __init__(self) -> None:
        self._root = Node()

    def longest(self, tokens: Sequence[int]) -> tuple[int, int | None]:
        """(how many tokens at the beginning are known, a slot that holds them)."""
        node, at = self._root, 0
        while at < len(tokens) and (child := node.children.get(tokens[at])) is not None:
            same = alike(child.edge, tokens[at : at + len(child.edge)])
            node, at = child, at + same
            if same < len(child.edge):
                break
        while at and node.slot is None:
            node = next(iter(node.children.values()))
        return at, node.slot if at else None

    def add(self, tokens: Sequence[int], slot: int) -> int | None:
        """Remember `slot`; the slot that held exactly these tokens before, if any."""
        node, at = self._root, 0
        while at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                child = node.children[tokens[at]] = Node(tuple(tokens[at:]))
            same = alike(child.edge, tokens[at : at + len(child.edge)])
            if same < len(child.edge):
                upper = Node(child.edge[:same], None, {child.edge[same]: child})
                node.children[tokens[at]], child.edge = upper, child.edge[same:]
                child = upper
            node, at = child, at + same
        before, node.slot = node.slot, slot
        return before

    def remove(self, tokens: Sequence[int]) -> None:
        """Forget the slot of exactly these tokens, which are there."""
        path, at = [self._root], 0
        while at < len(tokens):
            path.append(path[-1].children[tokens[at]])
            at += len(path[-1].edge)
        path[-1].slot = None
        for parent, node in reversed(list(itertools.pairwise(path))):
            if node.slot is not None or len(node.children) > 1:
                break
            first = node.edge[0]
            if node.children:  # one only: nothing branches here any more
                (child,) = node.children.values()
                child.edge = node.edge + child.edge
                parent.children[first] = child
                break
            del parent.children[first]


class Prefixes:
    """Slots that nobody runs any more, kept while the caches of all slots take no more than `limit` bytes."""

    def __init__(self, session: Session, limit: int) -> None:
        self._session, self._limit = session, limit
        self._trie = Trie()
        self._kept: OrderedDict[int, tuple[int, ...]] = OrderedDict()  # the longest unused first

    def __len__(self) -> int:
        return len(self._kept)

    def open(self, prompt: Sequence[int], running: Sequence[tuple[int, Sequence[int]]] = ()) -> tuple[int, int]:
        """(a new slot, how many of the prompt's first tokens it holds): never all, as the last one's logits are needed.

        running: slots in use and the tokens that they hold; what is shared may come from them too.
        """
        wanted = list(prompt[:-1])
        known, best = self._trie.longest(wanted)
        if best is not None:
            self._kept.move_to_end(best)
        for slot, tokens in running:
            same = alike(tokens, wanted)
            if same > known:
                known, best = same, slot
        if best is None or known < LEAST:
            return self._session.open(), 0
        return self._session.fork(best, known), known

    def keep(self, slot: int, tokens: Sequence[int]) -> None:
        """`slot`, which holds `tokens`, runs no more. The oldest are closed where memory is short."""
        known, best = self._trie.longest(tokens)
        if known == len(tokens):  # another one holds as much, or more; or there is nothing
            self._session.close(slot)
            if best is not None:
                self._kept.move_to_end(best)
            return
        if best is not None and len(self._kept[best]) == known:  # of which this one is the continuation
            self._drop(best)
        self._trie.add(tokens, slot)
        self._kept[slot] = tuple(tokens)
        self.shrink()

    def shrink(self) -> None:
        """Close the longest unused slots until the limit holds."""
        while self._kept and self._session.kv_bytes > self._limit:
            self._drop(next(iter(self._kept)))

    def clear(self) -> bool:
        """Close all; False where there was none."""
        had = bool(self._kept)
        while self._kept:
            self._drop(next(iter(self._kept)))
        return had

    def _drop(self, slot: int) -> None:
        self._trie.remove(self._kept.pop(slot))
        self._session.close(slot)


def alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens at the beginning are the same."""
    if len(a) > len(b):
        a, b = b, a
    if list(a) == list(b[: len(a)]):
        return len(a)
    return next(at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
