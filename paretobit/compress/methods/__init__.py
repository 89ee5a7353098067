"""One file a method; its name is its key.

A method file holds `KIND` ("round", "transform" or "train"), a `Params` dataclass and `run`; `GRIDS` where it rounds
onto other kinds of grid than affine ones. A rounding method may add `needs(params)`, the names of the tap statistics it
reads (see compress/stats.py); without it, it reads none. A transform's `run(site, stats, params)` gives the factors of
a tap's channels (see compress/fold.py), and what to say of them. A training method has no `run` but what the Learner
(compress/learner.py) computes with: `trains`, `begin`, `hold`, `fake` and `pack`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from paretobit.errors import ParetobitError
from paretobit.scheme import Grid

BLIND = "rtn"  # reads no statistics


def names(kind: str = "round") -> list[str]:
    """The methods of a kind, by file name."""
    found = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in found if kind == importlib.import_module(f"{__name__}.{name}").KIND]


def load(name: str, kind: str = "round") -> Any:
    """The method's module. Raises ParetobitError naming the known ones."""
    if name not in names(kind):
        raise ParetobitError(f"unknown method '{name}'", hint=f"choose from {', '.join(names(kind))}")
    return importlib.import_module(f"{__name__}.{name}")


def grids(name: str) -> tuple[str, ...]:
    """The kinds of grid that the method rounds onto."""
    return getattr(load(name), "GRIDS", ("affine",))


def default(grid: Grid) -> str:
    """The method that suits a grid."""
    return "trellis" if grid.kind == "trellis" else "gptq"


def trainer(grid: Grid) -> str | None:
    """The method that trains on a grid, if there is one."""
    return next((name for name in names("train") if load(name, "train").trains(grid)), None)


def needs(name: str, params: Mapping[str, object]) -> frozenset[str]:
    """Names of the tap statistics the method reads with these params."""
    module = load(name)
    return frozenset(module.needs(make_params(name, params))) if hasattr(module, "needs") else frozenset()


def for_lookup(name: str, params: Mapping[str, object], tied: bool) -> str:
    """The method for an embedding that `name` would round: a tied one has the head's statistics to round by, a lookup
    alone has none."""
    return BLIND if not tied and needs(name, params) else name


def make_params(name: str, given: Mapping[str, object], kind: str = "round") -> Any:
    """The method's Params from `given` values (text from the command line, or JSON). Raises on unknown or bad ones."""
    fields = {f.name: f for f in dataclasses.fields(load(name, kind).Params)}
    values = {}
    for key, value in given.items():
        if key not in fields:
            raise ParetobitError(
                f"{name} has no parameter '{key}'", hint=f"it has {', '.join(sorted(fields)) or 'none'}"
            )
        values[key] = _convert(f"{name}.{key}", value, fields[key].default)
    return load(name, kind).Params(**values)


def _convert(what: str, value: object, default: object) -> object:
    kind: Any = type(default)
    if kind is bool:
        words = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
        if str(value).lower() in words:
            return words[str(value).lower()]
    else:
        try:
            return kind(value)
        except (TypeError, ValueError):
            pass
    raise ParetobitError(f"{what} = {value!r} is not a {kind.__name__}", hint=f"the default is {default!r}")
