"""What the user can afford: `60MB`, `87%` less than 16 bits, `2.5bpw`, `12ms` and `0.4J` a token, spelled as text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from paretobit.errors import ParetobitError

BYTES, MS, JOULES = "bytes", "ms_per_token", "joules_per_token"
SAVED, BITS = "saved", "bits_per_weight"  # two more ways to say bytes
UNITS = {
    "": (BYTES, "1"), "B": (BYTES, "1"), "kB": (BYTES, "1e3"), "MB": (BYTES, "1e6"), "GB": (BYTES, "1e9"),
    "KiB": (BYTES, "1024"), "MiB": (BYTES, "1048576"), "GiB": (BYTES, "1073741824"),
    "%": (SAVED, "0.01"), "bpw": (BITS, "1"),
    "ms": (MS, "1"), "s": (MS, "1e3"), "J": (JOULES, "1"), "mJ": (JOULES, "1e-3"),
}  # fmt: skip
WISH = re.compile(r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,15})?) ?(?P<unit>[A-Za-z%]*)")
EXAMPLES = "write for example 60MB, 87%, 2.5bpw, 12ms or 0.4J"


@dataclass(frozen=True)
class Budget:
    """At most so much of each; None: no limit.

    bytes: `size_bytes` of the packed model; ms_per_token: wall time of decoding; joules_per_token likewise.
    """

    bytes: int | None = None
    ms_per_token: float | None = None
    joules_per_token: float | None = None

    def limits(self) -> dict[str, float]:
        """The limits there are, by name."""
        found = {BYTES: self.bytes, MS: self.ms_per_token, JOULES: self.joules_per_token}
        return {name: value for name, value in found.items() if value is not None}


def parse_fit(wishes: Sequence[str], bytes_16bit: int, parameters: int) -> Budget:
    """The budget that several wishes say together, for a model of so many bytes in 16 bits and so many parameters.

    A share is what is saved of `bytes_16bit`; bits are 8 · bytes ÷ parameters. Raises ParetobitError on a wish outside
    the grammar, on one that leaves nothing, and where two limit the same thing.
    """
    found: dict[str, Fraction] = {}
    for wish in wishes:
        kind, value = _parse(wish)
        if kind == SAVED:
            if value >= 1:
                raise ParetobitError(f"--fit {wish} leaves nothing of the model", hint="save less than 100%")
            kind, value = BYTES, (1 - value) * bytes_16bit
        elif kind == BITS:
            kind, value = BYTES, value * parameters / 8
        if kind in found:
            raise ParetobitError(f"--fit {wish}: {kind} is limited twice", hint="give one limit for each")
        found[kind] = value
    time, energy = (float(found[name]) if name in found else None for name in (MS, JOULES))
    return Budget(math.floor(found[BYTES]) if BYTES in found else None, time, energy)


def _parse(wish: str) -> tuple[str, Fraction]:
    """What is limited, and the number exactly as written: 99.9% of a million bytes is not a byte less."""
    match = WISH.fullmatch(wish.strip())
    if match is None or match["unit"] not in UNITS:
        raise ParetobitError(f"--fit {wish} is no size, time or energy", hint=EXAMPLES)
    kind, scale = UNITS[match["unit"]]
    value = Fraction(match["number"]) * Fraction(scale)
    if value <= 0:
        raise ParetobitError(f"--fit {wish}: nothing fits into nothing", hint=EXAMPLES)
    return kind, value
