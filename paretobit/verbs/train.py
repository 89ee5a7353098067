"""train: a model and a scheme in, a packed model out that was trained with the quantizer in the loop."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from paretobit.errors import ParetobitError
from paretobit.planfile import ROTATE, SELF, Plan, Settings
from paretobit.progress import say
from paretobit.scheme import parse
from paretobit.verbs.deciding import asked
from paretobit.verbs.quantize import Fit, parse_set, show
from paretobit.verbs.verb import Option, Verb

if TYPE_CHECKING:
    from paretobit.checkpoint.base import Checkpoint
    from paretobit.compress.apply import Job
    from paretobit.compress.train import Recipe

ROUNDED, RTN, WEIGHTS = INITS = ("rounded", "rtn", "weights")
OWN = "none"  # of the transforms: the model's own basis
SPAN = re.compile(r"(?P<count>[0-9]+(?:\.[0-9]+)?)(?P<unit>s|m|h)")
SECONDS = {"s": 1, "m": 60, "h": 3600}
CALIBRATION_WINDOWS = 64  # of the data, for the rounding that training starts from
OWN_TOKENS, MOST_TOKENS = 1 << 17, 1 << 22


def train(
    model: str | None = None,
    *,
    out: Annotated[str, Option("Folder to write.", "-o")],
    to: Annotated[str | None, Option("Scheme of the blocks' matrices: w1, w1.58, w2, w3, w4, w2g64s …")] = None,
    plan: Annotated[str | None, Option("Or a plan (JSON): any mixture of such schemes.")] = None,
    embed: Annotated[str | None, Option("Scheme of embedding and head (default: one step wider).")] = None,
    transform: Annotated[
        str | None, Option("Basis of the weights: rotate (default of MODEL to 2 bits), or none: its own.")
    ] = None,
    data: Annotated[str, Option("Text to train on: FILE.txt, FILE.jsonl, or self: the model's own.")] = SELF,
    tokens: Annotated[int | None, Option("Tokens of it, seen again and again (default: all, of self 131072).")] = None,
    steps: Annotated[int | None, Option("How long: steps, each of --batch windows of 512 tokens.")] = None,
    time: Annotated[str | None, Option("Or a span of time: 30m, 90s, 8h.")] = None,
    batch: Annotated[int, Option("Windows a step.")] = 2,
    blocks: Annotated[int, Option("Windows to train every block on first, by itself; 0: none.")] = 0,
    rate: Annotated[float | None, Option("Learning rate at the start (default: by bits and length).")] = None,
    init: Annotated[
        str | None,
        Option("Start: rounded as well as can be (default), by rtn, or weights."),
    ] = None,
    distill: Annotated[bool | None, Option("Learn from the original's predictions, not from the text.")] = None,
    from_scratch: Annotated[str | None, Option("config.json: train a new small model instead of MODEL.")] = None,
    seed: Annotated[int, Option("Of the data's order, and of a new model's weights.")] = 0,
    set: Annotated[tuple[str, ...], Option("A method's parameter: --set paretoq.start=max.")] = (),
    half: Annotated[bool | None, Option("Multiply in bf16 (default: where the processor has it).")] = None,
    device: Annotated[str | None, Option("cpu or cuda (default: cuda where there is one).")] = None,
    overwrite: Annotated[bool, Option("Replace what an earlier command left at -o.")] = False,
) -> Fit:
    """Train MODEL on the grid it will be packed on, and pack it; --from-scratch trains a new one.

    Interrupted, the same call goes on from the last saved step. Raises ParetobitError on bad input.
    """
    from paretobit.verbs.needs import torch_or_hint

    torch_or_hint("train")
    from paretobit.compress.apply import Job
    from paretobit.compress.train import ORIGINAL, TEXT, Recipe
    from paretobit.compress.world import fast_in_half, join, pick_device

    used, world = pick_device(device), join()
    source = opened(model, from_scratch, data, seed)
    options = parse_set(set)
    learns = TEXT if from_scratch or distill is False else ORIGINAL
    if from_scratch and distill:
        raise ParetobitError("a new model has no original to learn from", hint="leave --distill out")
    first = started(init, from_scratch)
    decided = trained_plan(source, to, plan, (embed, basis(transform, to, from_scratch)), options)
    check_effort(steps, time, (batch, rate), blocks, learns == ORIGINAL)
    chosen = rate if rate is not None else default_rate(decided, learns == TEXT)
    halved = fast_in_half(used) if half is None else half
    recipe = Recipe(steps, seconds(time), batch, rate=chosen, loss=learns, half=halved, seed=seed, blocks=blocks)
    settings = Settings(Path(data).name if data != SELF else SELF, tokens or tokens_of(data), seed)
    job = Job(source, replace(decided, settings=settings), None, True, None, False, device=used, world=world)
    return run(job, recipe, first, data, Path(out), overwrite)


def opened(model: str | None, config: str | None, data: str, seed: int) -> Checkpoint:
    """What is trained: a model that there is, or a new one."""
    from paretobit.checkpoint import open_model

    if (model is None) == (config is None):
        raise ParetobitError("say what to train", hint="name a MODEL, or give --from-scratch config.json")
    if model is not None:
        return open_model(model)
    from paretobit.compress.scratch import create

    assert config is not None
    if data == SELF:
        raise ParetobitError("a new model has nothing to say yet", hint="give --data FILE")
    return open_model(create(Path(config), Path(data), seed))


def check_effort(
    steps: int | None, time: str | None, step: tuple[int, float | None], blocks: int, original: bool
) -> None:
    """That one of steps and time says how long to train; step: its windows and rate; original: there is one."""
    batch, rate = step
    if (steps is None) == (time is None) or (steps is not None and steps < 1):
        raise ParetobitError("say how long to train", hint="for example --time 30m, or --steps 1000")
    if batch < 1 or (rate is not None and not 0 < rate < 1):
        raise ParetobitError("--batch or --rate is out of range", hint="1 or more windows, a rate between 0 and 1")
    if blocks and (not original or blocks < batch):
        raise ParetobitError(
            f"--blocks {blocks}: there is no original to learn from, or less than a step",
            hint="leave --blocks out, or give it at least --batch windows",
        )


def started(init: str | None, from_scratch: str | None) -> str:
    """One of INITS: what training starts from."""
    found = init or (WEIGHTS if from_scratch else ROUNDED)
    if found not in INITS:
        raise ParetobitError(f"--init {found} is unknown", hint=f"choose from {', '.join(INITS)}")
    return found


def basis(transform: str | None, to: str | None, from_scratch: str | None) -> tuple[str, ...]:
    """The transforms to train under: at 2 bits and less, a rotated model starts half as far from its original
    (docs/qat.md). A new model has no outliers to spread."""
    if transform not in (None, ROTATE, OWN):
        raise ParetobitError(f"--transform {transform} is unknown", hint=f"choose from {ROTATE}, {OWN}")
    if transform is not None or to is None or from_scratch:
        return (ROTATE,) if transform == ROTATE else ()
    grid = parse(to).weight
    return (ROTATE,) if grid.kind == "affine" and grid.bits <= 2 else ()


def trained_plan(
    source: Checkpoint, to: str | None, plan: str | None, how: tuple[str | None, tuple[str, ...]], options: dict
) -> Plan:
    """The plan that the options ask for, its matrices trained; how: the embedding's scheme, and transforms.

    Raises ParetobitError on a grid that cannot be trained, naming a tensor.
    """
    embed, transforms = how
    from paretobit.compress import methods
    from paretobit.compress.trainable import trained
    from paretobit.planfile import cut, folding, static

    for name in options:
        methods.make_params(name, options[name], "train")
    if (to is None) == (plan is None):
        raise ParetobitError("say one of --to and --plan", hint="for example --to w2")
    if plan is not None and (embed or transforms or options):
        raise ParetobitError("--plan already decides embed, transform and set", hint="drop them, or edit the plan")
    wanted = asked(source, to, (None, embed, transforms), plan, {})
    if cut(source.arch, wanted).cuts:
        raise ParetobitError(
            "embedding or head lie in bands of rows, and training knows them whole",
            hint="give a plan or a model that has one scheme for each",
        )
    if folding(wanted) or static(wanted, source.arch):
        raise ParetobitError(
            f"{plan or to} has factors or static activations, and training moves what they were measured on",
            hint="train without them",
        )
    decided = trained(wanted, options)
    used = {layer.method for layer in decided.layers.values()}
    if unused := [name for name in options if name not in used]:
        raise ParetobitError(
            f"--set {unused[0]}: no tensor is trained by it", hint=f"in use: {', '.join(sorted(used))}"
        )
    return decided


def seconds(span: str | None) -> float | None:
    """ "30m" -> 1800.0"""
    if span is None:
        return None
    match = SPAN.fullmatch(span)
    if match is None or float(match["count"]) == 0:
        raise ParetobitError(f"--time {span} is no span of time", hint="write 90s, 30m or 8h")
    return float(match["count"]) * SECONDS[match["unit"]]


def tokens_of(data: str) -> int:
    return OWN_TOKENS if data == SELF else MOST_TOKENS


def default_rate(plan: Plan, new: bool) -> float:
    """Published for long runs: 2e-5 to 2 bits and 1e-5 above (arXiv 2502.02631). Short ones, which docs/qat.md is
    about, want more; a new model has everything to learn, and affine grids of few bits have much."""
    coarsest = min((layer.scheme.weight for layer in plan.layers.values()), key=lambda grid: grid.bits,
                   default=parse("bf16").weight)  # fmt: skip
    return 1e-3 if new or (coarsest.bits <= 2 and coarsest.kind == "affine") else 5e-4


def run(job: Job, recipe: Recipe, start: str, data: str, out: Path, overwrite: bool) -> Fit:
    """From a plan and a recipe to the packed model at `out`."""
    from paretobit.artifact import TRAINING, Artifact, assemble, describe
    from paretobit.compress import apply
    from paretobit.compress.corpus import Corpus, gather
    from paretobit.compress.train import Training
    from paretobit.compress.units import Units
    from paretobit.reports.card import write_card
    from paretobit.verbs.quantize import describe_job
    from paretobit.work import Work

    begun, world, source, settings = time.monotonic(), job.world, job.source, job.plan.settings
    found = gather(source, data, settings.tokens, settings.seed, job.device) if world.leads else None
    corpus = Corpus(world.share_ids(found.ids if found else None), found.source if found else "")
    fingerprint = {**describe_job(job, corpus.record), "training": asdict(recipe), "init": start}
    work = Work(out, "model", fingerprint)
    if world.least(int(work.finished(overwrite)) if world.leads else 1):
        say(f"{out} is already this result: nothing to do")
    else:
        with work.open(overwrite, world.leads):
            world.wait()
            rounded = None
            if start != WEIGHTS:
                plan = rounding_plan(job.plan, start, source.arch.tied)
                windows = corpus.ids[: max(world.size, CALIBRATION_WINDOWS)]
                before = replace(job, plan=plan, windows=windows[world.rank :: world.size])
                rounded = Units(source, plan, apply.run(before, work))
            trained = Training(source, job.plan, corpus.ids, rounded, work, recipe, job.device, world).run()
            if world.leads:
                manifest = describe(source, fingerprint, corpus.record, [])
                with work.publish() as folder:
                    assemble(folder, source, job.plan, manifest, trained)
                    work.take(work.path(TRAINING), folder)
                    write_card(folder)
            world.wait()
    world.leave()
    made = Artifact(out)
    return Fit(str(out), made.size_bytes, source.bits16, made.bits_per_weight, time.monotonic() - begun)


def rounding_plan(plan: Plan, init: str, tied: bool) -> Plan:
    """The plan that makes what training starts from."""
    from paretobit.arch.spec import EMBED
    from paretobit.compress import methods

    layers = {}
    for name, layer in plan.layers.items():
        method = RTN if init == RTN else methods.default(layer.scheme.weight)
        method = methods.for_lookup(method, {}, tied) if name == EMBED else method
        layers[name] = replace(layer, method=method, params={})
    return replace(plan, layers=layers)


VERB = Verb("train", train, show)
