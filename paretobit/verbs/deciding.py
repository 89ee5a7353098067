"""From options to a plan: what --to, --method, --embed, --transform, --plan and --set ask for, checked first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretobit.errors import ParetobitError
from paretobit.planfile import FOLDS, ROTATE, cut
from paretobit.scheme import FLOATS

if TYPE_CHECKING:
    from paretobit.arch import Arch
    from paretobit.checkpoint.base import Checkpoint
    from paretobit.planfile import Plan
    from paretobit.scheme import Grid

HOW = ("--method", "--embed", "--transform")
How = tuple[str | None, str | None, tuple[str, ...]]  # their values


def decide(source: Checkpoint, to: str | None, how: How, plan: str | None, options: dict) -> Plan:
    """The plan that the options ask for, checked against the model and the methods."""
    from paretobit.compress import methods

    for name in options:
        methods.make_params(name, options[name], "transform" if name in FOLDS else "round")
    if plan is not None and (any(how) or options):
        raise ParetobitError(
            "--plan already decides method, embed, transform and set", hint="drop them, or edit the plan"
        )
    decided = asked(source, to, how, plan, options)
    check_feasible(decided, options, cut(source.arch, decided))
    return decided


def asked(source: Checkpoint, to: str | None, how: How, plan: str | None, options: dict) -> Plan:
    """The plan that the options ask for, as far as it covers the model; nothing is known of its methods yet."""
    method, embed, transforms = how
    from paretobit.compress import methods
    from paretobit.planfile import check_covers, read_plan, uniform
    from paretobit.scheme import parse, wider

    if (to is None) == (plan is None):
        raise ParetobitError("say one of --to, --fit, --keep and --plan", hint="for example --to w3t, or --fit 60MB")
    if to is None:
        assert plan is not None
        decided = read_plan(Path(plan).read_text(errors="replace"), plan) if Path(plan).is_file() else _no_file(plan)
        if decided.model != source.hash:
            raise ParetobitError(
                f"{plan} was made for another model than {source.name}", hint="make a plan for this one"
            )
        check_covers(decided, cut(source.arch, decided), plan)
        return decided
    for name in transforms:
        if name not in (*FOLDS, ROTATE):
            raise ParetobitError(f"--transform {name} is unknown", hint=f"choose from {', '.join((*FOLDS, ROTATE))}")
    if sum(name in FOLDS for name in transforms) > 1 or len(set(transforms)) < len(transforms):
        raise ParetobitError(f"--transform {' and '.join(transforms)}", hint="one of awq and smoothquant, and rotate")
    scheme = parse(to)
    ends = parse(embed) if embed else wider(scheme)
    block = method or methods.default(scheme.weight)
    head = (embed and method) or _suited(ends.weight, method)
    lookup = methods.for_lookup(head, options.get(head, {}), source.arch.tied)
    made = uniform(source.arch, source.hash, to, embed, (block, lookup, head), options, transforms)
    return clipped(made) if "awq" in transforms else made


def clipped(plan: Plan) -> Plan:
    """AWQ's clipping beside its factors: scales by the error of the outputs, where rtn rounds onto plain grids."""
    from paretobit.planfile import is_embedding

    layers = dict(plan.layers)
    for name, layer in plan.layers.items():
        if layer.method == "rtn" and layer.scheme.weight.kind == "affine" and not is_embedding(name):
            layers[name] = replace(layer, params={"weighted": True, **layer.params})
    return replace(plan, layers=layers)


def _suited(grid: Grid, method: str | None) -> str:
    """`method` where it rounds onto the grid, else the grid's own: for grids that nobody asked for by name."""
    from paretobit.compress import methods

    return method if method is not None and _rounds_onto(method, grid) else methods.default(grid)


def _rounds_onto(method: str, grid: Grid) -> bool:
    from paretobit.compress import methods

    return grid.kind in (*FLOATS, *methods.grids(method))


def check_feasible(plan: Plan, options: Mapping[str, object], arch: Arch) -> None:
    """Raise before the work on what would be ignored or cannot be made: nothing asked for is dropped in silence."""
    from paretobit.arch.spec import EMBED, band
    from paretobit.compress import methods

    check_transforms(plan, arch)
    used = {layer.method for layer in plan.layers.values()} | {str(t["method"]) for t in plan.transforms}
    for name in options:
        if name not in used:
            raise ParetobitError(
                f"--set {name}: no tensor is rounded by {name}", hint=f"methods in use: {', '.join(sorted(used))}"
            )
    if plan.kv:
        raise ParetobitError("the plan has kv, which cannot be applied yet", hint="take it out of the plan")
    for name, layer in plan.layers.items():
        if layer.method in methods.names("train"):
            raise ParetobitError(f"{name} is trained by {layer.method}", hint="replay it with paretobit train --plan")
        methods.make_params(layer.method, layer.params)
        grid = layer.scheme.weight
        if not _rounds_onto(layer.method, grid):
            raise ParetobitError(
                f"{layer.method} cannot round onto {layer.scheme}",
                hint=f"use {methods.default(grid)}, or leave --method out",
            )
        lookup = methods.for_lookup(layer.method, layer.params, arch.tied)
        if band(name)[0] == EMBED and grid.kind not in FLOATS and layer.method != lookup:
            raise ParetobitError(
                f"{layer.method} rounds by what is multiplied, and {name}, which is not the head, is only looked up",
                hint=f"round it by {lookup}",
            )


def check_transforms(plan: Plan, arch: Arch) -> None:
    """Raise on factors that would do nothing, and on activations that calibration cannot measure."""
    from paretobit.compress import methods
    from paretobit.planfile import folding, rotation, static

    for tap in static(plan, arch):
        if rotation(plan, tap.name, tap.width) is not None:
            raise ParetobitError(
                f"{tap.name} is rotated, and calibration measures the range of what is not",
                hint="write a8 or a8g32: scales of each token's own",
            )
    name, params = folding(plan) or (None, {})
    if name is None:
        return
    methods.make_params(name, params, "transform")
    if name == "smoothquant" and all(layer.scheme.activation is None for layer in plan.layers.values()):
        raise ParetobitError(
            "smoothquant is for activations of 8 bits, and these stay floats", hint="write --to w8a8, or use awq"
        )


def _no_file(path: str) -> Any:
    raise ParetobitError(f"{path}: no such file", hint="check the path")


def unasked(plan: Plan, to: str | None, method: str | None, embed: str | None) -> list[dict[str, str]]:
    """What is stored otherwise than `to` and `method` say, and why. Empty for a replayed plan: it asks by name."""
    from paretobit.planfile import is_embedding
    from paretobit.scheme import parse

    found: list[dict[str, str]] = []
    if to is None:
        return found
    for name, layer in plan.layers.items():
        if embed is None and layer.scheme != parse(to) and is_embedding(name):
            why = "embedding and head are one step wider by default; --embed sets them"
            found.append({"name": name, "asked": str(parse(to)), "stored": str(layer.scheme), "why": why})
        suited = _suited(layer.scheme.weight, method)
        if layer.method != suited:
            why = "no statistics of a lookup to round by"
            found.append({"name": name, "asked": suited, "stored": layer.method, "why": why})
    return found
