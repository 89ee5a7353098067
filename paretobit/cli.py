"""The command line: parses and prints, nothing else. Every verb's function is the definition of its options."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import pkgutil
import sys
from typing import Any, get_args, get_type_hints

import click

from paretobit import verbs
from paretobit.errors import ParetobitError
from paretobit.progress import leads, write
from paretobit.verbs.verb import Option, Verb

MAX_LINE = 1500  # characters of an error before its hint


def find_verbs() -> dict[str, Verb]:
    """Command name -> Verb, from the files in verbs/ that define one."""
    modules = [importlib.import_module(f"{verbs.__name__}.{m.name}") for m in pkgutil.iter_modules(verbs.__path__)]
    return {m.VERB.command: m.VERB for m in modules if hasattr(m, "VERB")}


def find_verb(command: str) -> Verb | None:
    """The verb of that name. Most files are called like their command: then no other is read, as start-up counts."""
    files = {m.name for m in pkgutil.iter_modules(verbs.__path__)}
    if command in files:
        verb = getattr(importlib.import_module(f"{verbs.__name__}.{command}"), "VERB", None)
        if verb is not None and verb.command == command:
            return verb
    return find_verbs().get(command)


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(find_verbs())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = find_verb(cmd_name)
        return None if verb is None else _command(verb)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 2 bad input (one line on stderr that ends with a hint), 130 interrupted."""
    group = _Verbs(
        "paretobit",
        help="Give a model and what you can afford; get the best model that fits.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    click.version_option(package_name="paretobit")(group)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without × or · shall not end the job
    try:
        group.main(arguments, prog_name="paretobit", standalone_mode=False)
    except ParetobitError as why:
        _fail(str(why))
    except click.exceptions.NoArgsIsHelpError as why:
        print(why.format_message())
    except click.ClickException as why:
        command = why.ctx.command_path if isinstance(why, click.UsageError) and why.ctx else "paretobit"
        _fail(f"{why.format_message().rstrip('.')}; hint: see {command} --help")
    except (click.Abort, KeyboardInterrupt):
        print("interrupted; hint: repeat the command to go on where it stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # nobody reads the progress any more: what a process without handlers would end with
        sys.stderr.close()
        sys.exit(141)


def _fail(line: str) -> None:
    """One line, whatever a hostile file made its names of: no escape sequences, no flood."""
    what, mark, hint = " ".join(line.split()).rpartition("; hint: ")
    shown = "".join(c if c.isprintable() else "?" for c in what[:MAX_LINE] + mark + hint)
    print(f"error: {shown}", file=sys.stderr)
    sys.exit(2)


def _command(verb: Verb) -> click.Command:
    """A click command from a verb's signature: parameters become arguments, keyword-only ones options."""
    hints = get_type_hints(verb.function, include_extras=True)
    params: list[click.Parameter] = [
        _parameter(p, hints[p.name]) for p in inspect.signature(verb.function).parameters.values()
    ]
    params.append(click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object on stdout."))

    def callback(as_json: bool, **values: Any) -> None:
        names = [p.name for p in inspect.signature(verb.function).parameters.values() if p.kind is p.VAR_POSITIONAL]
        many = values.pop(names[0]) if names else ()
        result = verb.function(*many, **values)
        if not leads():
            return
        _print(json.dumps(result.to_json(), indent=1) if as_json else verb.show(result))

    return click.Command(verb.command, callback=callback, params=params, help=_summary(verb), short_help=_summary(verb))


def _summary(verb: Verb) -> str:
    return (inspect.getdoc(verb.function) or "").split("\n\n")[0]


def _parameter(p: inspect.Parameter, hint: Any) -> click.Parameter:
    option = next((x for x in getattr(hint, "__metadata__", ()) if isinstance(x, Option)), Option(""))
    kind = hint.__origin__ if option.help else hint
    kinds = [k for k in get_args(kind) if k is not type(None)] or [kind]
    base = kinds[0] if kinds[0] in (int, float, bool) else str
    if p.kind is not p.KEYWORD_ONLY:
        many = p.kind is p.VAR_POSITIONAL
        return click.Argument([p.name], type=base, nargs=-1 if many else 1, required=many or p.default is p.empty)
    name = option.name or "--" + p.name.replace("_", "-")
    spelled = [name, *([option.short] if option.short else []), p.name]
    if base is bool and p.default is None:  # what neither says is decided later
        spelled[0] = f"{name}/--no-{name.removeprefix('--')}"
        return click.Option(spelled, default=None, help=option.help)
    if base is bool:
        return click.Option(spelled, is_flag=True, default=p.default, help=option.help)
    many = isinstance(p.default, tuple)
    # An option with a default, even None, is never missing.
    given: dict[str, Any] = {"required": True} if p.default is p.empty else {"default": p.default}
    shown = p.default not in (None, (), p.empty)
    return click.Option(spelled, type=base, multiple=many, show_default=shown, help=option.help, **given)


def _print(shown: object) -> None:
    if shown is None:  # the verb has printed while it worked
        return
    if not isinstance(shown, str):
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
        with console.capture() as captured:
            console.print(shown)
        shown = captured.get().rstrip("\n")
    write(shown + "\n")
