import json
from dataclasses import asdict, replace

import pytest

from paretobit.errors import ParetobitError
from paretobit.reports.results import Result, append, read

ROW = Result("kl_divergence", 0.25, "nats", 80, 0.01, "abc", "def", "paretobit eval OUT --against MODEL")


def test_rows_come_back_in_order(tmp_path):
    path = tmp_path / "results.jsonl"
    assert read(path) == []
    rows = [ROW, replace(ROW, metric="tokens", value=20400, stderr=None), replace(ROW, unit="µs")]
    append(path, rows[:1])
    append(path, [])
    append(path, rows[1:])
    assert read(path) == rows
    assert [json.loads(line) for line in path.read_text().splitlines()] == [asdict(row) for row in rows]


@pytest.mark.parametrize("cut", range(1, len(json.dumps(asdict(ROW))) + 2, 7))
def test_a_torn_last_line_is_passed_over_and_then_replaced(tmp_path, cut):
    path = tmp_path / "results.jsonl"
    append(path, [ROW, ROW])
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    kept = 2 if cut == 1 else 1  # without its newline alone, a row is still whole
    assert read(path) == [ROW] * kept
    other = replace(ROW, value=1.5)
    append(path, [other])
    assert read(path) == [ROW] * kept + [other]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"metric": "kl', "not JSON"),
        (b"[]", "not a result row"),
        (b'{"metric": "kl"}', "not a result row"),
        (json.dumps(asdict(ROW) | {"extra": 1}).encode(), "not a result row"),
        (json.dumps(asdict(ROW) | {"value": "0.1"}).encode(), "value is '0.1'"),
        (json.dumps(asdict(ROW) | {"value": float("nan")}).encode(), "value is nan"),
        (b"\xff", "not JSON"),
    ],
)
def test_any_other_bad_line_is_an_error(tmp_path, line, message):
    path = tmp_path / "results.jsonl"
    good = json.dumps(asdict(ROW)).encode()
    path.write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    with pytest.raises(ParetobitError, match=f"line 2: .*{message}"):
        read(path)
    path.write_bytes(good + b"\n" + line + b"\n")  # a last line with its newline is not torn
    with pytest.raises(ParetobitError, match=f"line 2: .*{message}"):
        read(path)


@pytest.mark.parametrize(
    "change",
    [
        {"value": float("inf")}, {"value": None}, {"value": True}, {"stderr": float("nan")}, {"stderr": -0.1},
        {"n": 1.5}, {"n": -1}, {"metric": 3}, {"command": None},
    ],
)  # fmt: skip
def test_a_result_is_validated(change):
    with pytest.raises(ParetobitError, match=r"result '"):
        replace(ROW, **change)


def test_an_unwritable_file_is_named(tmp_path):
    with pytest.raises(ParetobitError, match="cannot write"):
        append(tmp_path / "none" / "results.jsonl", [ROW])
    with pytest.raises(ParetobitError, match="cannot read"):
        read(tmp_path)
