"""quantize: a model and a scheme in, a packed model out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from paretobit.checkpoint import open_model
from paretobit.errors import ParetobitError
from paretobit.planfile import FULL, INPUTS, SELF, SEQUENTIAL, STATS, Settings
from paretobit.progress import say
from paretobit.verbs.adopting import adopt, adoptable
from paretobit.verbs.deciding import HOW, decide, unasked
from paretobit.verbs.needs import torch_or_hint
from paretobit.verbs.verb import Option, Verb

if TYPE_CHECKING:
    from paretobit.compress.apply import Job
    from paretobit.planfile import Plan


SCHEMES = "w1t,w1.5t,w2t,w2.5t,w3t,w3.5t,w4t,w5,w6,w8"


@dataclass(frozen=True)
class Fit:
    """What quantize made. bytes_16bit: the same model in 16 bits; seconds: 0 where nothing had to be done."""

    path: str
    size_bytes: int
    bytes_16bit: int
    bits_per_weight: float
    seconds: float
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def quantize(
    model: str,
    *,
    out: Annotated[str, Option("Folder to write.", "-o")],
    to: Annotated[str | None, Option("Scheme of the blocks' matrices: w2t, w3t, w3g64, w8 …")] = None,
    method: Annotated[str | None, Option("Rounding method (default: gptq, for w2t … trellis; rtn: no data).")] = None,
    embed: Annotated[str | None, Option("Scheme of embedding and head (default: one step wider).")] = None,
    transform: Annotated[tuple[str, ...], Option("Before rounding: awq or smoothquant (for w8a8), and rotate.")] = (),
    plan: Annotated[str | None, Option("Replay a plan (JSON) instead of --to.")] = None,
    fit: Annotated[tuple[str, ...], Option("What you can afford: 60MB, 87% (less than 16 bits), 2.5bpw, 12ms.")] = (),
    keep: Annotated[str | None, Option("Or what must be left, as small as can be: 95% (see --metric).")] = None,
    metric: Annotated[str | None, Option("next_token_accuracy, same_top1, perplexity or task:FILE.")] = None,
    check: Annotated[str | None, Option("Text that --keep measures on (default: what calibration left).")] = None,
    schemes: Annotated[str, Option("What --fit and --keep may choose from.")] = SCHEMES,
    tied: Annotated[bool, Option("Have them store alike what reads one activation: q, k, v; gate, up.")] = False,
    calib: Annotated[str | None, Option("Calibration text: FILE.txt, FILE.jsonl, or self: the model's own.")] = None,
    tokens: Annotated[int | None, Option("Calibration tokens (default: 32768).")] = None,
    seed: Annotated[int | None, Option("Seed of the text that the model writes (default: 0).")] = None,
    set: Annotated[tuple[str, ...], Option("A method's parameter: --set gptq.damp=0.02.")] = (),
    inputs: Annotated[str | None, Option("What calibration sees: sequential (as rounded; default) or full.")] = None,
    stats: Annotated[str | None, Option("Statistics folder to use (from --shard and merge).")] = None,
    shard: Annotated[str | None, Option("i/N: write only the statistics of every N-th window from i on.")] = None,
    recover: Annotated[bool | None, Option("Train scales and norms too (default: on a trellis to 3 bits).")] = None,
    device: Annotated[str | None, Option("cpu or cuda (default: cuda where there is one).")] = None,
    overwrite: Annotated[bool, Option("Replace what an earlier command left at -o.")] = False,
) -> Fit:
    """Quantize MODEL (folder, .gguf, hub id or demo:smollm2) into a packed model.

    The codes of a GPTQ, AWQ, compressed-tensors or ParetoQ model stay, unless a scheme is asked for.
    Interrupted, the same call goes on from the last finished block. Raises ParetobitError on bad input.
    """
    source = open_model(model)
    if adoptable(source) and not (to or plan or fit or keep):
        said = method, embed, transform, metric, check, calib, tokens, seed, set, inputs, stats, shard, recover
        return adopt(source, Path(out), overwrite, said)
    torch_or_hint("quantize")
    from paretobit.compress.apply import Job
    from paretobit.compress.world import join, pick_device
    from paretobit.verbs.shards import collect_shard
    from paretobit.verbs.wishes import Wish, check_wish, granted

    options, world, used = parse_set(set), join(), pick_device(device)
    check_together(inputs, stats, shard, recover)
    wish, how = Wish(fit, keep, metric, check, schemes, tied), (method, embed, as_tuple(transform))
    others: dict[str, object] = {"--to": to, "--plan": plan, "--set": options, "--stats": stats, "--shard": shard}
    check_wish(wish, {**dict(zip(HOW, how, strict=True)), **others}, world.size)
    decided = None if wish else decide(source, to, how, plan, options)
    settings = settled(decided.settings if decided else None, calib, tokens, seed, inputs, recover, stats)
    text = calib or SELF, settings.tokens, settings.seed

    def job_of(plan: Plan) -> Job:
        plan = replace(plan, settings=settings)
        return Job(source, plan, None, settings.inputs == SEQUENTIAL, None, settings.recover, device=used, world=world)

    if decided is None:
        return granted(source, wish, job_of, text, Path(out), overwrite)
    if shard is not None:
        return collect_shard(source, Path(out), shard, *text, used, overwrite)
    return carry_out(job_of(decided), text, stats, Path(out), unasked(decided, to, method, embed), overwrite)


def carry_out(
    job: Job, text: tuple[str, int, int], stats: str | None, out: Path, fallbacks: list[dict[str, str]], overwrite: bool
) -> Fit:
    """From a job's plan to the packed model at `out`. text: --calib, --tokens and --seed."""
    warn_of_ruin(job.plan)
    return run(job, out, prepare_calibration(job, *text, stats), fallbacks, overwrite)


def settled(
    plans: Settings | None, calib: str | None, tokens: int | None, seed: int | None, inputs: str | None,
    recover: bool | None, stats: str | None,
) -> Settings:  # fmt: skip
    """What was asked for, else what a replayed plan says, else the defaults. Raises where the plan's text is a file
    that nobody has named."""
    found = plans or Settings()
    if calib is None and stats is None and found.calib != SELF:
        what, option = ("statistics", "--stats FOLDER") if found.calib == STATS else (found.calib, "--calib FILE")
        raise ParetobitError(f"the plan was made with {what}", hint=f"add {option} to replay it with the same")
    name = STATS if stats else SELF if calib in (None, SELF) else Path(calib or "").name
    given = {"tokens": tokens, "seed": seed, "inputs": FULL if stats else inputs, "recover": recover}
    given = {key: value for key, value in given.items() if value is not None}
    return replace(found, calib=name if name.isprintable() else "text", **given)  # type: ignore[arg-type]


def check_together(inputs: str | None, stats: str | None, shard: str | None, recover: bool | None) -> None:
    """Raise on options that exclude each other: nothing asked for is dropped in silence."""
    if inputs not in (None, *INPUTS):
        raise ParetobitError(f"--inputs {inputs} is unknown", hint=f"choose from {', '.join(INPUTS)}")
    if inputs == SEQUENTIAL and (shard or stats):
        what = "--shard collects" if shard else "--stats holds"
        raise ParetobitError(
            f"{what} statistics of the full-precision model, not of sequential inputs",
            hint="leave --inputs out, or use torchrun for sequential inputs on several machines",
        )
    if shard is not None and recover is not None:
        raise ParetobitError("--shard collects statistics, nothing is recovered", hint="leave --recover out")
    if shard is not None and stats is not None:
        raise ParetobitError("--shard collects statistics, --stats uses them", hint="give one of the two")


def as_tuple(values: tuple[str, ...] | str) -> tuple[str, ...]:
    """Callers from Python may give one value as it is."""
    return (values,) if isinstance(values, str) else tuple(values)


def parse_set(pairs: tuple[str, ...] | Mapping[str, object]) -> dict[str, dict[str, object]]:
    """("gptq.damp=0.02", …) -> {"gptq": {"damp": "0.02"}}; a mapping {"gptq.damp": 0.02} does as well."""
    found: dict[str, dict[str, object]] = {}
    items = pairs.items() if isinstance(pairs, Mapping) else [pair.partition("=")[::2] for pair in pairs]
    for key, value in items:
        method, _, name = key.partition(".")
        if not name or value == "":
            raise ParetobitError(f"--set {key}: no value or no method", hint="write --set METHOD.NAME=VALUE")
        found.setdefault(method, {})[name] = value
    return found


def warn_of_ruin(plan: Plan) -> None:
    """Say so before the work when the grid is known to destroy ordinary models."""
    layers = plan.layers.values()
    if any(layer.scheme.weight.bits < 2 for layer in layers):
        say("warning: below 2 bits rounding alone destroys ordinary models; train the model for it, or use w2t and up")
    elif any(layer.scheme.weight.bits == 2 and layer.method == "rtn" for layer in layers):
        say("warning: 2 bits rounded to nearest destroy ordinary models; use w2t, or --method gptq")


def run(job: Job, out: Path, calibration: dict[str, object], fallbacks: list[dict[str, str]], overwrite: bool) -> Fit:
    """Carry the job's plan out: walk the blocks, pack, publish. Under torchrun the leader writes, all of them work."""
    from paretobit.artifact import Artifact, assemble, describe
    from paretobit.compress import apply
    from paretobit.reports.card import write_card
    from paretobit.work import Work

    started, world = time.monotonic(), job.world
    fingerprint = describe_job(job, calibration)
    work = Work(out, "model", fingerprint)
    if world.least(int(work.finished(overwrite)) if world.leads else 1):
        say(f"{out} is already this result: nothing to do")
    else:
        with work.open(overwrite, world.leads):
            world.wait()  # until the leader has cleared what another command left
            apply.announce(job)
            units = apply.run(job, work)
            if world.leads:
                manifest = describe(job.source, fingerprint, calibration, fallbacks)
                with work.publish() as folder:
                    assemble(folder, job.source, job.plan, manifest, units)
                    write_card(folder)
            world.wait()
    world.leave()
    made = Artifact(out)
    seconds = time.monotonic() - started
    notes = tuple(f"{f['name']}: {f['stored']} instead of {f['asked']} ({f['why']})" for f in fallbacks)
    return Fit(str(out), made.size_bytes, job.source.bits16, made.bits_per_weight, seconds, notes)


def prepare_calibration(job: Job, calib: str, tokens: int, seed: int, stats: str | None) -> dict[str, object]:
    """Give the job its windows or statistics, if its methods read any; returns what to remember of them."""
    from paretobit.compress.corpus import Corpus, gather
    from paretobit.compress.statsfile import StatsFolder

    if stats is not None:
        job.stats = StatsFolder(Path(stats))
        job.stats.check_for(job.source)
    if job.recover and job.stats is not None:
        raise ParetobitError("--recover needs text, and --stats holds none", hint="leave one of the two out")
    if job.stats is not None and any(layer.params.get("guided") for layer in job.plan.layers.values()):
        raise ParetobitError("guided rounding needs text, and --stats holds none", hint="leave one of the two out")
    if not job.reads:
        # Nothing reads text: no setting of it makes another result.
        job.plan = replace(job.plan, settings=Settings(inputs=job.plan.settings.inputs, recover=job.recover))
        return {"source": "none"}
    if job.stats is not None:
        # Sums of other shards differ in their last bits.
        return {**job.stats.manifest["calibration"], "shards": job.stats.manifest["of"]}
    found = gather(job.source, calib, tokens, seed, job.device) if job.world.leads else None
    corpus = Corpus(job.world.share_ids(found.ids if found else None), found.source if found else "")
    job.windows = corpus.shard(job.world.rank, job.world.size)
    return corpus.record


def describe_job(job: Job, calibration: Mapping[str, object]) -> dict[str, object]:
    """The fingerprint: everything that the bytes of the result depend on."""
    from hashlib import sha256

    from paretobit import __version__, hardware
    from paretobit.artifact import FORMAT

    return {
        "format": FORMAT,
        "model": job.source.hash,
        "config": sha256(json.dumps(job.source.config, sort_keys=True).encode()).hexdigest(),
        # Its settings have lines of their own here.
        "plan": sha256(replace(job.plan, settings=Settings()).to_json().encode()).hexdigest(),
        "calibration": dict(calibration),
        "inputs": SEQUENTIAL if job.sequential else FULL,
        "recovery": asdict(job.recipe) if job.recovers else None,
        "version": __version__,
        "isa": hardware.isa(),
        "device": job.device,
        "threads": job.world.threads,
        "processes": job.world.size,
    }


def show(fit: Fit) -> str:
    from paretobit.sizes import human

    saved = 1 - fit.size_bytes / fit.bytes_16bit
    lines = [f"{fit.path}: {human(fit.size_bytes)}, {fit.bits_per_weight:.2f} bits per weight over all parameters, "
             f"{saved:.0%} less than 16 bits ({human(fit.bytes_16bit)}); {fit.seconds:.0f} s"]  # fmt: skip
    return "\n".join([*lines, *(f"note: {note}" for note in fit.notes)])


VERB = Verb("quantize", quantize, show)
