"""Text as it is generated: whole characters only, nothing taken back, and nothing of a stop string.

`tokenizers.DecodeStream` does not serve here: of byte tokens it gives out characters that later ones turn into U+FFFD,
and it knows no text before the first token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paretobit.errors import ParetobitError
from paretobit.runtime.tokenizer import UNKNOWN, Tokenizer

CONTEXT = 16  # tokens looked at to find one with text


class Detokenizer:
    """Tokens to pieces of text. The pieces of push() and end() together are `tokenizer.decode()` of all tokens.

    before: tokens of a prompt that the text goes on from, without which some tokenizers drop the first space.
    A decoder that may change what it said (of WordPiece, say) has all its text come from end().
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        decoder = tokenizer.decoder
        self._streams = _only_appends(decoder)
        self._bytes = "ByteFallback" in {part.get("type") for part in _parts(decoder)}
        # Tokens whose text is out, as many as the next ones' text may depend on; that text; and tokens held back.
        self._window, self._shown = self._context(list(before[-CONTEXT:])) if self._streams else ([], "")
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that `token` completes, maybe none yet. Raises ParetobitError on a number that is no token."""
        self._held.append(token)
        if not self._streams or (self._bytes and not self._ends_bytes(token)):
            return ""
        return self._text()

    def end(self) -> str:
        """What was held back: half a character reads U+FFFD."""
        return self._text(unfinished=True)

    def _text(self, unfinished: bool = False) -> str:
        text = self._tokenizer.decode(self._window + self._held)
        if text.endswith(UNKNOWN) and not unfinished:
            return ""
        piece, own = text[len(self._shown) :], self._tokenizer.decode(self._held)
        if own:
            self._window, self._shown = self._held, own
        else:  # the window must keep some text: decoders strip a space from what comes first
            self._window, self._shown = self._window + self._held, text
        self._held = []
        return piece

    def _ends_bytes(self, token: int) -> bool:
        """Whether a run of byte tokens such as <0xE4> is over; as long as it grows, it may turn into U+FFFD all."""
        return not self._tokenizer.is_hidden(token) and not self._is_byte(token)

    def _is_byte(self, token: int) -> bool:
        text = self._tokenizer.text_of(token) or ""
        return len(text) == 6 and text.startswith("<0x")

    def _context(self, before: list[int]) -> tuple[list[int], str]:
        for at in reversed(range(len(before))):
            text = self._tokenizer.decode(before[at:])
            if text and UNKNOWN not in text and not (self._bytes and self._is_byte(before[at])):
                return before[at:], text
        return [], ""


def _parts(decoder: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    return [deep for part in listed for deep in (_parts(part) if part.get("type") == "Sequence" else [part])]


def _only_appends(decoder: Mapping[str, Any]) -> bool:
    """Whether more tokens never change the text of those before, half characters and runs of bytes apart."""
    fused = False
    for part in _parts(decoder):
        kind = part.get("type")
        fused |= kind in ("Fuse", "ByteLevel")  # what follows sees the whole text, not one token
        if kind == "Replace":
            pattern = part.get("pattern", {}).get("String")
            if fused and not (isinstance(pattern, str) and len(pattern) == 1):
                return False
        elif kind == "Strip":
            if fused and part.get("stop", 0):
                return False
        elif kind not in (None, "ByteLevel", "ByteFallback", "Fuse", "Metaspace"):
            return False
    return True


class StopStrings:
    """Ends a text before the stop string that is complete first; of several complete at once, the longest.

    found: whether one was. Raises ParetobitError on strings that are empty, and on what is no string.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self.stops = tuple(dict.fromkeys(stops))
        self.found = False
        self._held = ""
        if not all(isinstance(stop, str) and stop for stop in self.stops):
            raise ParetobitError("a stop string is empty or no text", hint="leave it out, or say where to stop")

    def push(self, text: str) -> str:
        """What of the text so far is sure not to belong to a stop string, and was not given before."""
        if self.found:
            return ""
        self._held += text
        ends = [(at + len(stop), at) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.found = True
            return self._held[: min(ends)[1]]
        sure = len(self._held) - self._begun()
        given, self._held = self._held[:sure], self._held[sure:]
        return given

    def end(self) -> str:
        """What was held back, as no more text comes."""
        return "" if self.found else self._held

    def _begun(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        most = min(len(self._held), max(map(len, self.stops), default=1) - 1)
        tails = (self._held[-n:] for n in range(most, 0, -1))
        return next((len(tail) for tail in tails if any(stop.startswith(tail) for stop in self.stops)), 0)


class Words:
    """The tokens of one answer as text, until one of them, a stop string or their number ends it.

    tokens: those that were pushed, the one that ended it apart; finish: "" while it runs, then "eos", "stop" or
    "length". shown: special tokens that the text shall spell out. before: what the text goes on from, as for
    Detokenizer. Stop strings that are special tokens end it by their number. Raises ParetobitError on empty ones.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        most: int,
        stop: str | Sequence[str] = (),
        before: Sequence[int] = (),
        shown: Mapping[int, str] | None = None,
    ) -> None:
        stops = [stop] if isinstance(stop, str) else list(stop)
        specials = [tokenizer.special(stop) if isinstance(stop, str) else None for stop in stops]
        self._ends = {*tokenizer.eos_ids}
        self._stop_tokens = {token for token in specials if token is not None}
        self._stops = StopStrings(text for text, token in zip(stops, specials, strict=True) if token is None)
        self._detokenizer = Detokenizer(tokenizer, before)
        self._most, self._shown = most, shown or {}
        self.tokens: list[int] = []
        self.finish = ""

    def push(self, token: int) -> str:
        """The text that is sure after `token`, maybe none; all that is left where it is the last."""
        if token in self._ends or token in self._stop_tokens:
            self.finish = "eos" if token in self._ends else "stop"
            return self._rest()
        self.tokens.append(token)
        text = self._detokenizer.push(token)
        if token in self._shown:
            text += self._detokenizer.end() + self._shown[token]
        piece = self._stops.push(text)
        if self._stops.found:
            self.finish = "stop"
        elif len(self.tokens) == self._most:
            self.finish = "length"
            piece += self._rest()
        return piece

    def end(self) -> str:
        """No more tokens come, though none of these was the last: what is left of the text."""
        self.finish = "eos"
        return self._rest()

    def _rest(self) -> str:
        rest = self._stops.push(self._detokenizer.end()) + self._stops.end()
        if self._stops.found:
            self.finish = "stop"
        return rest
