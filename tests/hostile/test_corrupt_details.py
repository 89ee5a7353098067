"""Whatever a model's details and results hold: one clear error, or a page on which it is nothing but text."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from paretobit.artifact import DETAILS, MANIFEST
from paretobit.errors import ParetobitError
from paretobit.reports import charts, details, page
from paretobit.reports.subjects import read_subjects
from tests.hostile.test_corrupt_artifacts import ABSURD, places, replaced
from tests.reports import charts as charts_of
from tests.reports import measure, pack, parse, write_details

EVIL = (
    "<script>alert(1)</script>", "</script><script>alert(1)</script>", "<!--<script>", "</title>", "{{7*7}}",
    "</style><img src=x onerror=alert(1)>", "\"' onmouseover=alert(1) x='", "&lt;b&gt;", "]]>", "=HYPERLINK(1)",
    "\ud800\u202e\x1b[2J\x00", "\u2028\u2029", "javascript:alert(1)",
)  # fmt: skip


@pytest.fixture(scope="module")
def packed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = pack(model, tmp_path_factory.mktemp("details") / "small")
    write_details(out)
    return out


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for disks, and no making of the same script again and again."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(charts, "script", lambda: "draw()")


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def read_everything(folder: Path) -> None:
    parse(page.page(read_subjects([folder]), "1"))


def refused(folder: Path) -> str:
    with pytest.raises(ParetobitError, match=r"; hint: ") as caught:
        details.read(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000 and DETAILS in str(caught.value)
    return str(caught.value)


def test_any_truncation_is_refused(copy: Path) -> None:
    whole = (copy / DETAILS).read_bytes()
    for size in range(len(whole) - 1):
        (copy / DETAILS).write_bytes(whole[:size])
        refused(copy)


def test_a_flipped_bit_is_refused_or_reads_as_something(copy: Path) -> None:
    whole = (copy / DETAILS).read_bytes()
    random = np.random.default_rng(0)
    for at in random.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(random.integers(8))
        (copy / DETAILS).write_bytes(damaged)
        with suppress(ParetobitError):
            read_everything(copy)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"null", b"{" * 100_000, b'{"a":' * 100_000, b"\xff", b'{"version":2}', b"x" * 1_000_001]
)
def test_what_is_no_details_file_is_refused(copy: Path, raw: bytes) -> None:
    (copy / DETAILS).write_bytes(raw)
    refused(copy)


def test_what_is_no_file_is_refused(copy: Path) -> None:
    (copy / DETAILS).unlink()
    (copy / DETAILS).symlink_to("nowhere")
    refused(copy)
    (copy / DETAILS).unlink()
    os.mkfifo(copy / DETAILS)  # must not be waited for
    refused(copy)
    (copy / DETAILS).unlink()
    (copy / DETAILS).mkdir()
    refused(copy)


def test_absurd_values_in_every_field(copy: Path) -> None:
    facts = json.loads((copy / DETAILS).read_text())
    tried = 0
    for path in places(facts):
        for value in ABSURD:
            (copy / DETAILS).write_text(json.dumps(replaced(facts, path, value)))
            try:
                details.read(copy)
            except ParetobitError as why:
                assert "\n" not in str(why) and len(str(why)) < 2000 and DETAILS in str(why), (path, value)
            else:
                read_everything(copy)
            tried += 1
    assert tried > 1000


@pytest.mark.parametrize(
    "path",
    [("spread",), ("spread", "counts"), ("spread", "counts", 0), ("spread", "step"), ("windows",),
     ("windows", 0, "tokens"), ("windows", 0, "tokens", 1, "kl"), ("windows", 0, "tokens", 1, "original"),
     ("continuations", 0, "prompt")],
)  # fmt: skip
def test_missing_fields_are_refused(copy: Path, path: tuple) -> None:
    facts = json.loads((copy / DETAILS).read_text())
    inside = facts
    for key in path[:-1]:
        inside = inside[key]
    del inside[path[-1]]
    (copy / DETAILS).write_text(json.dumps(facts))
    if path[-1] == 0:  # a count less is still a list of counts
        read_everything(copy)
    else:
        refused(copy)


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_texts_are_text(copy: Path, tmp_path: Path, evil: str) -> None:
    """In the folder's name, the original's, every field of a result, and every text of the details."""
    named = tmp_path / evil.replace("/", "∕").encode("utf-8", "replace").decode().replace("\0", "")
    copy.rename(named)
    facts = json.loads((named / MANIFEST).read_text())
    if evil.isprintable():
        facts["model"]["name"] = evil
        (named / MANIFEST).write_text(json.dumps(facts))
    write_details(named, evil, original=evil, command=evil, skipped=evil)
    for metric in (evil, "kl_divergence", "decode_tokens_per_s"):
        measure(named, metric, 0.5, 0.1, unit=evil, command=evil, hardware=evil)
    html = page.page(read_subjects([named]), evil)
    html.encode()
    found = parse(html)
    assert len(found.all("script")) == 2 and len(found.all("style")) == 1 and not found.all("img")
    assert not [
        name
        for element in found.all("mark") + found.all("span")
        for name in element.attributes
        if name.startswith("on")
    ]
    assert "\x1b" not in html and "\u202e" not in html and "\x00" not in html
    if evil.isprintable():
        assert evil in found.text and found.all("h1")[0].text == f"{evil}: one packed model"
    assert "chart-size" in charts_of(found)
