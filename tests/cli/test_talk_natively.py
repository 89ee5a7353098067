"""run, chat and pb.load with the native session: the same text however it is computed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import tiny_llama_folder

import paretobit as pb
from paretobit import native
from paretobit.errors import ParetobitError
from paretobit.runtime.conversation import Conversation
from paretobit.runtime.sampler import Sampling
from tests.commands import Command


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    model = tiny_llama_folder(folder / "model", model_type=request.param)
    pb.quantize(str(model), to="w4g32", method="rtn", out=str(folder / "small"))
    return folder / "small"


def test_greedy_text_is_that_of_the_logits(packed: Path) -> None:
    """The whole sequence computed anew for every token, in plain numpy."""
    model = pb.load(packed, threads=1)
    tokenizer = model.tokenizer
    ids = tokenizer.encode("The capital of")
    made: list[int] = []
    while len(made) < 24:
        token = int(np.argmax(model.logits(ids + made)[-1]))
        if token in tokenizer.eos_ids:
            break
        made.append(token)
    pieces: list[str] = []
    text = model.generate("The capital of", 24, stream=pieces.append)
    assert text == tokenizer.decode(made) == "".join(pieces)
    assert model.generate(ids, 24) == text


def test_the_same_text_on_every_isa_and_with_any_threads(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = set()
    for isa in native.available():
        monkeypatch.setenv(native.ISA_VARIABLE, isa)
        for threads in (1, 2):
            texts.add(pb.load(packed, threads=threads).generate("The river", 40, temperature=0.9, top_p=0.95, seed=11))
    assert len(texts) == 1


def test_a_conversation_is_the_same_without_what_it_remembers(packed: Path) -> None:
    model = pb.load(packed, threads=1)
    sampling = Sampling(temperature=1.5, top_k=50, repetition_penalty=1.1, seed=5)
    whole, again = Conversation(model, sampling, 20), Conversation(model, sampling, 20)
    for text in ("Hello", "The river runs", "x"):
        again._slot.become([0])  # nothing of the last turn is left in the cache
        assert "".join(whole.answer(text)) == "".join(again.answer(text))
    assert whole.last is not None and again.last is not None
    assert whole.last.fed_tokens < again.last.fed_tokens == again.last.prompt_tokens


def test_the_command_line(packed: Path, command: Command) -> None:
    for activations in ("int8", "fp32"):
        text = pb.load(packed, activations=activations).generate("The capital", 12, temperature=0.8, seed=4)
        options = ("-n", 12, "--temperature", 0.8, "--seed", 4, "--threads", 1, "--activations", activations)
        assert command("run", packed, "The capital", *options).out == text + "\n"
    assert (
        "activations 'int4'; hint: choose from int8, fp32" in command("run", packed, "x", "--activations", "int4").error
    )
    assert "0 threads" in command("run", packed, "x", "--threads", 0).error
    assert "paretobit.json is missing" in command("chat", packed.parent / "model").error
    with pytest.raises(ParetobitError, match="a context of 513 positions"):
        pb.load(packed, context=513)


def test_run_and_chat_need_no_torch_and_no_rich(packed: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['rich'] = None; from paretobit.cli import main\n"
        "main(sys.argv[1:])"
    )
    for words, said in ((("run", packed, "The"), ""), (("chat", packed), "Hello\n")):
        arguments = [sys.executable, "-c", code, *map(str, words), "-n", "5"]
        done = subprocess.run(arguments, input=said, capture_output=True, text=True, timeout=60, env=dict(os.environ))
        assert done.returncode == 0 and done.stdout.endswith("\n") and "Traceback" not in done.stderr


def test_a_small_cache(packed: Path, command: Command) -> None:
    """With a prompt of which much is kept as codes: the command does what load does, and that is not what fp16 does."""
    prompt, after = "The capital of France is Paris. " * 25, []
    for kv in (16, "8w0", "2pw0"):
        model = pb.load(packed, kv=kv)
        after.append(model.logits(model.tokenizer.encode(prompt)))
        assert command("run", packed, prompt, "-n", 40, "--kv", kv).out == model.generate(prompt, 40) + "\n"
    assert len({logits.tobytes() for logits in after}) == 3
    assert "16, 8, 4, 3 or 2" in command("run", packed, "x", "--kv", "5").error
    assert "16, 8, 4, 3 or 2" in command("chat", packed, "--kv", "4z").error


def test_a_conversation_with_a_small_cache_goes_on_where_it_was(packed: Path) -> None:
    """Every turn keeps what the last one computed, and takes back what does not come again."""
    sampling, model = Sampling(temperature=0.0), pb.load(packed, threads=1, kv=4)
    talk = Conversation(model, sampling, max_new_tokens=60, system="The river runs through the old town. " * 10)
    for text in ("Hello", "The river runs", "x"):
        assert "".join(talk.answer(text))
    assert talk.last is not None and talk.last.fed_tokens < talk.last.prompt_tokens
    again = "".join(talk.again())
    assert talk.messages[-1]["content"] == again and model.session.kv_bytes > 0
