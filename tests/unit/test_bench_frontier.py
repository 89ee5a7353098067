"""The frontier's own logic, without a model of any size and without llama.cpp."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import frontier_picture, frontier_planned, frontier_points, frontier_report, frontier_rows
from bench.frontier_points import Calibration, Llama, Made, Ours, Peer
from bench.frontier_rows import Original, Row, Rows, frontier, key_of, last_states, measure, paired_kl, window_id
from bench.peers import imatrix, llama_quantize, rounders
from bench.peers.gptq import Candidate, matrices
from paretobit import open_model
from paretobit.arch.spec import EMBED
from paretobit.checkpoint.base import Checkpoint
from paretobit.compress.corpus import Corpus
from paretobit.compress.model import Decoder
from paretobit.errors import ParetobitError
from paretobit.scheme import Grid, parse
from tests.checkpoints import tiny_llama_folder


def row(name: str, family: str, nbytes: int, *kl: float, bits: float = 3.0, source_grid: bool = False) -> Row:
    ones = {what: [1.0] * len(kl) for what in frontier_rows.PER_WINDOW}
    return Row(
        f"{family}/{name}", "tiny", name, family, "", nbytes, bits, 1.0, source_grid, "", frontier_points.sources(), "",
        ones | {"kl_divergence": list(kl)},
    )  # fmt: skip


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    a, b, c = row("a", "gptq", 10, 0.5), row("b", "gptq", 20, 0.2), row("c", "llama.cpp", 30, 0.1)
    beaten = [row("d", "rtn", 10, 0.6), row("e", "rtn", 25, 0.2), row("f", "rtn", 40, 0.1)]
    hollow = row("g", "rtn", 5, 0.01, source_grid=True)
    assert frontier([c, *beaten, hollow, a, b]) == [a, b, c]
    assert frontier([]) == []
    large = row("rtn of the same size", "rtn", 100_000, 0.9), row("h", "gptq", 100_050, 0.01)
    assert frontier([*large, a]) == [a, large[1]]


def test_differences_are_paired_by_window() -> None:
    a, b = row("a", "gptq", 1, 0.5, 0.9), row("b", "gptq", 1, 0.4, 0.8)
    gap, stderr = paired_kl(a, b)
    assert gap == pytest.approx(0.1) and stderr == pytest.approx(0, abs=1e-12)  # the windows differ, the gap does not
    assert paired_kl(a, b, 0.5)[0] == pytest.approx(0.4)
    assert frontier_report.pair_line([a, b], "a", "b").endswith("+0.1000 ± 0.0000, paired by window")
    assert frontier_report.pair_line([a, b], "a", "x") == "not measured: x"


def test_planned_models_are_held_against_what_needs_no_plan() -> None:
    one = [row("w2t", "trellis", 100_000, 0.5, 0.7), row("w3t", "trellis", 400_000, 0.1, 0.2)]
    mixed = dataclasses.replace(row("mixed", "trellis", 200_000, 0.01), command="paretobit quantize M --plan P -o OUT")
    assert frontier_planned.uniform([*one, mixed, row("w9", "trellis", 500_000, 0.9, 0.9)]) == one
    halfway = frontier_planned.interpolated(one, 250_000)
    assert halfway == pytest.approx(math.sqrt(0.6 * 0.15))
    assert frontier_planned.interpolated(one, 400_000) == pytest.approx(0.15)
    assert math.isnan(frontier_planned.interpolated(one, 400_001))
    good = [row("--fit 3bpw", "planned", 250_000, 0.1, 0.2), row("--fit 3.02bpw", "planned", 399_900, 0.09, 0.11)]
    assert frontier_planned.lines(one) == []
    peer = row("IQ2", "llama.cpp", 260_000, 0.6)
    table, said = _halves(frontier_planned.lines([*one, mixed, *good], [peer]))
    assert [line.split(" | ")[2] for line in table[2:]] == ["100.00%", "99.34%"]
    assert [line.split(" | ")[5:] for line in table[2:]] == [
        ["0.500", "", " |"], ["0.666", "w3t: 0.1500 ± 0.0500", "-0.0500 ± 0.0400 |"],
    ]  # fmt: skip
    assert [line[:6] for line in said] == ["met   "] * 5
    _, said = _halves(frontier_planned.lines(good))
    assert [line[:6] for line in said] == ["open  ", "open  ", "open  ", "met   ", "open  "]
    bad = [row("--fit 2bpw", "planned", 100_100, 0.7, 0.9), row("--fit 3.1bpw", "planned", 300_000, 0.3, 0.3)]
    peers = [row("IQ2", "llama.cpp", 200_000, 0.3), row("IQ3", "llama.cpp", 250_000, 0.9)]
    _, said = _halves(frontier_planned.lines([*one, *bad], peers))
    assert [line[:6] for line in said] == ["MISSED"] * 5
    assert said[0].endswith(": --fit 2bpw, --fit 3.1bpw") and said[2].endswith(": --fit 2bpw")
    assert said[3].endswith(": 96.77% to 150.00%") and said[4].endswith(": IQ2")


def _halves(lines: list[str]) -> tuple[list[str], list[str]]:
    return lines[: lines.index("")], lines[lines.index("") + 1 :]


def test_table() -> None:
    rows = [
        row("Q3_K_M", "llama.cpp", 200, 0.1, bits=5.0),
        row("w3g64 gptq", "gptq", 100, 0.2),
        row("w4g32 gptq", "gptq", 150, 0.01, source_grid=True),
    ]
    rows[0] = dataclasses.replace(rows[0], sources="other")
    lines = frontier_report.table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| w3g64 gptq", "| w4g32 gptq ○", "| Q3_K_M *"]
    assert lines[2].endswith("| ● | 0.50 |")  # half the bytes of the only type that is as good
    assert lines[3].endswith("|  |  |")  # no type is as good, and no achievement either


def test_bars() -> None:
    theirs = [row("IQ3_XXS", "llama.cpp", 100, 0.2, bits=5.0), row("Q4_K_M", "llama.cpp", 110, 0.01, bits=6.0)]
    said = frontier_report.bars(theirs)
    assert [line[:6] for line in said] == ["open  "] * 6
    ours = [
        row("w3t trellis", "trellis", 60, 0.16, bits=3.2),
        row("w3t trellis, big", "trellis", 90, 0.01, bits=3.5),
        row("w2t trellis", "trellis", 50, 0.3, bits=2.6),
    ]
    said = frontier_report.bars([*theirs, *ours])
    assert said[0].startswith(
        "met    w3t at ≤ 3.3 bits: KL ≤ 0.85 × IQ3_XXS's: w3t trellis, 3.200 bits, 0.1600 = 0.80 ×"
    )
    assert said[1].startswith("open") and said[3].startswith("open")
    assert said[4].startswith("met    no rtn") and len(said) == 6
    assert said[5].startswith("met    ours of ≤ 0.8 × the bytes of IQ3_XXS")
    said = frontier_report.bars([*ours, row("w2g64 rtn", "rtn", 40, 0.4)])
    everybody = "rtn, gptq, llama.cpp, llm-compressor, AutoRound"
    assert f"MISSED no {everybody} on the frontier below 4.5 bits: w2g64 rtn" in said


def test_other_libraries_are_neither_ours_nor_llama_cpp() -> None:
    theirs = [row("IQ3_XXS", "llama.cpp", 100, 0.2), row("w3g64 AutoRound", "AutoRound", 70, 0.1)]
    assert all(line.startswith("open") for line in frontier_report.bars(theirs))
    said = frontier_report.bars([*theirs, row("w3t trellis", "trellis", 80, 0.05)])
    assert sum(line.startswith("MISSED") and line.endswith("w3g64 AutoRound") for line in said) == 1


@pytest.mark.parametrize("library", ["AutoRound", "llm-compressor"])
def test_a_library_that_is_missing_is_said(
    tmp_path: Path, calibration: Calibration, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOBIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, rounders.LIBRARIES[library][0], None)
    source = open_model(str(tiny_llama_folder(tmp_path / "model")))
    with pytest.raises(ParetobitError, match=f"no {library}: .*; hint: pip install it"):
        Peer("w3g64", library).make("tiny", source, calibration)


def test_a_library_rounds_the_blocks_and_the_rest_is_ours(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOBIT_CACHE", str(tmp_path / "cache"))
    folder = tiny_llama_folder(tmp_path / "model")
    source, calls = open_model(str(folder)), []
    (tmp_path / "text").write_text("the town is old. " * 400)
    calibration = dataclasses.replace(calibration, calib=str(tmp_path / "text"))

    def signs(folder: Path, source: Checkpoint, windows: np.ndarray, grid: Grid) -> Candidate:
        calls.append(json.loads((folder / "config.json").read_text())["dtype"])
        return Candidate("X", "1.2", {n: np.sign(source.read(n)) for n in matrices(source)}, 0.0, 3.0)

    monkeypatch.setitem(rounders.LIBRARIES, "X", ("json", signs))
    for again in (False, False, True):
        made = Peer("w3g16", "X").make(str(folder), source, calibration, again)
    ours = Ours("w3g16", "gptq").make(str(folder), source, calibration)
    assert calls == ["float32"] * 2 and made.seconds == 3.0 and made.nbytes == ours.nbytes
    name = matrices(source)[0]
    assert set(np.unique(made.model.read(name))) <= {-1, 0, 1} and made.model.hash != ours.model.hash
    assert np.array_equal(made.model.read(EMBED), ours.model.read(EMBED))
    with pytest.raises(SystemExit, match="more than 2 values in a group"):
        rounders.check_levels({name: source.read(name)}, parse("w1g16").weight)


def test_a_wide_model_misses_its_bar() -> None:
    rows = [row("IQ2_XXS", "llama.cpp", 100, 0.2), row("w2t trellis", "trellis", 50, 0.1, bits=2.6)]
    assert "MISSED w2t at ≤ 2.5 bits: KL ≤ 1.0 × IQ2_XXS's: the smallest has 2.600 bits" in frontier_report.bars(rows)


FACTS = {key: value for key, value in vars(row("a", "gptq", 1, 0.5)).items() if key != "per_window"}


def test_windows_are_put_together_of_the_same_bytes_only(tmp_path: Path) -> None:
    rows, key = Rows(tmp_path / "deep" / "rows.jsonl"), FACTS["key"]
    assert rows.get(key, ["x"]) is None and rows.missing(key, "A", ["x", "y"]) == [0, 1]
    rows.add(FACTS, "A", {"x": [0.5, 1.0, 1.0, 1.0]})
    assert rows.get(key, ["x", "y"]) is None and rows.missing(key, "A", ["x", "y"]) == [1]
    rows.add(FACTS | {"seconds": 0.0}, "A", {"y": [0.7, 2.0, 1.0, 0.0]})
    for again in (rows, Rows(rows.path)):
        found = again.get(key, ["x", "y"])
        assert found is not None and found.per_window["kl_divergence"] == [0.5, 0.7]
        assert found.kl == pytest.approx(0.6) and found.mean("same_top1")[0] == 0.5
        assert found.perplexity == pytest.approx(math.exp(1.5)) and found.reference_perplexity == pytest.approx(math.e)
        assert found.seconds == 1.0  # of the first: the second found the file in the cache
        assert json.loads(json.dumps(found.to_json()))["kl_stderr"] == pytest.approx(0.1)
    rows.add(FACTS | {"bytes": 2}, "B", {"x": [0.1, 1.0, 1.0, 1.0]})
    found = Rows(rows.path).get(key, ["x"])
    assert found is not None and found.bytes == 2 and found.kl == 0.1 and rows.missing(key, "B", ["x", "y"]) == [1]


def test_source_grids() -> None:
    assert [p.source_grid for p in (Ours("w4g32", "gptq"), Ours("w8g32", "rtn"), Llama("Q4_0"), Llama("IQ4_XS"))] == [
        True
    ] * 4
    coarse = (Ours("w4g64", "gptq"), Ours("w3g32", "gptq"), Ours("w4t", "trellis"), Llama("Q3_K_M"), Llama("IQ2_M"))
    assert not any(point.source_grid for point in coarse)


def test_names_are_unique() -> None:
    names = [point.name for point in frontier_points.points(None)]
    assert len(names) == len(set(names))
    assert {p.family for p in frontier_points.points("ours")} == {"rtn", "gptq", "trellis", "planned"}
    assert {p.family for p in frontier_points.points("llama.cpp")} == {"llama.cpp"}


def test_the_picture_is_the_same_for_the_same_rows(tmp_path: Path) -> None:
    rows = [row("Q3_K_M", "llama.cpp", 200, 0.1), row("w4g32 gptq", "gptq", 150, 0.01, source_grid=True)]
    for name in ("a.svg", "b.svg"):
        frontier_picture.draw(rows, "tiny", tmp_path / "new" / name)
    drawn = (tmp_path / "new" / "a.svg").read_text()
    assert drawn == (tmp_path / "new" / "b.svg").read_text() and len(drawn) < 200_000


def test_the_picture_of_a_document_is_that_of_its_rows() -> None:
    rows = [
        row("Q3_K_M", "llama.cpp", 2_000_000, 0.1),
        row("w4g32 gptq", "gptq", 1_500_000, 0.01, source_grid=True),
        row("--fit 2bpw", "planned", 1_000_000, 0.25),
    ]
    text = f"# T\n\n<!-- picture: tiny -->\n\n{frontier_report.table(rows[:2])}\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    text += f"<!-- picture: tiny -->\nmore\n{frontier_report.table(rows[2:])}\n<!-- picture: other -->\n"
    text += frontier_report.table(rows[:1])
    found = frontier_picture.written(text)
    assert found.keys() == {"tiny", "other"}
    facts = [(spot.name, spot.family, spot.bytes, spot.kl, spot.source_grid) for spot in found["tiny"]]
    assert sorted(facts) == sorted((r.name, r.family, r.bytes, r.kl, r.source_grid) for r in rows)
    assert len(found["other"]) == 1 and [spot.name for spot in frontier(found["tiny"])] == ["--fit 2bpw", "Q3_K_M"]
    with pytest.raises(SystemExit, match="picture x has no column KL, MB"):
        frontier_picture.written("<!-- picture: x -->\n| point | family |\n|---|---|\n| a | b |\n")


def test_the_pictures_that_stand_in_the_document_are_its_own() -> None:
    docs = Path(__file__).parents[2] / "docs"
    for name, rows in frontier_picture.written((docs / "frontier.md").read_text()).items():
        drawn = (docs / f"frontier-{name}.svg").read_text()
        names = [
            spot.name.replace("--", "- -") for spot in rows if spot.kl
        ]  # as XML wants it in a comment; log(0) is nowhere
        assert all(f"<!-- {found} -->" in drawn for found in names), f"draw {name} again"
        assert frontier_picture.mark_of(rows) in drawn, f"draw {name} again"


@pytest.fixture
def calibration() -> Calibration:
    ids = np.random.default_rng(0).integers(0, 300, (2, 32))
    return Calibration("FILE", 64, Corpus(ids, "FILE"))


def test_a_point_is_measured_once_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibration: Calibration
) -> None:
    """Logits from kept states are the decoder's own, so a model compared with itself has no divergence."""
    monkeypatch.setenv("PARETOBIT_CACHE", str(tmp_path / "cache"))
    source = open_model(tiny_llama_folder(tmp_path / "model"))
    windows = np.random.default_rng(1).integers(0, source.arch.vocab, (3, 16))
    original, rows, point = Original(source, windows), Rows(), Ours("w8", "rtn")
    decoder = Decoder(source)
    np.testing.assert_allclose(original.logits(windows[:2, :-1], 8), decoder.logits(windows[:2, :-1], 8), atol=1e-5)
    assert last_states(decoder, windows[:, :-1]).shape == (3, 7, source.arch.hidden)
    monkeypatch.setattr(Ours, "make", lambda self, *given: Made(source, 1000, 2.0, "nothing"))
    monkeypatch.setattr(frontier_rows, "AT_ONCE", 2)
    measure(point, "tiny", source, calibration, windows[1:2], original, rows)
    measure(point, "tiny", source, calibration, windows, original, rows)
    key = key_of(point, source, calibration)
    found = Rows().get(key, [window_id(window) for window in windows])
    assert found is not None and len(rows.path.read_text().splitlines()) == 2  # one window, then the other two
    assert found.kl == pytest.approx(0, abs=1e-6) and found.mean("same_top1")[0] == 1.0
    assert found.bits_per_weight == 8000 / sum(math.prod(source.shape(name)) for name in source.names())
    # Rounding to nearest reads no calibration text; llama.cpp's types do.
    other = Calibration("self", 64, Corpus(calibration.corpus.ids + 1, "self"))
    assert key == key_of(point, source, other)
    kind = Llama("Q4_0")
    assert key_of(kind, source, calibration) != key_of(kind, source, other)


def test_a_plan_counts_by_its_content(tmp_path: Path, calibration: Calibration) -> None:
    keys = []
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).write_text(content)
        keys.append(Ours("plan", "trellis", {"plan": tmp_path / name}, label="mixed").key(calibration))
    assert keys[0] == keys[1] != keys[2]


# ---- the importance matrix


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_importance_is_the_mean_square_of_inputs(tmp_path: Path, model_type: str, calibration: Calibration) -> None:
    import torch

    source = open_model(tiny_llama_folder(tmp_path / "model", model_type=model_type))
    ids = calibration.corpus.ids % source.arch.vocab
    sums = imatrix.squares(source, ids)
    blocks = [name for name in source.names() if "layers" in name and len(source.shape(name)) == 2]
    assert len(sums) == len(blocks)  # every matrix of the blocks, and no embedding
    decoder = Decoder(source)
    with torch.inference_mode():
        steps = decoder.block(0, decoder.weights(0), decoder.embed(torch.from_numpy(ids)))
        x = next(steps)[1].numpy().reshape(-1, source.arch.hidden)
    for name in ("q", "k", "v"):
        np.testing.assert_allclose(sums[f"blk.0.attn_{name}.weight"], (x.astype(float) ** 2).sum(0), rtol=1e-5)
    imatrix.write(tmp_path / "imatrix.gguf", sums, ids, "FILE")
    back = imatrix.read(tmp_path / "imatrix.gguf")
    assert imatrix.differences({name: values / ids.size for name, values in sums.items()}, back).max() < 1e-6
    with pytest.raises(SystemExit, match="only in one of the two: blk.0.attn_q.weight"):
        imatrix.differences({k: v for k, v in back.items() if k != "blk.0.attn_q.weight"}, back)


def test_types_of_llama_cpp_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibration: Calibration
) -> None:
    """llama-quantize is a stub that copies the 16-bit file and notes what it was asked."""
    monkeypatch.setenv("PARETOBIT_CACHE", str(tmp_path / "cache"))
    program = tmp_path / "llama-quantize"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncase "$*" in *NONE*) exit 1;; esac\n'
                       'while [ $# -gt 4 ]; do shift; done\ncp "$1" "$2"\n')  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setattr(llama_quantize, "tools", lambda: {"llama-quantize": program})
    source = open_model(tiny_llama_folder(tmp_path / "model"))
    made = llama_quantize.quantized(source, "IQ2_M+IQ4_NL", calibration.corpus)
    assert made.fine_share == 0.0 and made.path.name == "IQ2_M+IQ4_NL.gguf" and made.seconds > 0
    asked = (tmp_path / "asked").read_text().split()
    assert asked[0] == "--imatrix" and asked[2:4] == ["--token-embedding-type", "IQ4_NL"] and asked[6] == "IQ2_M"
    assert open_model(str(made.path)).arch == source.arch
    assert llama_quantize.quantized(source, "IQ2_M+IQ4_NL", calibration.corpus).seconds == 0
    with pytest.raises(SystemExit, match="llama-quantize to NONE"):
        llama_quantize.quantized(source, "NONE", calibration.corpus)


def test_a_mixture_is_a_plan_of_its_own(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOBIT_CACHE", str(tmp_path / "cache"))
    name = str(tiny_llama_folder(tmp_path / "model"))
    plain, mixed = Ours("w3g16", "rtn"), Ours("w3g16", "rtn", mix=(("v_proj", "w4g16"), ("k_proj", "w8g16")))
    assert mixed.name == "w3g16 rtn, v_proj w4g16, k_proj w8g16" and mixed.key(calibration) != plain.key(calibration)
    made = mixed.make(name, open_model(name), calibration)
    schemes = {tensor.rpartition("layers.")[2]: str(scheme) for tensor, scheme in made.model.schemes.items()}
    assert schemes["0.self_attn.v_proj.weight"] == schemes["1.self_attn.v_proj.weight"] == "w4g16"
    assert schemes["1.self_attn.k_proj.weight"] == "w8g16" and schemes["1.self_attn.q_proj.weight"] == "w3g16"
    assert "--plan" in made.command
