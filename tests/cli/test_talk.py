"""run and chat on the command line, with a session that says what it is told: what goes where, and how they end."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from paretobit.progress import plain
from paretobit.runtime import generate
from tests.commands import Command
from tests.parrot import loader, talker

PARROT = Path(__file__).parent.parent / "parrot.py"
LETTERS = "abcdefghijklmnopqrstuvwxyz" * 40


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    """OUT is a model that repeats what is said to it, TALKER never ends, MUTE has no chat template."""
    monkeypatch.setattr(generate, "load", loader(slow=0))


def stdin(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))


def letters(prompt: str, count: int) -> str:
    """What TALKER says."""
    start = len(talker(slow=0).tokenizer.encode(prompt)) % 26
    return LETTERS[start : start + count]


def test_run_prints_the_continuation_alone(command: Command) -> None:
    done = command("run", "TALKER", "Once", "-n", 9)
    assert (done.code, done.out) == (0, letters("Once", 9) + "\n")
    assert re.fullmatch(r"prompt \d tokens at [\d.]+/s, answer 9 tokens at [\d.]+/s; 1 threads, \w+\n", done.err)


def test_run_json(command: Command) -> None:
    done = command("run", "TALKER", "Once", "-n", 9, "--stop", letters("Once", 9)[6:8], "--json")
    found = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert set(found) >= {
        "text", "finish", "prompt_tokens", "tokens", "load_seconds", "prompt_seconds", "seconds",
        "prompt_tokens_per_s", "tokens_per_s", "threads", "isa",
    }  # fmt: skip
    assert (found["text"], found["finish"], found["tokens"]) == (letters("Once", 6), "stop", 8)
    assert found["prompt_tokens"] == len(talker(slow=0).tokenizer.encode("Once"))
    assert 0 < found["prompt_seconds"] < found["seconds"] and found["tokens_per_s"] > 0


@pytest.mark.parametrize("raw", ["Le café 日本\nand so on", "x\n\n", "two\r\nlines\n"])
def test_run_reads_a_prompt_from_stdin(raw: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, raw.encode())
    done = command("run", "TALKER", "-", "-n", 5)
    assert (done.code, done.out) == (0, letters(raw.removesuffix("\n"), 5) + "\n")


def test_run_takes_sampling_options(command: Command) -> None:
    hot = ("run", "TALKER", "Once", "-n", 12, "--temperature", 5)
    one, same, other = (command(*hot, "--seed", seed).out for seed in (1, 1, 2))
    assert one == same != other
    for narrow in (("--top-k", 1), ("--top-p", 0.001), ("--min-p", 1)):
        assert command(*hot, *narrow).out == letters("Once", 12) + "\n"
    token = talker(slow=0).tokenizer.encode(letters("Once", 1))[0]
    for off in (("--logit-bias", f"{token}=-inf"), ("--logit-bias", f"{token}=-9", "--logit-bias", "0=-1")):
        assert command("run", "TALKER", "Once", "-n", 1, *off).out != letters("Once", 1) + "\n"
    greedy = ("run", "TALKER", "Once", "-n", 30)
    plain_out = command(*greedy).out
    for penalty in ("--frequency-penalty", "--presence-penalty"):
        assert command(*greedy, penalty, 9).out[:26] == plain_out[:26] != command(*greedy, penalty, 9).out
    assert command(*greedy, "--repetition-penalty", 1000).out == plain_out  # 0.008 is still above all others' 0


WRONG = {
    "temperature": (("run", "OUT", "x", "--temperature", "-1"), "temperature -1.0 is out of range"),
    "no temperature": (("run", "OUT", "x", "--temperature", "nan"), "temperature nan is out of range"),
    "top-p": (("run", "OUT", "x", "--top-p", "1.5"), "top_p 1.5 is out of range"),
    "top-k": (("chat", "OUT", "--top-k", "-1"), "top_k -1 is out of range"),
    "min-p": (("run", "OUT", "x", "--min-p", "2"), "min_p 2.0 is out of range"),
    "repetition": (("run", "OUT", "x", "--repetition-penalty", "0"), "repetition_penalty 0.0 is out of range"),
    "seed": (("chat", "OUT", "--seed", "-1"), "seed -1 is out of range"),
    "bias": (("run", "OUT", "x", "--logit-bias", "5"), "'5' is not ID=VALUE"),
    "foreign bias": (("chat", "OUT", "--logit-bias", "999=1"), "token 999 is not one of 300"),
    "no stop": (("run", "OUT", "x", "--stop", ""), "a stop string is empty"),
    "no stop in a chat": (("chat", "OUT", "--stop", ""), "a stop string is empty"),
    "no tokens": (("run", "OUT", "x", "-n", "0"), "max_new_tokens 0 is out of range"),
    "no tokens in a chat": (("chat", "OUT", "-n", "0"), "max_new_tokens 0 is out of range"),
    "no prompt": (("run", "OUT", ""), "the prompt is empty"),
    "too long": (("run", "OUT", "x " * 600), "do not fit the context of 512"),
    "too many": (("run", "OUT", "x", "-n", "512"), "ask for at most 511 new tokens"),
    "no template": (("chat", "MUTE"), "the model has no chat template; hint: use run instead"),
}


@pytest.mark.parametrize("more", [(), ("--json",)], ids=["", "json"])
@pytest.mark.parametrize("what", WRONG)
def test_wrong_commands(what: str, more: tuple, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"Hello\n")
    arguments, expected = WRONG[what]
    assert expected in command(*arguments, *more).error


def test_a_prompt_that_is_no_text(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"caf\xe9")
    assert "the prompt on stdin is not UTF-8" in command("run", "OUT", "-").error


def test_chat_answers_the_lines_of_stdin(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    talk = f"""Hello

/system Be kind.
日本 😀
/save {tmp_path}/talk.json
/reset
 /usr is a folder
/load {tmp_path}/talk.json
Again
/save {tmp_path}/talk.json
/save {tmp_path}/talk.md
/help
/quit
not said"""
    stdin(monkeypatch, talk.encode())
    done = command("chat", "OUT", "--temperature", 0)
    assert (done.code, done.out) == (0, "Hello!\n日本 😀!\n /usr is a folder!\nAgain!\n")
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [m["content"] for m in saved] == ["Be kind.", "Hello", "Hello!", "日本 😀", "日本 😀!", "Again", "Again!"]
    assert "## assistant\n\nAgain!" in (tmp_path / "talk.md").read_text()
    assert all(word in done.err for word in ("/regen", "/load FILE", f"7 messages in {tmp_path}/talk.md"))


def test_chat_json(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"Hello\ncount 3\r\n")
    done = command("chat", "OUT", "--temperature", 0, "--system", "Be kind.", "--json")
    assert (done.code, done.err) == (0, "")
    messages = [
        ["system", "Be kind."],
        ["user", "Hello"],
        ["assistant", "Hello!"],
        ["user", "count 3"],
        ["assistant", "1 2 3"],
    ]
    found = json.loads(done.out)
    assert found["model"] == "OUT" and [[m["role"], m["content"]] for m in found["messages"]] == messages


def test_chat_gives_another_answer(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"Hello there\n/regen\n/regen\n")
    answers = command("chat", "OUT", "--temperature", 8, "-n", 6, "--json")
    assert len(json.loads(answers.out)["messages"]) == 2
    stdin(monkeypatch, b"Hello there\n/regen\n")
    lines = command("chat", "OUT", "--temperature", 8, "-n", 6)
    assert "cut after 6 tokens: -n allows more" in lines.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nothing", "there is no /nothing; hint: /help lists commands"),
        ("/save", "/save which file?"),
        ("/load nowhere.json", "nowhere.json"),
        ("/save THERE", "is there already; hint: choose another name"),
        ("/regen", "there is no answer to give again"),
        ("word " * 600, "does not fit the context of 512"),
    ],
)
def test_wrong_lines_end_a_chat_that_nobody_types(
    line: str, message: str, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "there").write_text("mine")
    stdin(monkeypatch, f"{line.replace('THERE', str(tmp_path / 'there'))}\nHello\n".encode())
    assert message in command("chat", "OUT").error
    assert (tmp_path / "there").read_text() == "mine"


def test_python_does_what_the_command_line_does(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import paretobit as pb

    completion = pb.run("TALKER", "Once", max_new_tokens=9)
    assert "".join(completion) == str(completion) == letters("Once", 9)
    assert str(pb.run("TALKER", "Once", max_new_tokens=9)) == letters("Once", 9)
    chat = pb.chat("OUT", temperature=0.0)
    assert "".join(chat.conversation.answer("Hello")) == "Hello!"


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert plain("a\x1b[2J\r\n\tb\x07\x9b日 😀\u202e") == "a\ufffd[2J\n\tb\ufffd\ufffd日 😀\ufffd"


@contextmanager
def started(*arguments: str, **given: object) -> Iterator[subprocess.Popen]:
    command = [sys.executable, str(PARROT), *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, **given) as process:
        try:
            yield process
        finally:
            process.kill()


PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


def test_ctrl_c_keeps_what_run_has_said() -> None:
    with started("run", "TALKER", "Once", "-n", "900", **PIPES) as process:
        assert process.stdout is not None and process.stderr is not None
        first = os.read(process.stdout.fileno(), 3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    said = (first + out).decode()
    assert process.returncode == 130
    assert said.endswith("\n") and len(said) < 900 and letters("Once", 900).startswith(said[:-1])
    assert (
        re.match(rf"prompt \d tokens.*, answer {len(said) - 1} tokens", err.decode())
        and "Traceback" not in err.decode()
    )


def test_a_reader_of_run_may_go_away() -> None:
    with started("run", "TALKER", "Once", "-n", "100000", **PIPES) as process:
        assert process.stdout is not None
        assert len(os.read(process.stdout.fileno(), 1)) == 1
        process.stdout.close()
        process.stdout = None
        err = process.communicate(timeout=60)[1]
    assert (process.returncode, err) == (0, b"")


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(tmp_path: Path) -> None:
    with started("chat", "OUT", "--temperature", "0", **PIPES) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"count 90\n")
        process.stdin.flush()
        said = os.read(process.stdout.fileno(), 3)
        process.send_signal(signal.SIGINT)
        while not said.endswith(b"\n"):
            said += os.read(process.stdout.fileno(), 1000) or pytest.fail("it has ended")
        out, err = process.communicate(f"Hello\n/save {tmp_path}/talk.json\n".encode(), timeout=60)
    assert (process.returncode, out) == (0, b"Hello!\n") and b"Traceback" not in err
    whole = " ".join(map(str, range(1, 91)))
    cut = said.decode().removesuffix("\n")
    assert whole.startswith(cut) and 0 < len(cut) < len(whole)
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [m["content"] for m in saved] == ["count 90", cut, "Hello", "Hello!"]


def test_ctrl_c_between_answers_ends_a_chat_that_nobody_types() -> None:
    with started("chat", "OUT", "--temperature", "0", **PIPES) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"Hello\n")
        process.stdin.flush()
        said = b""
        while not said.endswith(b"\n"):
            said += os.read(process.stdout.fileno(), 1000) or pytest.fail("it has ended")
        for _ in range(3):  # a signal just before Python waits for input is heard with the next one
            with suppress(subprocess.TimeoutExpired):
                process.send_signal(signal.SIGINT)
                process.wait(20)
                break
        assert (process.returncode, said) == (130, b"Hello!\n")


class Terminal:
    """A terminal with `paretobit chat` in it."""

    def __init__(self, **environment: str) -> None:
        command = [sys.executable, str(PARROT), "chat", "OUT", "--temperature", "0"]
        given = {**os.environ, "TERM": "xterm-256color", **environment}
        self.pid, self.main = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, given)
        self.seen = ""

    def shows(self, seconds: float = 60) -> bool:
        """Wait until more is shown; False where nothing is."""
        if not select.select([self.main], [], [], seconds)[0]:
            return False
        try:
            self.seen += os.read(self.main, 4096).decode("utf-8", "replace")
        except OSError:
            raise AssertionError(f"it ended: {self.seen!r}") from None
        return True

    def until(self, what: str, after: int = 0) -> int:
        """Wait until `what` is shown, behind `after`; where it ends."""
        while what not in self.seen[after:]:
            assert self.shows(), f"it hangs: {self.seen!r}"
        return self.seen.index(what, after) + len(what)

    def end(self) -> int:
        """Its exit code."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.main)
        return code

    def interrupt(self, after: int) -> int:
        """Ctrl-C, and where the new prompt ends. One just before Python waits for keys is heard with the next."""
        for _ in range(3):
            self.type("\x03")
            while "\n> " not in self.seen[after:] and self.shows(20):
                pass
            if "\n> " in self.seen[after:]:
                break
        return self.until("\n> ", after)

    def type(self, keys: str) -> None:
        os.write(self.main, keys.encode())


@pytest.mark.parametrize("color", [True, False])
def test_a_conversation_in_a_terminal(color: bool) -> None:
    terminal = Terminal(**({} if color else {"NO_COLOR": "1"}))
    at = terminal.until("> ", terminal.until("Ctrl-D leaves"))
    terminal.type("Hello\n")
    at = terminal.until("> ", terminal.until("Hello!", at))
    terminal.type("count 90\n")
    at = terminal.until(" 3 ", at)
    terminal.type("\x03")
    at = terminal.until("> ", at)
    assert " 89" not in terminal.seen
    terminal.type("/nothing\n")  # an error is told, and the conversation goes on
    at = terminal.until("> ", terminal.until("there is no /nothing", at))
    terminal.type("not sent")
    at = terminal.interrupt(terminal.until("not sent", at))
    terminal.type("Once more\n")
    at = terminal.until("> ", terminal.until("Once more!", at))
    terminal.type("\x04")
    assert terminal.end() == 0
    reds = re.findall(r"\x1b\[[0-9;]*31m", terminal.seen)
    assert bool(reds) == color
