"""Embedding and head in bands of rows: what lies in them, what runs on them, and what a plan may say of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paretobit import bands, planfile
from paretobit.arch.spec import EMBED, HEAD, band
from paretobit.artifact import Artifact, packed_size
from paretobit.checkpoint import open_model
from paretobit.compress import bank
from paretobit.compress.apply import Job
from paretobit.errors import ParetobitError
from paretobit.pace import bytes_read
from paretobit.planfile import Plan, check_covers, cut
from paretobit.runtime.session import Session
from paretobit.verbs.quantize import quantize
from tests.checkpoints import tiny_llama_folder
from tests.commands import Command
from tests.packed import Reference

ENDS = ("w4t", "w2t", "w6")  # of rows 0 … 63, 64 … 255 and 256 … 299
CUTS = (64, 256)


def plan_in_bands(model: Path, blocks: str = "w3t") -> Plan:
    """Blocks on one scheme, embedding (and head) in three bands, as a planner would have it."""
    source = open_model(str(model))
    by_scheme = {scheme: bank.uniform_plan(source, scheme) for scheme in {blocks, *ENDS}}
    layers = {n: layer for n, layer in by_scheme[blocks].layers.items() if n not in (EMBED, HEAD)}
    arch = replace(source.arch, cuts=CUTS)
    for end in (EMBED,) if arch.tied else (EMBED, HEAD):
        layers |= {n: by_scheme[s].layers[end] for n, s in zip(arch.bands(end), ENDS, strict=True)}
    return replace(by_scheme[blocks], layers=layers)


@pytest.fixture(scope="module", params=["tied", "untied", "gemma3_text"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = "gemma3_text" if request.param == "gemma3_text" else "llama"
    at = tmp_path_factory.mktemp("model") / "tiny"
    return tiny_llama_folder(at, tied=request.param != "untied", model_type=kind)


@pytest.fixture
def made(folder: Path, text: Path, tmp_path: Path, quick: None) -> Artifact:
    file = tmp_path / "plan.json"
    file.write_text(plan_in_bands(folder).to_json())
    quantize(str(folder), plan=str(file), calib=str(text), tokens=2048, recover=False, out=str(tmp_path / "bands"))
    return Artifact(tmp_path / "bands")


def test_rows_lie_in_their_bands_as_in_a_whole_matrix_of_the_same_scheme(
    folder: Path, made: Artifact, text: Path, tmp_path: Path
) -> None:
    assert made.arch.cuts == CUTS
    assert made.names()[0] == f"{EMBED}[0:64]"
    for scheme, rows in zip(ENDS, map(slice, (0, *CUTS), (*CUTS, 300)), strict=True):
        file = tmp_path / f"{scheme}.json"
        source = open_model(str(folder))
        whole = bank.uniform_plan(source, "w3t")
        ends = bank.uniform_plan(source, scheme).layers
        layers = {name: ends[name] if name in (EMBED, HEAD) else layer for name, layer in whole.layers.items()}
        file.write_text(replace(whole, layers=layers).to_json())
        out = tmp_path / scheme
        quantize(str(folder), plan=str(file), calib=str(text), tokens=2048, recover=False, out=str(out))
        for end in (EMBED,) if source.arch.tied else (EMBED, HEAD):
            np.testing.assert_array_equal(made.read(end, rows), Artifact(out).read(end, rows))
    assert made.read(EMBED).shape == made.read(EMBED, slice(0, 300)).shape == (300, made.arch.hidden)
    across = made.read(EMBED, slice(60, 260))
    np.testing.assert_array_equal(across, made.read(EMBED)[60:260])
    assert made.read(EMBED, slice(5, 5)).shape == (0, made.arch.hidden)


def test_the_native_decoder_runs_on_bands(made: Artifact) -> None:
    """Against the torch decoder in float64, within what float32 may differ."""
    tokens = np.random.default_rng(0).integers(0, 300, (2, 40))
    tokens[0, :4] = 63, 64, 255, 256
    truth = Reference(made).logits(tokens)
    noise = max(np.abs(Reference(made, noise=8.0, seed=seed).logits(tokens) - truth).max() for seed in range(4))
    found = Session(made, threads=2, activations="fp32").logits(tokens)
    assert np.abs(found - truth).max() <= 2 * noise
    one, two = (Session(made, threads=threads).logits(tokens) for threads in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_a_plan_in_bands_is_counted_and_replayed(folder: Path, made: Artifact, text: Path, tmp_path: Path) -> None:
    source = open_model(str(folder))
    exact = {name: scheme.weight.kind == "bf16" for name, scheme in made.schemes.items()}
    assert packed_size(source, made.plan, made.manifest, exact.__getitem__) == made.size_bytes
    assert sum(map(made.nbytes, made.names())) > bytes_read(source.arch, made.plan, 0) * (
        1 if source.arch.tied else 0.5
    )
    quantize(str(folder), plan=str(tmp_path / "bands/plan.json"), calib=str(text), out=str(tmp_path / "again"))
    assert Artifact(tmp_path / "again").hash == made.hash


def test_bands_are_recovered(folder: Path, made: Artifact, text: Path, tmp_path: Path) -> None:
    """Scales of each band are trained, by a little; those of six bits by less than fp16 shows in so few steps."""
    file = str(tmp_path / "bands/plan.json")
    quantize(str(folder), plan=file, calib=str(text), tokens=2048, recover=True, out=str(tmp_path / "trained"))
    trained = Artifact(tmp_path / "trained")
    for name in made.arch.bands(EMBED):
        before, after = made.qtensor(name), trained.qtensor(name)
        np.testing.assert_array_equal(before.codes, after.codes)
        moved = np.abs(after.scale.astype(float) / before.scale - 1)
        assert (moved.max() > 0) == (trained.schemes[name].weight.bits < 6) and moved.max() < 0.2


def test_what_is_no_vocabulary_in_bands_is_refused(folder: Path, tmp_path: Path, command: Command) -> None:
    arch, good = open_model(str(folder)).arch, json.loads(plan_in_bands(folder).to_json())
    middle = good["layers"].pop(f"{EMBED}[64:256]")
    for names in (
        [], [f"{EMBED}[64:192]"], [f"{EMBED}[65:256]"], [f"{EMBED}[64:300]"], [f"{EMBED}[64:128]", f"{EMBED}[100:256]"],
        [EMBED], [f"{EMBED}[64:64]", f"{EMBED}[64:256]"], [f"{EMBED}[256:64]"], [f"{EMBED}[064:256]"],
    ):  # fmt: skip
        text = json.dumps(good | {"layers": good["layers"] | dict.fromkeys(names, middle)})
        plan = planfile.read_plan(text, "plan")
        with pytest.raises(ParetobitError, match="; hint: "):
            check_covers(plan, cut(arch, plan), "plan")
        (tmp_path / "bad.json").write_text(text)
        assert "hint: " in command("quantize", folder, "--plan", tmp_path / "bad.json", "-o", tmp_path / "out").error
    rows = [f"{EMBED}[0:32]", f"{EMBED}[32:300]", *([f"{HEAD}[0:32]", f"{HEAD}[32:300]"] if not arch.tied else [])]
    layers = {n: layer for n, layer in good["layers"].items() if not planfile.is_embedding(n)} | dict.fromkeys(
        rows, middle
    )
    plan = planfile.read_plan(json.dumps(good | {"layers": layers}), "plan")
    with pytest.raises(ParetobitError, match="a band that begins within 64 rows; hint: "):
        check_covers(plan, cut(arch, plan), "plan")


@pytest.mark.parametrize(
    ("vocab", "first", "count"), [(262144, 1024, 19), (49152, 192, 19), (151936, 576, 19), (300, 64, 4), (64, None, 0)]
)
def test_candidates_are_finest_where_tokens_are_common(folder: Path, vocab: int, first: int | None, count: int) -> None:
    arch = replace(open_model(str(folder)).arch, vocab=vocab)
    found = bands.candidates(arch)
    assert len(found) == count and (found[0] if found else None) == first
    assert all(at % 64 == 0 and 0 < at < vocab for at in found) and list(found) == sorted(set(found))
    sizes = np.diff([0, *found, vocab])
    assert sizes[:-1].max(initial=0) <= max(64, -(-vocab // 16 // 64) * 64) and (sizes > 0).all()


def test_neighbours_that_are_alike_become_one_band(folder: Path) -> None:
    arch = replace(open_model(str(folder)).arch, cuts=(64, 128, 192, 256))
    for schemes, expected in (
        (("w4t", "w2t", "w2t", "w2t", "w4t"), {"[0:64]": "w4t", "[64:256]": "w2t", "[256:300]": "w4t"}),
        (("w2t",) * 5, {"": "w2t"}),
    ):
        chosen = {"other": "w3t"} | dict(zip(arch.bands(EMBED), schemes, strict=True))
        if not arch.tied:
            chosen |= dict.fromkeys(arch.bands(HEAD), "w3t")
        found = bands.merged(arch, chosen)
        wanted = {"other": "w3t"} | {EMBED + rows: scheme for rows, scheme in expected.items()}
        if not arch.tied:
            wanted |= {HEAD + rows: "w3t" for rows in expected}
        assert found == wanted


def test_a_source_in_bands_gives_the_same_rows(folder: Path) -> None:
    source = open_model(str(folder))
    cut_up = bands.InBands(source, CUTS)
    whole = source.read(EMBED)
    assert cut_up.parameters == source.parameters and cut_up.hash == source.hash
    for name in cut_up.arch.bands(EMBED):
        rows = band(name)[1]
        np.testing.assert_array_equal(cut_up.read(name), whole[rows])
        np.testing.assert_array_equal(cut_up.read(name, slice(3, 9)), whole[rows][3:9])
        np.testing.assert_array_equal(cut_up.read(name, slice(9, 9)), whole[rows][9:9])
    np.testing.assert_array_equal(cut_up.read(EMBED, slice(60, 70)), whole[60:70])
    with pytest.raises(KeyError):
        cut_up.read(f"{EMBED}[0:65]")


def test_a_job_reads_its_source_in_the_plans_bands(folder: Path) -> None:
    source, plan = open_model(str(folder)), plan_in_bands(folder)
    assert Job(source, plan, None).source.arch.cuts == CUTS
    assert Job(bands.InBands(source, (128,)), plan, None).source.source is source  # type: ignore[attr-defined]
    whole = bank.uniform_plan(source, "w3t")
    assert Job(source, whole, None).source is source


def test_a_model_in_bands_is_exported_in_one_piece(made: Artifact, tmp_path: Path, command: Command) -> None:
    done = command("export", made.folder, "--to", "hf", "-o", tmp_path / "hf")
    assert done.code == 0, done.error
    other = open_model(str(tmp_path / "hf"))
    assert other.arch.cuts == ()
    for name in other.names():
        np.testing.assert_array_equal(other.read(name), made.read(name))
    refused = command("export", made.folder, "--to", "gguf", "-o", tmp_path / "no.gguf").error
    assert f"{EMBED} on w6 exactly: it lies in bands of rows" in refused and "hint: add --lossy" in refused
    done = command("export", made.folder, "--to", "onnx", "--lossy", "--bits", 8, "-o", tmp_path / "onnx")
    assert done.code == 0, done.error
    assert f"such as {EMBED}, w6 to" in done.out


def test_people_see_which_rows_are_on_which_scheme(made: Artifact, command: Command) -> None:
    from paretobit.reports.subjects import _cells

    shown = command("inspect", made.folder).out
    for name, scheme in zip(made.arch.bands(EMBED), ENDS, strict=True):
        assert any(name in line and scheme in line for line in shown.splitlines())
    roles = [cell.role for cell in _cells(made) if cell.block is None]
    assert "embedding, rows 64 … 255" in roles


def test_training_says_that_it_knows_no_bands(folder: Path, made: Artifact, tmp_path: Path, command: Command) -> None:
    plan = json.loads((made.folder / "plan.json").read_text())
    for layer in plan["layers"].values():
        layer["method"], layer["scheme"], layer["params"] = "paretoq", "w2", {}
    (tmp_path / "trained.json").write_text(json.dumps(plan))
    asked = ("train", folder, "--plan", tmp_path / "trained.json", "--data", tmp_path / "trained.json")
    error = command(*asked, "--steps", 1, "-o", tmp_path / "out").error
    assert "in bands of rows, and training knows them whole; hint: " in error
