"""bench: how fast a packed model runs here, what memory and energy it takes, and how near it comes to the limit."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from paretobit.budget import JOULES, MS
from paretobit.errors import ParetobitError
from paretobit.progress import progress, say
from paretobit.verbs.answers import Kv
from paretobit.verbs.verb import Option, Verb

if TYPE_CHECKING:
    from paretobit.artifact import Artifact
    from paretobit.evals.energy import Energy, Meter
    from paretobit.evals.latency import Latency
    from paretobit.evals.memory import Resident
    from paretobit.runtime.session import Session
    from paretobit.speed import Spread

PROMPT = "The capital of France is"


@dataclass(frozen=True)
class Run:
    """One number of threads. start_s: seconds from starting `paretobit run` to the first token of a short prompt;
    resident: most memory of that command while it decodes, None where the system does not tell; energy: of a decoded
    token."""

    latency: Latency
    start_s: Spread
    resident: Resident | None
    energy: Energy

    def to_json(self) -> dict[str, Any]:
        """Medians under the names that scripts rely on, all spreads under `spreads`."""
        latency = self.latency
        spreads = {
            "prefill_tokens_per_s": latency.prefill_tokens_per_s,
            "decode_tokens_per_s": latency.decode_tokens_per_s,
            "ms_per_token": latency.ms_per_token,
            "joules_per_token": self.energy.joules,
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
            "energy_method": self.energy.method,
            "energy_source": self.energy.source,
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
    """A model's speed on this machine, one run a number of threads. kv: how the key-value cache is kept, "16" for
    fp16; kv_bytes: of it after prompt and tokens; grid: the country of --grid, None without."""

    path: str
    isa: str
    cpu: str
    size_bytes: int
    runs: tuple[Run, ...]
    kv: str
    kv_bytes: int
    grid: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures of the run with the most threads, and all `runs`."""
        most = max(self.runs, key=lambda run: run.latency.threads)
        about = {"path": self.path, "isa": self.isa, "cpu": self.cpu, "size_bytes": self.size_bytes, "grid": self.grid}
        about |= {"kv": self.kv, "kv_bytes": self.kv_bytes}
        return {**about, **self._run(most), "runs": [self._run(run) for run in self.runs]}

    def _run(self, run: Run) -> dict[str, Any]:
        return run.to_json() | ({} if self.grid is None else {"gco2e_per_million_tokens": self.grams(run)})

    def grams(self, run: Run) -> float:
        """Of CO2 equivalent, a million decoded tokens from the grid of --grid."""
        from paretobit.evals.energy import carbon

        assert self.grid is not None
        return carbon(1e6 * run.energy.joules.median, self.grid)


def bench(
    out: str,
    *,
    threads: Annotated[str | None, Option("Numbers of threads, such as 1,2 (default: all cores).")] = None,
    tokens: Annotated[int, Option("Tokens to decode in a round.")] = 64,
    prompt: Annotated[int, Option("Tokens of the prompt.")] = 256,
    rounds: Annotated[int, Option("Rounds of reading memory, prompt and decoding in turn.")] = 5,
    kv: Kv = None,
    grid: Annotated[str | None, Option("Country of the grid, such as IND: adds g CO2e per million tokens.")] = None,
) -> Bench:
    """Measure a packed model: tokens/s, time to first token, memory, energy, share of the read bandwidth.

    Energy is the processor's own counters' where the system shows them, else modelled, and says which. Figures are
    medians, with the range; they are appended to OUT/results.jsonl. Raises ParetobitError on bad input.
    """
    from paretobit import hardware
    from paretobit.artifact import Artifact
    from paretobit.evals.energy import carbon
    from paretobit.kv import cache_bytes, parse, spell

    if grid is not None:
        carbon(1.0, grid)  # a country that is not known is said before the work
    teams, cache = parse_threads(threads, hardware.cores()), parse(kv)
    packed = Artifact(Path(out))
    arch = packed.arch
    with progress(f"measuring {packed.name}", len(teams) * (2 * rounds + 1)) as advance:
        runs = tuple(_run(packed, team, prompt, tokens, rounds, spell(cache), advance) for team in teams)
    nbytes = cache_bytes(cache, arch.layers, arch.kv_heads, arch.head_dim, prompt + tokens)
    about = (str(out), hardware.isa(), hardware.cpu_name(), packed.size_bytes)
    result = Bench(*about, runs, spell(cache), nbytes, grid)
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


def _run(packed: Artifact, threads: int, prompt: int, tokens: int, rounds: int, kv: str, advance: Any) -> Run:
    from paretobit.evals.latency import bytes_per_token, first_output_s, measure
    from paretobit.evals.memory import watch
    from paretobit.runtime.session import Session
    from paretobit.speed import Spread

    session = Session(packed, threads=threads, kv=kv)
    size = bytes_per_token(packed)
    latency = measure(session, size, prompt=prompt, tokens=tokens, rounds=rounds, advance=advance)
    energy = decode_energy(session, latency)
    del session
    first = run_command(packed, threads, 1, kv)
    first_output_s(first)  # what it reads is in the page cache from now on
    starts = []
    for _ in range(rounds):
        starts.append(first_output_s(first))
        advance(1)
    resident = watch(run_command(packed, threads, tokens, kv))
    advance(1)
    return Run(latency, Spread.of(starts), resident, energy)


def decode_energy(session: Session, latency: Latency, meter: Meter | None = None) -> Energy:
    """Of one token, decoded as in `latency`'s rounds: by counters in as many rounds more, else modelled from those."""
    from paretobit.evals.energy import MODELLED, Energy, Meter
    from paretobit.evals.latency import token_ids
    from paretobit.hardware import load_profile
    from paretobit.profile import ASSUMED_POWER
    from paretobit.speed import Spread

    if meter is None:
        profile = load_profile()
        meter = Meter(power=(profile and profile.power) or ASSUMED_POWER)
    prompt, tokens, threads, nbytes = latency.prompt_tokens, latency.tokens, latency.threads, latency.bytes_per_token
    if not meter.counters:
        seconds = [found.decode_s / tokens for found in latency.rounds]
        joules = Spread.of(meter.modelled(s, threads, nbytes) for s in seconds)
        return Energy(joules, MODELLED, meter.source, Spread.of(seconds))
    ids, slot = token_ids(session.arch.vocab, prompt + tokens), session.open()

    def work() -> None:
        for token in ids[prompt:]:
            session.feed(slot, [token])
        session.truncate(slot, prompt)

    try:
        session.feed(slot, ids[:prompt])
        return meter.measure(work, tokens, threads, nbytes, len(latency.rounds))
    finally:
        session.close(slot)


def run_command(packed: Artifact, threads: int, tokens: int, kv: str = "16") -> list[str]:
    """`paretobit run` in a fresh interpreter."""
    run = [sys.executable, "-m", "paretobit", "run", str(packed.folder), PROMPT]
    return [*run, "-n", str(tokens), "--temperature", "0", "--threads", str(threads), "--kv", kv]


def _remember(packed: Artifact, result: Bench) -> None:
    """Append the figures to the model's results; a folder that cannot be written only warns."""
    from paretobit import hardware
    from paretobit.artifact import RESULTS
    from paretobit.evals.energy import MODELLED
    from paretobit.reports.card import write_card
    from paretobit.reports.results import Result, append

    machine, rows = hardware.describe().hash, []
    for run in result.runs:
        found = run.to_json()
        command = f"paretobit bench THIS --threads {found['threads']} --prompt {found['prompt_tokens']} "
        command += f"--tokens {found['tokens']} --rounds {len(run.latency.rounds)}"
        command += "" if result.kv == "16" else f" --kv {result.kv}"
        for metric, unit in UNITS.items():
            if found[metric] is not None:
                n = len(run.latency.rounds) if metric in found["spreads"] else 1
                name = f"{metric}_modelled" if metric == JOULES and found["energy_method"] == MODELLED else metric
                rows.append(Result(name, found[metric], unit, n, None, packed.hash, machine, command))
    try:
        append(packed.folder / RESULTS, rows)
        write_card(packed.folder)
    except ParetobitError as why:
        say(f"warning: the results are not kept: {why}")


UNITS = {
    "prefill_tokens_per_s": "tokens/s",
    "decode_tokens_per_s": "tokens/s",
    MS: "ms",
    JOULES: "J",
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
        "threads", "prefill tokens/s", "decode tokens/s", "ms a token", "mJ a token", "GB/s", "of GB/s read", "share",
        "first token s", "from start s", "resident",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for run in result.runs:
        at = run.latency
        table.add_row(
            str(at.threads), at.prefill_tokens_per_s.text(), at.decode_tokens_per_s.text(),
            f"{at.ms_per_token.median:.3f}", f"{1e3 * run.energy.joules.median:.3g}",
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
        f"Key-value cache: {result.kv} bits, {human(result.kv_bytes)} at the end.",
        *energy_lines(result),
    )


def energy_lines(result: Bench) -> list[str]:
    """How energy was found, and what it stands for on the grid."""
    first = result.runs[0].energy
    lines = [f"Energy: {first.method} ({first.source})."]
    if result.grid is not None:
        grams = ", ".join(f"{result.grams(run):.3g} g ({run.latency.threads} threads)" for run in result.runs)
        lines.append(f"CO2 equivalent of a million tokens, grid {result.grid}: {grams}; {first.method}.")
    return lines


VERB = Verb("bench", bench, show)
