"""The decision: which scheme and method every tensor gets. A Plan is JSON, validated on the way in."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

from paretobit.arch import Arch, Tap
from paretobit.arch.spec import EMBED, HEAD, band
from paretobit.errors import ParetobitError
from paretobit.rotation import Rotation
from paretobit.scheme import FLOATS, STATIC, Grid, Scheme, parse, spell, wider
from paretobit.trellis import RING
from paretobit.work import parse_json

PLAN_VERSION = 1
ROTATE = "rotate"
FOLDS = ("awq", "smoothquant")  # transforms that lie in norms and weights: whoever reads the model needs not know them
MOST_TRANSFORMS, MOST_SEED, MOST_NAME = 1000, 2**63 - 1, 300


@dataclass(frozen=True)
class Layer:
    """One tensor's decision. `params` are the method's own, only those that differ from its defaults."""

    scheme: Scheme
    method: str
    params: Mapping[str, object] = field(default_factory=dict)


SELF, STATS = "self", "stats"
SEQUENTIAL, FULL = INPUTS = ("sequential", "full")


@dataclass(frozen=True)
class Settings:
    """What carries a plan out, beyond schemes and methods: a replay with the same text needs it for the same bytes.

    calib: SELF, STATS (a folder of statistics) or a text file's name, not where it lies; tokens, seed: of that text;
    inputs: one of INPUTS; recover: whether scales and norms are trained afterwards, None where the schemes decide.
    """

    calib: str = SELF
    tokens: int = 32768
    seed: int = 0
    inputs: str = SEQUENTIAL
    recover: bool | None = None


@dataclass(frozen=True)
class Plan:
    """Scheme, method and params of every matrix of one model (`model`: the checkpoint's hash)."""

    model: str
    layers: Mapping[str, Layer]
    transforms: tuple[Mapping[str, object], ...] = ()
    kv: str | None = None
    budget: Mapping[str, float] | None = None
    hardware: str | None = None
    predicted: Mapping[str, float] = field(default_factory=dict)
    settings: Settings = Settings()
    version: int = PLAN_VERSION

    def to_json(self) -> str:
        layers = {
            name: {"scheme": spell(layer.scheme), "method": layer.method, "params": dict(layer.params)}
            for name, layer in self.layers.items()
        }
        facts = {
            "version": self.version,
            "model": self.model,
            "transforms": [dict(t) for t in self.transforms],
            "layers": layers,
            "kv": self.kv,
            "budget": self.budget and dict(self.budget),
            "hardware": self.hardware,
            "predicted": dict(self.predicted),
            "settings": asdict(self.settings),
        }
        return json.dumps(facts, indent=1, sort_keys=True) + "\n"


def matrices(arch: Arch) -> list[str]:
    """Every tensor that a plan must decide on: embedding, the blocks' matrices, an untied head."""
    return [name for name, shape in arch.shapes().items() if len(shape) == 2]


def is_embedding(name: str) -> bool:
    """Whether a matrix is embedding or head, or a band of one."""
    return band(name)[0] in (EMBED, HEAD)


def cut(arch: Arch, plan: Plan) -> Arch:
    """The architecture in the bands that a plan speaks of; whether they are all there, `check_covers` says."""
    starts = sorted({band(name)[1].start or 0 for name in plan.layers if is_embedding(name)})
    return replace(arch, cuts=tuple(starts[1:]))


def uniform(
    arch: Arch,
    model: str,
    to: str,
    embed: str | None,
    methods: tuple[str, str, str],
    params: Mapping[str, Mapping],
    transforms: Sequence[str] = (),
) -> Plan:
    """One scheme for every block matrix; embedding and head one step wider, or `embed`. params: by method name.

    methods: what rounds the blocks, the embedding, and a head of its own, which has statistics like any matrix.
    transforms: one of FOLDS, carried out before; ROTATE, for all taps.
    """
    method, embed_method, head_method = methods
    scheme = parse(to)
    embedding = parse(embed) if embed else wider(scheme)
    block = Layer(scheme, method, params.get(method, {}))
    ends = {
        EMBED: Layer(embedding, embed_method, params.get(embed_method, {})),
        HEAD: Layer(embedding, head_method, params.get(head_method, {})),
    }
    layers = {name: ends.get(band(name)[0], block) for name in matrices(arch)}
    # A trellis wants Gaussian weights, and so does one scale for a whole row; whoever shares a tap with one turns
    # along. Without a trellis nothing turns: it costs the runtime a pass over the activations.
    rotates = any(layer.scheme.weight.kind == "trellis" for layer in layers.values())
    turned = [t.name for t in taps(arch) if rotates and any(_whole_rows(layers[c].scheme.weight) for c in t.consumers)]
    turned = [t.name for t in taps(arch)] if ROTATE in transforms else turned
    some = {} if len(turned) == len(taps(arch)) else {"taps": turned}
    made: list[Mapping[str, object]] = [
        {"method": name, "params": dict(params.get(name, {}))} for name in transforms if name in FOLDS
    ]
    return Plan(model, layers, (*made, *([{"method": ROTATE, "seed": 0, **some}] if turned else ())))


def _whole_rows(grid: Grid) -> bool:
    return grid.kind not in FLOATS and grid.group is None


def rotation(plan: Plan, tap: str, width: int) -> Rotation | None:
    """The rotation of a tap's activations (and its consumers' columns) under this plan; None where there is none."""
    for transform in plan.transforms:
        named, seed = transform.get("taps"), transform.get("seed", 0)
        if transform.get("method") == ROTATE and (named is None or tap in named):  # type: ignore[operator]
            return Rotation.of(width, seed, tap)  # type: ignore[arg-type]
    return None


def folding(plan: Plan) -> tuple[str, Mapping[str, object]] | None:
    """(method, params) of the plan's transform that lies in norms and weights, if there is one."""
    found = ((str(t["method"]), t.get("params", {})) for t in plan.transforms if t["method"] in FOLDS)
    return next(found, None)  # type: ignore[return-value]


def activation(plan: Plan, tap: Tap) -> Grid | None:
    """The grid that a tap's activation is rounded to before it is multiplied; nothing multiplies an embedding's rows.

    Raises where its consumers disagree.
    """
    if tap.kind == "residual":
        return None
    grids = {name: plan.layers[name].scheme.activation for name in tap.consumers}
    if len(set(grids.values())) > 1:
        raise ParetobitError(
            f"{', '.join(grids)} multiply one activation, which cannot be rounded in two ways",
            hint="give them schemes with the same a8",
        )
    return next(iter(grids.values()))


def static(plan: Plan, arch: Arch) -> list[Tap]:
    """The taps whose activations have one scale for all tokens, `<tap>.range` / 127 in the file."""
    found = ((tap, activation(plan, tap)) for tap in taps(arch))
    return [tap for tap, grid in found if grid is not None and grid.kind == STATIC]


def read_plan(text: str | bytes, source: str) -> Plan:
    """Parse and validate. Raises ParetobitError naming `source` and the field."""
    facts = parse_json(text, source)
    if type(facts.get("version")) is not int or facts["version"] != PLAN_VERSION:
        raise ParetobitError(
            f"{source}: plan version {reprlib.repr(facts.get('version'))}, expected {PLAN_VERSION}",
            hint="make the plan again with this paretobit",
        )
    layers = facts.get("layers")
    if not isinstance(layers, dict) or not isinstance(facts.get("model"), str):
        raise _bad(source, "'layers' or 'model' is missing")
    for name in ("budget", "predicted"):
        if facts.get(name) is not None and not _numbers(facts[name]):
            raise _bad(source, f"'{name}' does not hold numbers by name")
    for name in ("kv", "hardware"):
        if facts.get(name) is not None and not isinstance(facts[name], str):
            raise _bad(source, f"'{name}' is not a text")
    return Plan(
        model=facts["model"],
        layers={name: _layer(name, value, source) for name, value in layers.items()},
        transforms=_transforms(facts.get("transforms", []), source),
        kv=facts.get("kv"),
        budget=facts.get("budget"),
        hardware=facts.get("hardware"),
        predicted=facts.get("predicted") or {},
        settings=_settings(facts.get("settings", {}), source),
    )


def _settings(value: object, source: str) -> Settings:
    if not isinstance(value, dict):
        raise _bad(source, "'settings' is not an object")
    known = {field.name for field in fields(Settings)}
    if extra := sorted(set(value) - known):
        raise _bad(source, f"'settings' has an unknown '{extra[0][:100]}'")
    found = Settings(**value)
    name = found.calib
    if type(name) is not str or not name.isprintable() or not 0 < len(name) <= MOST_NAME:
        raise _bad(source, "settings: calib is not the name of a text")
    for what, least in (("tokens", 1), ("seed", 0)):
        number = getattr(found, what)
        if type(number) is not int or not least <= number <= MOST_SEED:
            raise _bad(source, f"settings: {what} is {reprlib.repr(number)}")
    if found.inputs not in INPUTS or type(found.recover) not in (bool, type(None)):
        raise _bad(source, "settings: inputs or recover is none that there is")
    return found


def _transforms(value: object, source: str) -> tuple[Mapping[str, object], ...]:
    if not isinstance(value, list) or len(value) > MOST_TRANSFORMS or not all(isinstance(t, dict) for t in value):
        raise _bad(source, "'transforms' is not a short list of objects")
    for number, transform in enumerate(value):
        what = f"transform {number}"
        if transform.get("method") in FOLDS:
            _check_fold(value[:number], transform, f"{source}: {what}")
            continue
        if transform.get("method") != ROTATE:
            method = reprlib.repr(transform.get("method"))
            raise ParetobitError(f"{source}: {what} is {method}", hint=f"choose from {', '.join((ROTATE, *FOLDS))}")
        extra = sorted(set(transform) - {"method", "seed", "taps"})
        if extra:
            raise _bad(source, f"{what} has an unknown '{extra[0][:100]}'")
        seed, taps = transform.get("seed", 0), transform.get("taps")
        if type(seed) is not int or not 0 <= seed <= MOST_SEED:
            raise _bad(source, f"{what}: seed is {reprlib.repr(seed)}, not a whole number from 0 to {MOST_SEED}")
        if taps is not None and not (isinstance(taps, list) and all(isinstance(tap, str) for tap in taps)):
            raise _bad(source, f"{what}: taps is no list of names")
    return tuple(value)


def _check_fold(before: list, transform: Mapping[str, object], what: str) -> None:
    """Raise unless a fold stands alone, with params that are plain values; its method knows what they mean."""
    params = transform.get("params", {})
    plain = isinstance(params, dict) and all(type(value) in (str, int, float, bool) for value in params.values())
    if set(transform) - {"method", "params"} or not plain:
        raise ParetobitError(f"{what}: not a method with its params", hint="take the plan.json of a packed model")
    if any(other.get("method") in FOLDS for other in before):
        raise ParetobitError(f"{what}: a second one of {', '.join(FOLDS)}", hint="name one of them, once")


def _bad(source: str, what: str) -> ParetobitError:
    return ParetobitError(f"{source}: {what}", hint="take the plan.json of a packed model")


def _numbers(value: object) -> bool:
    if not isinstance(value, dict) or not all(name.isprintable() and len(name) <= MOST_NAME for name in value):
        return False
    return all(type(n) in (int, float) and math.isfinite(n) for n in value.values())


def _layer(name: str, value: object, source: str) -> Layer:
    if not isinstance(value, dict) or not all(isinstance(value.get(k), str) for k in ("scheme", "method")):
        raise _bad(source, f"layer {name[:100]} has no scheme or method")
    params = value.get("params", {})
    if not isinstance(params, dict) or not value["method"].isidentifier():
        raise _bad(source, f"layer {name[:100]}: bad method or params")
    if max(len(value["scheme"]), len(value["method"])) > 80:
        raise _bad(source, f"layer {name[:100]}: no scheme or method has so long a name")
    try:
        scheme = parse(value["scheme"])
    except ParetobitError as why:
        raise ParetobitError(f"{source}: layer {name[:100]}: {why.message}", hint=why.hint) from None
    return Layer(scheme, value["method"], params)


def taps(arch: Arch) -> list[Tap]:
    """Every tap whose consumers a basis of their own may have."""
    ends = [arch.head_tap] if arch.tied else [arch.head_tap, arch.embed_tap]
    return [*(tap for layer in range(arch.layers) for tap in arch.taps(layer)), *ends]


def check_covers(plan: Plan, arch: Arch, source: str) -> None:
    """Raise unless the plan decides on exactly this architecture's matrices, and transforms its taps at most once."""
    wanted, given = set(matrices(arch)), set(plan.layers)
    if wanted != given:
        odd = sorted(wanted ^ given)[0]
        what = "is missing from" if odd in wanted else "is unknown to the model but stands in"
        raise ParetobitError(f"{odd} {what} {source}", hint="use a plan made for this model")
    if any(start % RING for start in arch.cuts):
        raise ParetobitError(f"{source}: a band that begins within {RING} rows", hint="take the plan of a packed model")
    known, seen = {tap.name for tap in taps(arch)}, set[str]()
    static(plan, arch)
    for transform in plan.transforms:
        named = [] if transform["method"] in FOLDS else transform.get("taps")
        for tap in known if named is None else named:  # type: ignore[attr-defined]
            if tap not in known:
                raise ParetobitError(
                    f"{source}: a transform of {tap[:100]}, which is no tap of the model",
                    hint="taps are model.layers.<n>.attn_in, o_in, mlp_in, down_in, head_in and embed_out",
                )
            if tap in seen:
                raise ParetobitError(f"{source}: {tap} is transformed twice", hint="name every tap once")
            seen.add(tap)
