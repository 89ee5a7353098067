"""plan: how good the model is at every size, before anything is quantized; and the plan of one size, to keep."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from paretobit.errors import ParetobitError
from paretobit.planfile import SELF, Plan
from paretobit.verbs.quantize import SCHEMES
from paretobit.verbs.verb import Option, Verb

if TYPE_CHECKING:
    from paretobit.compress.corpus import Corpus
    from paretobit.verbs.planning import Chosen, Planner
    from paretobit.verbs.wishes import Wish

BITS = (1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0, 4.25, 4.5, 5.0, 5.5, 6.0, 7.0, 8.0)


@dataclass(frozen=True)
class Row:
    """One plan. kl_divergence, stderr: expected of the packed model, nats a token; mixture, mixture_measured: of its
    tensors rounded one by one, from the table and as measured, None where nobody looked; gap: of the solver, a share;
    weights: by scheme, the share of all matrices' weights; embedding: its scheme; ms_per_token, joules_per_token: see
    Frontier.machine, None without one; ms_measured: on a blank model, None where nobody did."""

    size_bytes: int
    bits_per_weight: float
    kl_divergence: float
    stderr: float | None
    mixture: float
    mixture_measured: float | None
    gap: float
    weights: Mapping[str, float]
    embedding: str
    ms_per_token: float | None = None
    joules_per_token: float | None = None
    ms_measured: float | None = None


@dataclass(frozen=True)
class Frontier:
    """What can be had of a model. plan: the file that was written, None where nobody asked for one; of a shard, which
    has no rows, the folder of its costs; machine: whose milliseconds and joules these are, and how they come about."""

    model: str
    bytes_16bit: int
    calibration: str
    rows: tuple[Row, ...]
    plan: str | None = None
    machine: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    model: str,
    *,
    fit: Annotated[tuple[str, ...], Option("One only: 60MB, 87% (of 16 bits saved), 2.5bpw, 12ms, 0.4J.")] = (),
    keep: Annotated[str | None, Option("One only: the smallest that may be expected to keep 95%.")] = None,
    metric: Annotated[str | None, Option("Of what: next_token_accuracy, same_top1, perplexity or task:FILE.")] = None,
    out: Annotated[str | None, Option("Write the plan of --fit or --keep to this file (JSON).", "-o")] = None,
    shard: Annotated[str | None, Option("i/N: only measure costs, on every N-th window from i on; -o FOLDER.")] = None,
    costs: Annotated[str | None, Option("Costs to choose by (from --shard and merge).")] = None,
    draw: Annotated[str | None, Option("Draw what can be had at every size: FILE.svg or FILE.png.")] = None,
    machine: Annotated[str | None, Option("Whose ms and joules: pi5, n100 …, or what probe -o wrote.", "--for")] = None,
    schemes: Annotated[str, Option("What matrices may choose from.")] = SCHEMES,
    tied: Annotated[bool, Option("Store alike what reads one activation: q, k, v; gate, up.")] = False,
    calib: Annotated[str | None, Option("Calibration text: FILE.txt, FILE.jsonl, or self: the model's own.")] = None,
    tokens: Annotated[int | None, Option("Calibration tokens (default: 32768).")] = None,
    seed: Annotated[int | None, Option("Seed of the text that the model writes (default: 0).")] = None,
    device: Annotated[str | None, Option("cpu or cuda (default: cuda where there is one).")] = None,
) -> Frontier:
    """Predict how close MODEL stays to itself at every size, from what each of its tensors costs on each scheme.

    The costs are measured once and kept; `quantize --fit` chooses from the same table. Raises ParetobitError on bad
    input.
    """
    from paretobit.checkpoint import open_model
    from paretobit.verbs.needs import solver_or_hint, torch_or_hint
    from paretobit.work import write_atomically

    torch_or_hint("plan")
    solver_or_hint("plan")
    from paretobit.compress.apply import Job
    from paretobit.compress.world import pick_device
    from paretobit.verbs.pacing import machine_of
    from paretobit.verbs.planning import planner_for
    from paretobit.verbs.quantize import settled
    from paretobit.verbs.wishes import Wish, affordable, check_wish, expected

    wish = Wish(fit, keep, metric, None, schemes, tied)
    check_wish(wish, {}, 1)
    check_out(out, wish, shard, costs)
    check_draw(draw, wish, shard)
    source, used = open_model(model), pick_device(device)
    budget = affordable(source, wish)
    settings = settled(None, calib, tokens, seed, None, None, None)

    def job_of(plan: Plan) -> Job:
        return Job(source, replace(plan, settings=settings), None, device=used)

    text = calib or SELF, settings.tokens, settings.seed
    chooser, corpus = planner_for(source, schemes, tied, job_of, text, wish.promised, costs)
    chooser.machine = machine_of(chooser.source, machine, budget, chooser.table.folder, chooser.table.schemes)
    if shard is not None:
        return measured_shard(chooser, corpus, shard, Path(out or ""))
    chosen = [expected(chooser, budget, wish)] if wish else frontier(chooser)
    if out is not None:
        write_atomically(Path(out), chosen[0].plan.to_json().encode())
    about = chooser.machine.about if chooser.machine else None
    rows = tuple(row_of(chooser, found) for found in chosen)
    write_picture(draw, source.name, rows)
    return Frontier(source.name, source.bits16, corpus.source, rows, out, about)


def check_out(out: str | None, wish: Wish, shard: str | None, costs: str | None) -> None:
    """Raise on options that contradict one another."""
    if shard is not None and (wish or costs is not None or out is None):
        raise ParetobitError("--shard measures costs into a folder, nothing else", hint="give --shard i/N -o FOLDER")
    if out is not None and not wish and shard is None:
        raise ParetobitError("-o writes one plan, and there is one for every size", hint="add --fit 60MB, or 87%")


def check_draw(draw: str | None, wish: Wish, shard: str | None) -> None:
    """Raise, before the work, on what cannot be drawn."""
    if draw is None:
        return
    from paretobit.reports.afford import check_ending
    from paretobit.reports.charts import altair_or_hint

    if wish or shard is not None:
        raise ParetobitError("--draw shows what can be had at every size", hint="leave --fit, --keep and --shard out")
    check_ending(Path(draw))
    altair_or_hint()


def write_picture(draw: str | None, name: str, rows: Sequence[Row]) -> None:
    """What can be had at every size, if a file is named for it."""
    if draw is None:
        return
    from paretobit.reports.afford import Size, picture
    from paretobit.work import write_atomically

    sizes = [Size(row.size_bytes / 1e6, row.kl_divergence, row.stderr or 0.0, row.weights) for row in rows]
    write_atomically(Path(draw), picture(f"{name}: what can be had at every size", sizes, Path(draw)))


def measured_shard(planner: Planner, corpus: Corpus, shard: str, out: Path) -> Frontier:
    """Costs on one shard of the windows, written to the folder `out`."""
    from paretobit.verbs.costing import COST_WINDOWS
    from paretobit.verbs.shards import parse_shard

    index, of = parse_shard(shard)
    if index >= min(COST_WINDOWS, len(corpus.ids)):
        raise ParetobitError(f"shard {shard} of {COST_WINDOWS} windows is empty", hint="use fewer shards")
    planner.table.measure(out, planner.table.fingerprint | {"shard": shard}, False, slice(index, None, of))
    return Frontier(planner.source.name, planner.source.bits16, corpus.source, (), str(out))


def frontier(planner: Planner) -> list[Chosen]:
    """The best plan at each of BITS that has one, and the smallest."""
    from paretobit.budget import BYTES
    from paretobit.solve import Impossible

    parameters, found = planner.source.parameters, [planner.choose({}, BYTES)]
    for bits in BITS:
        try:
            found.append(planner.choose({BYTES: bits * parameters / 8}))
        except Impossible:
            continue
        if found[-1].size == found[-2].size:
            found.pop()
    return found


def _embedding(planner: Planner, found: Chosen) -> str:
    """Its scheme, or those of its widest and its narrowest band."""
    from paretobit.arch.spec import EMBED
    from paretobit.scheme import parse

    bands = {found.schemes[name] for name in planner.source.arch.bands(EMBED)}
    widths = sorted(bands, key=lambda scheme: parse(scheme).weight.bits, reverse=True)
    return widths[0] if len(widths) == 1 else f"{widths[0]} … {widths[-1]}"


def row_of(planner: Planner, found: Chosen) -> Row:
    from paretobit.budget import JOULES, MS

    shapes, parameters = planner.source.arch.shapes(), planner.source.parameters
    weights: Counter[str] = Counter()
    for name, scheme in found.schemes.items():
        weights[scheme] += shapes[name][0] * shapes[name][1]
    total = sum(weights.values())
    mean, spread = planner.table.costs.predicted(found.schemes)
    stderr = None if spread is None else found.predicted * spread / mean
    shares = {scheme: weights[scheme] / total for scheme in planner.table.schemes if weights[scheme]}
    bits = 8 * found.size / parameters
    measured = None if math.isnan(found.measured) else found.measured
    timed = None if math.isnan(found.timed) else found.timed
    return Row(
        found.size, bits, found.predicted, stderr, found.mixture, measured, found.gap, shares,
        _embedding(planner, found), found.used.get(MS), found.used.get(JOULES), timed,
    )  # fmt: skip


def show(result: Frontier) -> Any:
    from rich.console import Group
    from rich.table import Table

    from paretobit.sizes import human

    table = Table(box=None, header_style="bold")
    times = ("ms a token", "J a token") if result.machine else ()
    for column in ("size", "less", "bits a weight", "KL expected", *times, "embedding", "weights by scheme"):
        table.add_column(column, justify="left" if column.startswith("weights") else "right")
    for row in result.rows:
        error = "" if row.stderr is None else f" ± {row.stderr:.4f}"
        shares = ", ".join(f"{scheme} {share:.0%}" for scheme, share in row.weights.items() if share >= 0.005)
        takes = (f"{row.ms_per_token:.2f}", f"{row.joules_per_token:.3f}") if row.ms_per_token is not None else ()
        table.add_row(
            human(row.size_bytes), f"{1 - row.size_bytes / result.bytes_16bit:.1%}", f"{row.bits_per_weight:.3f}",
            f"{row.kl_divergence:.4f}{error}", *takes, row.embedding, shares,
        )  # fmt: skip
    first = f"{result.model}: {human(result.bytes_16bit)} in 16 bits; calibrated on {result.calibration}"
    if not result.rows:
        return f"{first}\n\nCosts of one shard: {result.plan}; put shards together with paretobit merge"
    if result.plan is not None:
        last = f"Carry it out: paretobit quantize {result.model} --plan {result.plan} -o OUT"
    else:
        last = f"Take one: paretobit quantize {result.model} --fit SIZE -o OUT"
    return Group(first, "", table, "", *([result.machine] if result.machine else []), last)


VERB = Verb("plan", plan, show)
