"""Ways to spoil a file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path


def change_header(path: Path, change: Callable[[dict], None]) -> None:
    """Rewrite a safetensors file's header after `change`; the data stay."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
