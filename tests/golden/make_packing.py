"""Writes packing.json: packed bytes from Python's whole numbers alone, so that no packer checks itself.

    python tests/golden/make_packing.py

Run it only when the format changes, and then raise the format's version.
"""

import json
from pathlib import Path

BITS = {2: 1, 4: 2, 8: 3, 16: 4, 32: 5, 64: 6, 255: 8}
COLUMNS = (1, 5, 8, 13, 40)
ROWS = 3


def code(levels: int, row: int, column: int) -> int:
    """Spread over the grid, without a pattern of eight; the first row starts with the largest code."""
    return (levels - 1 + 7 * row + 11 * column + column * column) % levels


def packed_row(codes: list[int], levels: int) -> bytes:
    if levels == 3:
        fives = [codes[i : i + 5] for i in range(0, len(codes), 5)]
        return bytes(sum(c * 3**i for i, c in enumerate(five)) for five in fives)
    number = sum(c << (BITS[levels] * i) for i, c in enumerate(codes))
    return number.to_bytes(-(-BITS[levels] * len(codes) // 8), "little")


def cases() -> list[dict]:
    found = []
    for levels in (3, *BITS):
        for columns in COLUMNS:
            rows = [[code(levels, r, c) for c in range(columns)] for r in range(ROWS)]
            packed = b"".join(packed_row(row, levels) for row in rows)
            found.append({"levels": levels, "codes": rows, "packed": packed.hex()})
    return found


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(case) for case in cases())
    Path(__file__).with_name("packing.json").write_text(f"[\n{lines}\n]\n")
