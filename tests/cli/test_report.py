"""report: what stands on the page, what is refused, and what the commands before it leave for it."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import re
import sys
from pathlib import Path

import pytest

import paretobit as pb
from paretobit.reports.compare import frontier
from tests.commands import Command, contents
from tests.reports import Element, charts, measure, pack, parse, table, write_details


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models with results: the small one is worst and fastest, the middle one keeps enough. Read only."""
    folder = tmp_path_factory.mktemp("report")
    outs = [pack(model, folder / f"small-{to}", to) for to in ("w2g16", "w4g16", "w8")]
    for out, kept, kl, speed in zip(outs, (0.8, 0.961, 0.99), (0.7, 0.05, 0.06), (300, 200, 100), strict=True):
        measure(out, "kl_divergence", kl, kl / 10, unit="nats")
        measure(out, "next_token_accuracy_retained", kept, 0.004)
        measure(out, "same_top1", kept, 0.01)
        measure(out, "ln_perplexity_ratio", kl, 0.01, unit="nats")
        measure(out, "decode_tokens_per_s", speed, command="paretobit bench THIS", n=5, unit="tokens/s")
        measure(out, "joules_per_token_modelled", 10 / speed, command="paretobit bench THIS", n=5, unit="J")
        write_details(out)
    measure(outs[0], "arc retained", 0.5, 0.02, command="paretobit eval THIS --tasks arc.jsonl")
    return outs


def report(*outs: Path, to: Path, command: Command, options: tuple = ()) -> Element:
    done = command("report", *outs, "-o", to, *options)
    assert done.code == 0, done.err
    return parse(to.read_text())


@pytest.fixture(scope="module")
def page(made: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Element:
    path = tmp_path_factory.mktemp("page") / "report.html"
    pb.report(*map(str, made), out=str(path), grid="IND")
    return parse(path.read_text())


def section(page: Element, title: str) -> Element:
    (found,) = [s for s in page.all("section") if any(h.text == title for h in s.all("h2"))]
    return found


def test_the_headline(page: Element, made: list[Path]) -> None:
    (verdict,) = page.all("p", class_="verdict")
    small = pb.Artifact(made[1])
    assert verdict.text.startswith("small-w4g16 is the smallest here that keeps 95")
    assert "keeping 96.1 ± 0.4" in verdict.text
    head, *rows = table(page.all("table", class_="heads")[0])
    found = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row["model"] for row in found] == ["small-w2g16", "small-w4g16", "small-w8"]
    row = found[1]
    assert row["size"] == f"{small.size_bytes / 1e3:.1f} kB" and row["bits a weight"] == f"{small.bits_per_weight:.3f}"
    wide = 1 - small.size_bytes / pb.Artifact(made[1]).manifest["model"]["bytes_16bit"]
    assert row["saved of 16 bits"].startswith(f"{100 * wide:.1f}")
    assert row["saved of 32 bits"].startswith(f"{100 * (1 + wide) / 2:.1f}")
    assert row["next token kept"] == "96.1\u202f% ± 0.4" and row["KL, nats"] == "0.0500 ± 0.0050"
    assert row["perplexity ratio"] == "1.051 ± 0.011" and row["tokens/s"] == "200"
    assert row["J a token"] == "0.0500 modelled"
    assert row["J saved"].startswith("50.0") and found[2]["J saved"] == "–"  # of the largest's 0.1 J
    grams = float(row["g CO₂e a million tokens, IND"])
    assert grams == pytest.approx(0.05e6 / 3.6e6 * 713, rel=0.01)
    assert found[0]["tasks kept"] == "50.0\u202f% ± 2.0" and row["tasks kept"] == "–"
    labels = [cell.attributes["data-label"] for cell in page.all("table", class_="heads")[0].all("td")]
    assert labels == head[1:] * 3


def test_the_plots(page: Element, made: list[Path]) -> None:
    specs = charts(page)
    places = [figure.all("div", class_="chart")[0].attributes["id"] for figure in page.all("figure")]
    assert sorted(places) == list(specs)
    signs = {"chart-size": 1, "chart-speed": -1, "chart-energy": 1}
    assert set(specs) == {*signs, "chart-kl", "chart-bits-0", "chart-bits-1", "chart-bits-2"}
    for name, sign in signs.items():
        rows = specs[name]["data"]["values"]
        assert [row["model"] for row in rows] == [out.name for out in made]
        assert [row["best"] for row in rows] == frontier([(sign * row["x"], row["kl"]) for row in rows])
        assert [(row["low"], row["high"]) for row in rows] == [
            (pytest.approx(0.9 * row["kl"]), pytest.approx(1.1 * row["kl"])) for row in rows
        ]
    # w8 is larger than w4 and worse; it is the slowest, and the one that takes most energy.
    assert [row["best"] for row in specs["chart-size"]["data"]["values"]] == [True, True, False]
    assert [row["x"] for row in specs["chart-size"]["data"]["values"]] == [
        pb.Artifact(o).size_bytes / 1e6 for o in made
    ]
    assert all("config" not in spec and spec["width"] == "container" and spec["description"] for spec in specs.values())


def test_every_chart_is_vega_lite(page: Element) -> None:
    """It compiles, and every mark of it draws from the data that the page holds."""
    import vl_convert

    for name, spec in charts(page).items():
        vega = vl_convert.vegalite_to_vega(spec)
        assert not [data for data in vega["data"] if "url" in data], name
        assert {mark["type"] for mark in vega["marks"]} <= {"group", "line", "rect", "rule", "symbol", "text"}, name
        assert len(vega["marks"]) == len(spec.get("layer", [spec])), name


def test_bits_by_layer(page: Element, made: list[Path]) -> None:
    for i, out in enumerate(made):
        artifact, spec = pb.Artifact(out), charts(page)[f"chart-bits-{i}"]
        cells = {cell["where"]: cell["bits"] for cell in spec["data"]["values"]}
        assert len(cells) == len(artifact.plan.layers) == 2 * 7 + 1
        name = "model.layers.1.mlp.up_proj.weight"
        rows, columns = artifact.shape(name)
        assert cells["block 1, up"] == pytest.approx(8 * artifact.nbytes(name) / (rows * columns), abs=1e-4)
        assert "embedding" in cells and f"14 × {artifact.plan.layers[name].scheme}" in spec["description"]


def test_flips_and_texts(page: Element) -> None:
    differ = section(page, "Where the models differ")
    passages = differ.all("p", class_="passage")
    assert len(passages) == 3 and passages[0].text == "… before  word word word1 word2 word3"
    marks = passages[0].all("mark")
    assert [mark.attributes["class"] for mark in marks] == ["lost", "won", "moved"]
    assert all(mark.attributes["title"] == "original “word” 75%, packed “wordx” 25%, KL 0.5" for mark in marks)
    _, first, *_ = table(differ.all("table")[0])
    assert first == ["1", "word", "word", "75.0\u202f%", "wordx", "25.0\u202f%", "0.5000"]
    values = charts(page)["chart-kl"]["data"]["values"]
    assert sum(row["share"] for row in values if row["model"] == "small-w8") == pytest.approx(1)
    (article,) = section(page, "Text, side by side").all("article")
    assert article.all("h3")[0].text == "prompt  word"
    texts = article.all("dd")
    assert [text.text for text in texts] == ["one two  word", *["one three  word"] * 3]
    assert texts[1].all("em")[0].text == "three  word"  # from the word on at which it departs


def test_everything_and_rows(page: Element, made: list[Path], tmp_path: Path, command: Command) -> None:
    _, *cells = table(section(page, "Every figure").all("table")[0])
    for ending in ("jsonl", "csv"):
        file = tmp_path / f"rows.{ending}"
        report(*made, to=tmp_path / "r.html", command=command, options=("--rows", file))
        with open(file, newline="") as lines:
            rows = [json.loads(line) for line in lines] if ending == "jsonl" else list(csv.DictReader(lines))
        assert len(rows) == len(cells) == 3 * 6 + 1
        for row, shown in zip(rows, cells, strict=True):
            assert shown[:2] == [row["model"], row["metric"]] and shown[8] == row["command"]
            assert float(shown[2]) == pytest.approx(float(row["value"]), rel=1e-5) and shown[6] == row["how"]
            assert (shown[4] == "") == (row["stderr"] in (None, "")) and shown[5] == str(row["n"])
        modelled = [row["metric"] for row in rows if row["how"] == "modelled"]
        assert modelled == ["joules_per_token_modelled"] * 3


def test_the_latest_of_a_metric_and_command_stands(model: Path, tmp_path: Path, command: Command) -> None:
    out = pack(model, tmp_path / "small")
    measure(out, "kl_divergence", 0.5)
    measure(out, "kl_divergence", 0.25)
    measure(out, "kl_divergence", 0.125, artifact="of other weights")
    page = report(out, to=tmp_path / "r.html", command=command)
    _, row = table(section(page, "Every figure").all("table")[0])
    assert row[2] == "0.25" and "small: 1 of its results are of other weights" in page.text


def test_it_loads_nothing_and_nothing_else_may_run(page: Element) -> None:
    loading = {"src", "href", "srcset", "action", "data", "poster", "style"}
    everything = [
        element for name in ("script", "style", "link", "img", "svg", "a", "div", "meta") for element in page.all(name)
    ]
    assert not [e for e in everything if loading & set(e.attributes) or any(k.startswith("on") for k in e.attributes)]
    assert not page.all("link") and not page.all("img") and not page.all("iframe")
    (policy,) = page.all("meta", http_equiv="Content-Security-Policy")
    allowed = dict(rule.split(" ", 1) for rule in (policy.attributes["content"] or "").split("; "))
    data, script = page.all("script")
    (style,) = page.all("style")
    assert data.attributes["type"] == "application/json"
    hashes = [base64.b64encode(hashlib.sha256(e.text.encode()).digest()).decode() for e in (script, style)]
    assert allowed == {
        "default-src": "'none'", "script-src": f"'sha256-{hashes[0]}'", "style-src": f"'sha256-{hashes[1]}'",
        "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    assert re.search(r"@import|url\(", style.text) is None


def test_equal_folders_give_equal_bytes(made: list[Path], tmp_path: Path, command: Command) -> None:
    before = [contents(out) for out in made]
    pages = []
    for name in ("a.html", "b.html"):
        report(*made, to=tmp_path / name, command=command)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1] and str(tmp_path).encode() not in pages[0]
    assert [contents(out) for out in made] == before


def test_a_model_that_was_never_measured(model: Path, tmp_path: Path, command: Command) -> None:
    out = pack(model, tmp_path / "new one")
    page = report(out, to=tmp_path / "r.html", command=command)
    assert "has not been measured yet" in page.all("p", class_="verdict")[0].text
    asked = [code.text for code in page.all("code")]
    assert "paretobit eval 'new one' --against tiny --text FILE.txt" in asked and "paretobit bench 'new one'" in asked
    assert set(charts(page)) == {"chart-bits-0"}


def test_json(made: list[Path], tmp_path: Path, command: Command) -> None:
    done = command("report", *made, "-o", tmp_path / "r.html", "--json")
    found = json.loads(done.out)
    assert found["models"] == [out.name for out in made] and found["smallest"] == "small-w4g16"
    assert found["size_bytes"] == (tmp_path / "r.html").stat().st_size < 2_000_000 and found["results"] == 19
    shown = command("report", *made, "-o", tmp_path / "r.html").out
    assert "3 models, 19 figures" in shown and "small-w4g16 is the smallest that keeps 95 %" in shown


def test_models_of_one_name_are_told_apart(model: Path, tmp_path: Path, command: Command) -> None:
    outs = [pack(model, tmp_path / name / "out") for name in ("a", "b")]
    _, *rows = table(report(*outs, to=tmp_path / "r.html", command=command).all("table", class_="heads")[0])
    assert [row[0] for row in rows] == ["a/out", "b/out"]


def test_what_is_refused(made: list[Path], tmp_path: Path, command: Command) -> None:
    page = tmp_path / "r.html"
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(made[0])
    assert "OUTS" in command("report", "-o", page).error
    with pytest.raises(pb.ParetobitError, match="no packed model is named"):
        pb.report(out=str(page))
    assert "paretobit.json is missing" in command("report", tmp_path, "-o", page).error
    assert "given twice" in command("report", made[0], tmp_path / "link", "-o", page).error
    assert "a part of the path is a file" in command("report", made[0], "-o", tmp_path / "file" / "r.html").error
    assert "is not the name of a page" in command("report", made[0], "-o", made[0] / "model.safetensors").error
    assert "ending does not say" in command("report", made[0], "-o", page, "--rows", tmp_path / "rows.txt").error
    assert "model's own results" in command("report", made[0], "-o", page, "--rows", made[0] / "results.jsonl").error
    assert "no carbon intensity" in command("report", made[0], "-o", page, "--grid", "XYZ").error
    assert not page.exists()


def test_the_extra_is_named_where_it_is_missing(
    made: list[Path], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("altair", "vl_convert"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            error = command("report", made[0], "-o", tmp_path / "r.html").error
            assert error.endswith("hint: pip install 'paretobit[report]'") and module in error


def test_no_torch_is_needed(
    made: list[Path], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    report(*made, to=tmp_path / "r.html", command=command)


@pytest.mark.parametrize("runtime", ["torch", "native"])
def test_eval_leaves_details(model: Path, text: Path, tmp_path: Path, command: Command, runtime: str) -> None:
    out = pack(model, tmp_path / "small", "w2g16")
    measured = ("eval", out, "--text", text, "--windows", 2, "--runtime", runtime)
    command(*measured)
    assert not (out / "details.json").exists()
    done = command(*measured, "--against", model)
    assert "the results are not kept" not in done.err and "letting tiny write" in done.err
    packed = pb.Artifact(out)
    whole = sum(len(raw) for raw in contents(out).values())
    assert packed.size_bytes + packed.other_bytes == whole and "details.json" not in packed.companions
    assert 1000 < (out / "details.json").stat().st_size < 200_000
    page = report(out, to=tmp_path / "r.html", command=command)
    assert len(page.all("p", class_="passage")) == 1 and len(page.all("article")) == 4
    head, row = table(page.all("table", class_="heads")[0])
    ratio = float(row[head.index("perplexity ratio")].split(" ±")[0])
    rows = {line["metric"]: line for line in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    assert ratio == pytest.approx(math.exp(rows["ln_perplexity_ratio"]["value"]), abs=0.006)
    assert "chart-kl" in charts(page) and "details" not in (out / "README.md").read_text()
