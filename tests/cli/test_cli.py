"""What scripts rely on: data on stdout, the rest on stderr, one JSON object, code 2 with one line; Python alike."""

from __future__ import annotations

import inspect
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import paretobit as pb
from paretobit.cli import find_verbs
from paretobit.errors import ParetobitError
from tests.checkpoints import tiny_gguf, tiny_llama_folder
from tests.commands import Command, Outcome, contents

EVAL_KEYS = {
    "perplexity", "kl_divergence", "same_top1", "next_token_accuracy", "size_bytes", "other_bytes", "bits_per_weight",
    "tokens", "protocol",
}  # fmt: skip
KL_KEYS = {"mean", "stderr", "median", "p99", "p999", "max"}
INSPECT_KEYS = {"tensors", "size_bytes", "other_bytes", "bits_per_weight", "fallbacks"}
TENSOR_KEYS = {"name", "shape", "scheme", "method", "bytes", "bits_per_weight"}


@pytest.fixture(scope="module")
def packed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "small"
    pb.quantize(str(model), to="w4g64", method="rtn", out=str(out))
    return out


def only_json(done: Outcome) -> dict:
    """The one object on stdout; no bare NaN, which other languages refuse."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert done.code == 0, done.err
    found = json.loads(done.out, parse_constant=refuse)
    assert isinstance(found, dict)
    return found


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_eval_json(packed: Path, model: Path, text: Path, command: Command) -> None:
    found = only_json(command("eval", packed, "--against", model, "--text", text, "--windows", 3, "--json"))
    assert set(found) >= EVAL_KEYS and set(found["kl_divergence"]) >= KL_KEYS
    assert found["tokens"] == 3 * 255 and "windows of 512 tokens" in found["protocol"]
    made = pb.Artifact(packed)
    assert (found["size_bytes"], found["bits_per_weight"]) == (made.size_bytes, made.bits_per_weight)
    assert 0 <= found["same_top1"] <= 1 and 0 <= found["next_token_accuracy"] <= 1 < found["perplexity"]
    assert 0 < found["kl_divergence"]["median"] <= found["kl_divergence"]["p99"] <= found["kl_divergence"]["max"]


def test_eval_without_an_original_and_of_an_original(packed: Path, model: Path, text: Path, command: Command) -> None:
    alone = only_json(command("eval", packed, "--text", text, "--windows", 1, "--json"))
    assert alone["kl_divergence"] is None and alone["same_top1"] is None and alone["perplexity"] > 1
    original = only_json(command("eval", model, "--against", model, "--text", text, "--windows", 1, "--json"))
    assert original["size_bytes"] is None and original["same_top1"] == 1.0
    assert abs(original["kl_divergence"]["max"]) < 1e-6  # softmax in float32 of equal logits


def test_eval_remembers_and_compares(packed: Path, model: Path, text: Path, tmp_path: Path, command: Command) -> None:
    other = tmp_path / "other"
    pb.quantize(str(model), to="w2g16", method="rtn", out=str(other))
    measured = ("--against", model, "--text", text, "--windows", 3)
    found = only_json(command("eval", other, *measured, "--versus", packed, "--json"))
    assert found["difference"]["kl_difference"] > 0  # two bits lose more than four
    rows = [json.loads(line) for line in (other / "results.jsonl").read_text().splitlines()]
    assert {row["metric"] for row in rows} >= {"kl_divergence", "perplexity", "same_top1", "next_token_accuracy"}
    assert {row["artifact"] for row in rows} == {pb.Artifact(other).hash}
    card = (other / "README.md").read_text()
    assert "| kl_divergence |" in card and str(tmp_path) not in card


def test_inspect_json(packed: Path, model: Path, command: Command) -> None:
    found = only_json(command("inspect", packed, "--json"))
    assert set(found) >= INSPECT_KEYS
    source, made = pb.open_model(model), pb.Artifact(packed)
    assert [t["name"] for t in found["tensors"]] == source.names()
    for tensor in found["tensors"]:
        assert set(tensor) >= TENSOR_KEYS
        assert tuple(tensor["shape"]) == source.shape(tensor["name"])
        assert tensor["bytes"] == made.nbytes(tensor["name"])
    (fell,) = found["fallbacks"]
    assert fell["name"] == "model.embed_tokens.weight" and (fell["asked"], fell["stored"]) == ("w4g64", "w6g64")
    assert found["size_bytes"] + found["other_bytes"] == sum(len(raw) for raw in contents(packed).values())


def test_quantize_and_merge_json(model: Path, text: Path, tmp_path: Path, command: Command) -> None:
    options = ("--calib", text, "--tokens", 512, "--json")
    made = only_json(command("quantize", model, "--to", "w3", *options, "-o", tmp_path / "out"))
    assert made["size_bytes"] == pb.Artifact(tmp_path / "out").size_bytes
    assert made["bytes_16bit"] == pb.open_model(model).bits16
    command("quantize", model, "--to", "w3", *options, "--shard", "0/1", "-o", tmp_path / "s")
    merged = only_json(command("merge", tmp_path / "s", "-o", tmp_path / "all", "--json"))
    assert (merged["shards"], merged["of"], merged["tokens"]) == ([0], 1, 512)


def test_data_on_stdout_and_the_rest_on_stderr(model: Path, tmp_path: Path, command: Command) -> None:
    done = command("quantize", model, "--to", "w3g64", "--method", "rtn", "-o", tmp_path / "out")
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'out'}: ") and "bits per weight" in lines[0]
    assert all(line.startswith("note: ") for line in lines[1:]) and len(lines) == 2
    assert "quantizing tiny: 100 %" in done.err
    quiet = command("quantize", model, "--to", "w1", "--method", "rtn", "-o", tmp_path / "one")
    assert "warning: below 2 bits" in quiet.err and "warning" not in quiet.out


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from paretobit.cli import main; main(sys.argv[1:])"


def test_without_torch_inspect_works_and_the_others_say_what_to_install(packed: Path, tmp_path: Path) -> None:
    listed = run("-c", WITHOUT_TORCH, "inspect", packed, "--json")
    assert (listed.returncode, listed.stderr) == (0, "") and json.loads(listed.stdout)["size_bytes"] > 0
    calls = {
        "eval": ("eval", packed, "--text", tmp_path / "text"),
        "quantize": ("quantize", packed, "--to", "w3", "-o", tmp_path / "out"),
        "merge": ("merge", tmp_path, "-o", tmp_path / "out"),
        "demo": ("demo",),
        "plan": ("plan", packed),
    }
    for verb, arguments in calls.items():
        done = run("-c", WITHOUT_TORCH, *arguments)
        told = Outcome(done.returncode, done.stdout, done.stderr).error
        assert told == f"error: {verb} needs torch; hint: pip install paretobit[compress]"
    assert not (tmp_path / "out").exists()
    assert run("-c", WITHOUT_TORCH, "--help").returncode == 0


WRONG = {
    "an unknown verb": (("shrink", "MODEL"), "No such command 'shrink'"),
    "an unknown option": (("quantize", "MODEL", "--too", "w3", "-o", "OUT"), "--too"),
    "no output": (("quantize", "MODEL", "--to", "w3"), "Missing option '--out'"),
    "no model": (("quantize", "--to", "w3", "-o", "OUT"), "Missing argument"),
    "two models": (("inspect", "a", "b"), "unexpected extra argument"),
    "text for a number": (
        ("quantize", "MODEL", "--to", "w3", "--tokens", "many", "-o", "OUT"),
        "'many' is not",
    ),
    "neither scheme nor plan": (("quantize", "MODEL", "-o", "OUT"), "say one of --to, --fit, --keep and --plan"),
    "scheme and plan": (
        ("quantize", "MODEL", "--to", "w3", "--plan", "p", "-o", "OUT"),
        "say one of --to, --fit, --keep and --plan",
    ),
    "no scheme": (("quantize", "MODEL", "--to", "int4", "-o", "OUT"), "'int4' is not a scheme"),
    "seven bits": (("quantize", "MODEL", "--to", "w7", "-o", "OUT"), "7 bits are not supported"),
    "no embed scheme": (("quantize", "MODEL", "--to", "w3", "--embed", "x", "-o", "OUT"), "'x' is not a scheme"),
    "no method": (("quantize", "MODEL", "--to", "w3", "--method", "awq2", "-o", "OUT"), "choose from gptq, rtn"),
    "no parameter": (("quantize", "MODEL", "--to", "w3", "--set", "gptq.dump=1", "-o", "OUT"), "no parameter 'dump'"),
    "no value": (("quantize", "MODEL", "--to", "w3", "--set", "gptq.damp", "-o", "OUT"), "METHOD.NAME=VALUE"),
    "no number": (("quantize", "MODEL", "--to", "w3", "--set", "gptq.damp=x", "-o", "OUT"), "'x' is not a float"),
    "no inputs": (("quantize", "MODEL", "--to", "w3", "--inputs", "half", "-o", "OUT"), "choose from sequential, full"),
    "no tokens": (("quantize", "MODEL", "--to", "w3", "--tokens", "0", "-o", "OUT"), "--tokens 0 is out of range"),
    "a negative seed": (("quantize", "MODEL", "--to", "w3", "--seed", "-1", "-o", "OUT"), "--seed -1 is out of range"),
    "an unknown device": (("quantize", "MODEL", "--to", "w3", "--device", "tpu", "-o", "OUT"), "choose from cpu, cuda"),
    "no device": (("quantize", "MODEL", "--to", "w3", "--device", "cuda:7", "-o", "OUT"), "--device cuda"),
    "no model there": (("quantize", "nowhere", "--to", "w3", "-o", "OUT"), "there is no model at 'nowhere'"),
    "no demo": (("quantize", "demo:x", "--to", "w3", "-o", "OUT"), "choose from demo:smollm2, demo:gemma3"),
    "no plan there": (("quantize", "MODEL", "--plan", "p.json", "-o", "OUT"), "p.json: no such file"),
    "an original for an artifact": (("inspect", "MODEL"), "paretobit.json is missing"),
    "nothing to eval on": (("eval", "MODEL"), "add --text FILE.txt or --tasks FILE.jsonl"),
    "nothing to compare with": (("eval", "MODEL", "--text", "t", "--versus", "x"), "give both"),
    "no text there": (("eval", "MODEL", "--text", "t.txt"), "cannot read 't.txt'"),
    "no shards": (("merge", "-o", "OUT"), "Missing argument"),
    "a line break in a name": (("inspect", "new\nline"), "new line: paretobit.json is missing"),
    "an escape in a name": (("inspect", "\x1b[2J"), "?[2J: paretobit.json is missing"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("more", [(), ("--json",)], ids=["", "--json"])
def test_wrong_commands(what: str, more: tuple, model: Path, tmp_path: Path, command: Command) -> None:
    arguments, expected = WRONG[what]
    places = {"MODEL": model, "OUT": tmp_path / "out"}
    told = command(*(places.get(word, word) for word in arguments), *more).error
    assert expected in told
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_the_hub_without_a_network(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    told = command("quantize", "nobody/nothing", "--to", "w3", "-o", tmp_path / "out").error
    assert "nobody/nothing cannot be fetched" in told and "copy the model's folder here" in told


def test_help_of_every_verb(command: Command) -> None:
    verbs = find_verbs()
    assert {"quantize", "eval", "inspect", "merge", "demo"} <= set(verbs)
    general = command("--help")
    assert general.code == 0 and all(verb in general.out for verb in verbs)
    assert command().out == general.out or "Usage: paretobit" in command().out
    for name, verb in verbs.items():
        for flag in ("--help", "-h"):
            done = command(name, flag)
            assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"Usage: paretobit {name}") and "--json" in done.out
        shown = re.sub(r"\s+", " ", done.out)
        assert re.sub(r"\s+", " ", inspect.getdoc(verb.function).split("\n\n")[0]) in shown
        for parameter in inspect.signature(verb.function).parameters.values():
            word = "--" + parameter.name.replace("_", "-")
            assert (word if parameter.kind is parameter.KEYWORD_ONLY else parameter.name.upper()) in shown
    assert command("--version").out.split()[-1] == pb.__version__


@pytest.mark.parametrize("name", ["w3g64", "gguf"])
def test_python_does_what_the_command_line_does(
    name: str, model: Path, text: Path, tmp_path: Path, command: Command
) -> None:
    source = tiny_gguf(tmp_path / "tiny.gguf") if name == "gguf" else model
    options = {"to": "w3g64", "calib": str(text), "tokens": 512, "set": ("gptq.damp=0.02",)}
    fit = pb.quantize(str(source), out=str(tmp_path / "a"), **options)
    words = [word for key, value in options.items() for word in (f"--{key}", value[0] if key == "set" else value)]
    made = only_json(command("quantize", source, *words, "-o", tmp_path / "b", "--json"))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert {**made, "path": "", "seconds": 0} == json.loads(json.dumps({**fit.to_json(), "path": "", "seconds": 0}))
    listed = only_json(command("inspect", tmp_path / "a", "--json"))
    assert listed == json.loads(json.dumps(pb.inspect_artifact(str(tmp_path / "a")).to_json()))
    result = pb.evaluate(str(tmp_path / "a"), against=str(source), text=str(text), windows=2)
    measure = ("eval", tmp_path / "b", "--against", source, "--text", text, "--windows", 2)
    found = only_json(command(*measure, "--json"))
    assert {**found, "model": ""} == json.loads(json.dumps({**result.to_json(), "model": ""}))
    assert command(*measure).out == f"{result}\n".replace(str(tmp_path / "a"), str(tmp_path / "b"))


def test_models_that_do_not_go_together(packed: Path, text: Path, tmp_path: Path, command: Command) -> None:
    other = tiny_llama_folder(tmp_path / "other", vocab_size=310)
    told = command("eval", packed, "--against", other, "--text", text, "--windows", 1).error
    assert "310" in told and "300" in told


def test_the_module_runs_and_a_reader_may_go_away(packed: Path) -> None:
    done = run("-m", "paretobit", "inspect", packed)
    assert done.returncode == 0 and "bits per weight" in done.stdout and "\x1b" not in done.stdout
    for more in ([], ["--json"]):
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w") as gone:
            command = [sys.executable, "-m", "paretobit", "inspect", str(packed), *more]
            left = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, timeout=60)
        assert (left.returncode, left.stderr) == (0, "")


def test_no_color_on_a_terminal_that_asks_for_none(packed: Path) -> None:
    main, other = pty.openpty()
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "120"}
    command = [sys.executable, "-m", "paretobit", "inspect", str(packed)]
    subprocess.run(command, stdout=other, stderr=other, env=environment, check=True, timeout=60)
    os.close(other)
    shown = b""
    while True:
        try:
            part = os.read(main, 1 << 16)
        except OSError:  # the other end is closed
            break
        shown += part
    os.close(main)
    assert b"bits per weight" in shown
    colors = re.findall(rb"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9;]*)?m", shown)
    assert not colors


def test_a_terminal_without_unicode_is_no_reason_to_fail(packed: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = run("-m", "paretobit", "inspect", packed, env=environment)
    assert done.returncode == 0 and "64 ? 96" in done.stdout


def test_errors_are_exceptions_in_python(packed: Path, tmp_path: Path) -> None:
    for call in (
        lambda: pb.quantize("nowhere", to="w3", out=str(tmp_path / "out")),
        lambda: pb.inspect_artifact(str(tmp_path)),
        lambda: pb.evaluate(str(packed)),
        lambda: pb.merge(out=str(tmp_path / "out")),
        lambda: pb.open_model("nowhere"),
    ):
        with pytest.raises(ParetobitError) as caught:
            call()
        assert str(caught.value) == f"{caught.value.message}; hint: {caught.value.hint}"
