"""The work folder: resumed by its own command, refused to any other, and never anybody else's files in danger."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from paretobit.errors import ParetobitError
from paretobit.work import (
    FINGERPRINT,
    LOCK,
    MANIFEST,
    MAX_DEPTH,
    Work,
    disk_errors,
    parse_json,
    read_json,
    write_atomically,
)

JOB = {"model": "abc", "threads": 2}
OTHER = {"model": "abc", "threads": 4}


def publish(out: Path, fingerprint: dict, content: str, overwrite: bool = False) -> None:
    """Do a whole job whose result is one file."""
    work = Work(out, "model", fingerprint)
    assert not work.finished(overwrite)
    with work.open(overwrite), work.publish() as folder:
        (folder / "result").write_text(content)
        (folder / MANIFEST).write_text(json.dumps({"kind": "model", "fingerprint": fingerprint}))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_job_leaves_its_result_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    publish(out, JOB, "made")
    assert names(out.parent) == ["out"]
    assert names(out) == [MANIFEST, "result"]
    assert Work(out, "model", JOB).finished(overwrite=False)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    publish(tmp_path / "out", JOB, "made")
    assert (tmp_path / "out" / "result").read_text() == "made"


def test_another_result_is_named_and_replaced_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish(out, JOB, "first")
    with pytest.raises(ParetobitError, match="threads was 2, is 4.*hint:.*--overwrite") as caught:
        Work(out, "model", OTHER).finished(overwrite=False)
    assert "model was" not in str(caught.value)
    assert (out / "result").read_text() == "first"
    publish(out, OTHER, "second", overwrite=True)
    assert (out / "result").read_text() == "second"
    assert names(tmp_path) == ["out"]


def test_the_neighbour_called_old_is_nobodys_business(tmp_path: Path) -> None:
    mine = tmp_path / "out.old"
    mine.mkdir()
    (mine / "precious").write_text("keep")
    publish(tmp_path / "out", JOB, "first")
    publish(tmp_path / "out", OTHER, "second", overwrite=True)
    assert (mine / "precious").read_text() == "keep"


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_a_result_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    file, folder, statistics = tmp_path / "file", tmp_path / "folder", tmp_path / "statistics"
    file.write_text("keep")
    folder.mkdir()
    (folder / "keep").write_text("keep")
    statistics.mkdir()
    (statistics / MANIFEST).write_text(json.dumps({"kind": "statistics", "fingerprint": JOB}))
    for out in (file, folder, statistics):
        with pytest.raises(ParetobitError, match=f"{out}.*hint: choose another -o"):
            Work(out, "model", JOB).finished(overwrite)
    assert names(tmp_path) == ["file", "folder", "statistics"]
    assert names(folder) == ["keep"]


@pytest.mark.parametrize("fingerprint", [None, 7, "text", [1], {"threads": []}])
def test_a_manifest_with_a_strange_fingerprint_is_another_result(tmp_path: Path, fingerprint: object) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"kind": "model", "fingerprint": fingerprint}))
    with pytest.raises(ParetobitError, match="another result.*--overwrite"):
        Work(tmp_path, "model", JOB).finished(overwrite=False)


def test_the_same_command_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Work(out, "model", JOB).open(overwrite=False) as work:
        work.path("block-000").write_text("done")
    with Work(out, "model", JOB).open(overwrite=False) as work:
        assert work.path("block-000").read_text() == "done"
    with (
        pytest.raises(ParetobitError, match="unfinished work of another command: threads was 2, is 4.*--overwrite"),
        Work(out, "model", OTHER).open(overwrite=False),
    ):
        pass
    assert (tmp_path / "out.work" / "block-000").exists()
    with Work(out, "model", OTHER).open(overwrite=True) as work:
        assert names(work.folder) == [FINGERPRINT, LOCK]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first, second = (Work(tmp_path / "out", "model", JOB) for _ in range(2))
    with first.open(overwrite=False):
        with pytest.raises(ParetobitError, match="in use by another process.*hint:"), second.open(overwrite=False):
            pass
        with pytest.raises(ParetobitError, match="in use by another process"), second.open(overwrite=True):
            pass
    with second.open(overwrite=False):
        pass


def test_a_lock_that_its_owner_has_just_removed_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our open() of the lock file and our lock on it, the other process finishes and removes both."""
    import fcntl

    flock, work = fcntl.flock, Work(tmp_path / "out", "model", JOB)

    def too_late(handle: int, operation: int) -> None:
        work.path(LOCK).unlink()
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with pytest.raises(ParetobitError, match="in use by another process"), work.open(overwrite=False):
        pass


def test_somebodys_folder_called_work_is_refused_and_kept(tmp_path: Path) -> None:
    mine = tmp_path / "out.work"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(ParetobitError, match="thesis.tex.*hint: choose another -o"):
            publish(tmp_path / "out", JOB, "made", overwrite)
    assert names(mine) == ["thesis.tex"]
    (tmp_path / "two.work").write_text("a file")
    with pytest.raises(ParetobitError, match="two.work: there is a file in the way.*hint:"):
        publish(tmp_path / "two", JOB, "made")


def interrupted(tmp_path: Path, out: Path) -> Path:
    """The work folder of JOB as it stands while the result waits in it."""
    with Work(out, "model", JOB).open(overwrite=False) as work:
        work.path("block-000").write_text("done")
        work.path("out").mkdir()
        (work.path("out") / "result").write_text("half")
        return work.folder


def test_a_kill_between_the_two_renames_of_an_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = interrupted(tmp_path, out)
    (folder / "old").mkdir()
    (folder / "old" / "result").write_text("replaced")
    publish(out, JOB, "whole", overwrite=True)
    assert names(tmp_path) == ["out"] and (out / "result").read_text() == "whole"


@pytest.mark.parametrize("left", [[FINGERPRINT, LOCK, "block-000"], [FINGERPRINT, LOCK], [LOCK], []])
def test_a_kill_after_the_rename_leaves_nothing_for_good(tmp_path: Path, left: list[str]) -> None:
    out = tmp_path / "out"
    publish(out, JOB, "made")
    folder = interrupted(tmp_path, out)
    for path in folder.iterdir():
        if path.name not in left:
            (path / "result").unlink() if path.is_dir() else None
            path.rmdir() if path.is_dir() else path.unlink()
    assert Work(out, "model", JOB).finished(overwrite=False)
    assert names(tmp_path) == ["out"]


def test_tidying_spares_what_is_in_use_or_anothers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish(out, JOB, "made")
    with Work(out, "model", JOB).open(overwrite=False) as running:
        assert Work(out, "model", JOB).finished(overwrite=False)
        assert names(running.folder) == [FINGERPRINT, LOCK]
    write_atomically(running.path(FINGERPRINT), json.dumps(OTHER).encode())
    assert Work(out, "model", JOB).finished(overwrite=False)
    assert names(tmp_path) == ["out", "out.work"]


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    publish(link, JOB, "made")
    assert link.is_symlink() and (target / "result").read_text() == "made"
    assert names(tmp_path) == ["link", "target"]
    assert Work(link, "model", JOB).finished(overwrite=False)


@pytest.mark.parametrize("out", ["", ".", "..", "/", "x/..", "n" * 300, "loop"])
def test_paths_that_name_no_folder_to_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    with pytest.raises(ParetobitError, match="hint:"):
        publish(Path(out), JOB, "made")
    assert names(tmp_path) == ["loop"]


def test_a_failing_block_publishes_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        Work(tmp_path / "out", "model", JOB).open(overwrite=False) as work,
        work.publish() as folder,
    ):
        (folder / "result").write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == ["out.work"]
    publish(tmp_path / "out", JOB, "whole")
    assert names(tmp_path / "out") == [MANIFEST, "result"]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"),
        (errno.ENOTDIR, "a part of the path is a file"),
        (errno.EIO, "input/output error"),
    ],
)
def test_the_systems_refusals_become_one_line(number: int, reason: str) -> None:
    with pytest.raises(ParetobitError, match=f"^there: .*{reason}.*; hint: ") as caught, disk_errors(Path("here")):
        raise OSError(number, os.strerror(number), "there")
    assert "\n" not in str(caught.value)


def test_a_reader_that_went_away_is_no_matter_of_disks() -> None:
    with pytest.raises(BrokenPipeError), disk_errors(Path("here")):
        raise BrokenPipeError(errno.EPIPE, "broken pipe")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ParetobitError, match="the disk is full"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and names(tmp_path) == ["file"]


BAD_JSON = {
    "empty": b"",
    "cut": b'{"a": [1, 2',
    "list": b"[1]",
    "number": b"7",
    "not utf-8": b'{"a": "\xff"}',
    "deep list": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deeper than allowed": b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
    "huge integer": b'{"a": ' + b"9" * 5000 + b"}",
    "nul": b"\0" * 100,
}


@pytest.mark.parametrize("text", BAD_JSON.values(), ids=BAD_JSON.keys())
def test_bad_json_names_the_file(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text)
    with pytest.raises(ParetobitError, match=f"^{path}: .*; hint: ") as caught:
        read_json(path)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_json_as_deep_as_allowed_is_read() -> None:
    text = '{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH
    assert json.dumps(parse_json(text, "text"), indent=1)


def test_a_file_too_large_or_missing_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with open(path, "wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ParetobitError, match=r"large.json has 67108865 bytes.*hint:"):
        read_json(path)
    with pytest.raises(ParetobitError, match=r"none.json: No such file.*hint:"):
        read_json(tmp_path / "none.json")
