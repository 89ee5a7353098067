"""bench: how fast a packed model runs here, how much memory it takes, and how near it comes to the machine's limit."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from paretobit.errors import ParetobitError
from paretobit.progress import progress, say
from paretobit.verbs.verb import Option, Verb

if TYPE_CHECKING:
    from paretobit.artifact import Artifact
    from paretobit.evals.latency import Latency
    from paretobit.evals.memory import Resident
    from paretobit.speed import Spread

PROMPT = "The capital of France is"


@dataclass(frozen=True)
class Run:
    """One number of threads. start_s: seconds from starting `paretobit run` to the first token of a short prompt;
    resident: most memory of that command while it decodes, None where the system does not tell."""

    latency: Latency
    start_s: Spread
    resident: Resident | None

    def to_json(self) -> dict[str, Any]:
        """Medians under the names that scripts rely on, all spreads under `spreads`."""
        latency = self.latency
        spreads = {
            "prefill_tokens_per_s": latency.prefill_tokens_per_s,
            "decode_tokens_per_s": latency.decode_tokens_per_s,
            "time_to_first_token_s": self.start_s,
            "loaded_time_to_first_token_s": latency.first_token_s,
            "bandwidth_gb_s": latency.bandwidth_gb_s,
            "read_gb_s": latency.read_gb_s,
            "bandwidth_share": latency.bandwidth_share,
        }
        resident = self.resident
        return {
            "threads": latency.threads,
            **{name: spread.median for name, spread in spreads.items()},
            "resident_bytes": resident and resident.total,
            "resident_own_bytes": resident and resident.own,
            "resident_file_bytes": resident and resident.file,
            "prompt_tokens": latency.prompt_tokens,
            "tokens": latency.tokens,
            "bytes_per_token": latency.bytes_per_token,
            "spreads": {name: spread.to_json() for name, spread in spreads.items()},
        }


@dataclass(frozen=True)
class Bench:
    """A model's speed on this machine, one run a number of threads."""

    path: str
    isa: str
    cpu: str
    size_bytes: int
    runs: tuple[Run, ...]

    def to_json(self) -> dict[str, Any]:
        """The figures of the run with the most threads, and all `runs`."""
        most = max(self.runs, key=lambda run: run.latency.threads)
        about = {"path": self.path, "isa": self.isa, "cpu": self.cpu, "size_bytes": self.size_bytes}
        return {**about, **most.to_json(), "runs": [run.to_json() for run in self.runs]}


def bench(
    out: str,
    *,
    threads: Annotated[str | None, Option("Numbers of threads, such as 1,2 (default: all cores).")] = None,
    tokens: Annotated[int, Option("Tokens to decode in a round.")] = 64,
    prompt: Annotated[int, Option("Tokens of the prompt.")] = 256,
    rounds: Annotated[int, Option("Rounds of reading memory, prompt and decoding in turn.")] = 5,
) -> Bench:
    """Measure a packed model: prefill and decode tokens/s, time to first token, memory, share of the read bandwidth.

    Figures are medians, with the range; they are appended to OUT/results.jsonl. Raises ParetobitError on bad input.
    """
    from paretobit import hardware
    from paretobit.artifact import Artifact

    teams = parse_threads(threads, hardware.cores())
    packed = Artifact(Path(out))
    with progress(f"measuring {packed.name}", len(teams) * (2 * rounds + 1)) as advance:
        runs = tuple(_run(packed, team, prompt, tokens, rounds, advance) for team in teams)
    result = Bench(str(out), hardware.isa(), hardware.cpu_name(), packed.size_bytes, runs)
    _remember(packed, result)
    return result


def parse_threads(text: str | None, cores: int) -> tuple[int, ...]:
    """ "1,2" -> (1, 2)."""
    if text is None:
        return (cores,)
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 1 <= int(part) <= 1024 for part in parts):
        raise ParetobitError(f"--threads {text}: not numbers of threads", hint="write for example --threads 1,2")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _run(packed: Artifact, threads: int, prompt: int, tokens: int, rounds: int, advance: Any) -> Run:
    from paretobit.evals.latency import bytes_per_token, first_output_s, measure
    from paretobit.evals.memory import watch
    from paretobit.runtime.session import Session
    from paretobit.speed import Spread

    session = Session(packed, threads=threads)
    size = bytes_per_token(packed)
    latency = measure(session, size, prompt=prompt, tokens=tokens, rounds=rounds, advance=advance)
    del session
    first = run_command(packed, threads, 1)
    first_output_s(first)  # what it reads is in the page cache from now on
    starts = []
    for _ in range(rounds):
        starts.append(first_output_s(first))
        advance(1)
    resident = watch(run_command(packed, threads, tokens))
    advance(1)
    return Run(latency, Spread.of(starts), resident)


def run_command(packed: Artifact, threads: int, tokens: int) -> list[str]:
    """`paretobit run` in a fresh interpreter."""
    run = [sys.executable, "-m", "paretobit", "run", str(packed.folder), PROMPT]
    return [*run, "-n", str(tokens), "--temperature", "0", "--threads", str(threads)]


def _remember(packed: Artifact, result: Bench) -> None:
    """Append the figures to the model's results; a folder that cannot be written only warns."""
    from paretobit import hardware
    from paretobit.artifact import RESULTS
    from paretobit.reports.card import write_card
    from paretobit.reports.results import Result, append

    machine, rows = hardware.describe().hash, []
    for run in result.runs:
        found = run.to_json()
        command = f"paretobit bench THIS --threads {found['threads']} --prompt {found['prompt_tokens']} "
        command += f"--tokens {found['tokens']} --rounds {len(run.latency.rounds)}"
        for metric, unit in UNITS.items():
            if found[metric] is not None:
                n = len(run.latency.rounds) if metric in found["spreads"] else 1
                rows.append(Result(metric, found[metric], unit, n, None, packed.hash, machine, command))
    try:
        append(packed.folder / RESULTS, rows)
        write_card(packed.folder)
    except ParetobitError as why:
        say(f"warning: the results are not kept: {why}")


UNITS = {
    "prefill_tokens_per_s": "tokens/s",
    "decode_tokens_per_s": "tokens/s",
    "time_to_first_token_s": "s",
    "bandwidth_gb_s": "GB/s",
    "bandwidth_share": "",
    "resident_bytes": "bytes",
}


def show(result: Bench) -> Any:
    from rich.console import Group
    from rich.table import Table

    from paretobit.sizes import human

    table = Table(box=None, header_style="bold")
    for column in (
        "threads", "prefill tokens/s", "decode tokens/s", "GB/s", "of GB/s read", "share", "first token s",
        "from start s", "resident",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for run in result.runs:
        at = run.latency
        table.add_row(
            str(at.threads), at.prefill_tokens_per_s.text(), at.decode_tokens_per_s.text(),
            at.bandwidth_gb_s.text(), at.read_gb_s.text(), f"{at.bandwidth_share.median:.0%}",
            at.first_token_s.text(3), run.start_s.text(2), human(run.resident.total) if run.resident else "unknown",
        )  # fmt: skip
    at = result.runs[0].latency
    return Group(
        f"{result.path}: {human(result.size_bytes)}; {result.cpu}, {result.isa}",
        "",
        table,
        "",
        f"Medians of {len(at.rounds)} rounds (range). Prompt {at.prompt_tokens} tokens, then {at.tokens} one by one, "
        f"{human(at.bytes_per_token)} of weights each. First token: after that prompt, the model loaded; from start: "
        f"of `paretobit run` with a prompt of a few words.",
    )


VERB = Verb("bench", bench, show)
