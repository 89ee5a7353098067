"""The model card: README.md of a packed model, made anew from its manifest, plan and results."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from paretobit.artifact import CARD, RESULTS, Artifact
from paretobit.budget import BYTES, JOULES, MS
from paretobit.planfile import SELF, STATS
from paretobit.reports.results import read
from paretobit.sizes import human
from paretobit.work import write_atomically


def write_card(folder: Path) -> None:
    """How the model was made and how it measures, for people."""
    made = Artifact(folder)
    model, calibration = made.manifest["model"], made.manifest["calibration"]
    schemes = Counter(f"{layer.scheme} by {layer.method}" for layer in made.plan.layers.values())
    saved = 1 - made.size_bytes / model["bytes_16bit"]
    lines = [
        f"# {model['name']}, packed by paretobit",
        "",
        f"{human(made.size_bytes)} ({made.size_bytes} bytes) to compute logits, {made.bits_per_weight:.3f} bits "
        f"per weight over all {made.parameters} parameters, {saved:.1%} less than in 16 bits.",
        "",
        "## How it was made",
        "",
        *(f"- {count} matrices: {what}" for what, count in schemes.most_common()),
        *(f"- asked for: {asked(name, value)}" for name, value in sorted((made.plan.budget or {}).items())),
        *(f"- {name} expected by the plan: {value:.4g}" for name, value in sorted(made.plan.predicted.items())),
        *(f"- {f['name']}: {f['stored']} instead of {f['asked']} ({f['why']})" for f in made.manifest["fallbacks"]),
        f"- calibration text: {calibration['source']}"
        + (f", {calibration['tokens']} tokens" if "tokens" in calibration else ""),
        f"- inputs: {made.manifest['fingerprint']['inputs']}",
        f"- original: sha256 {model['hash']}",
        f"- paretobit {made.manifest['fingerprint']['version']}; `plan.json` replays it: `{replay(made)}`",
        "",
        "## How it measures",
        "",
    ]
    latest = {(row.metric, row.command): row for row in (read(folder / RESULTS) if (folder / RESULTS).exists() else [])}
    if latest:
        lines += ["| metric | value | standard error | n | command |", "|---|---|---|---|---|"]
        for row in latest.values():
            error = "" if row.stderr is None else f"{row.stderr:.2g}"
            lines.append(f"| {row.metric} | {row.value:.5g} {row.unit} | {error} | {row.n} | `{row.command}` |")
    else:
        lines.append("Not measured yet: `paretobit eval THIS --against MODEL --text FILE.txt`.")
    write_atomically(folder / CARD, ("\n".join(lines) + "\n").encode())


def asked(name: str, value: float) -> str:
    """A line of a plan's budget: limits have names of their own, all else is a share that was to be kept."""
    most = {BYTES: f"at most {value:.0f} bytes", MS: f"{value:g} ms a token", JOULES: f"{value:g} J a token"}
    return most.get(name, f"{100 * value:g}% of {name} kept")


def replay(made: Artifact) -> str:
    """The command that makes the model again. The text is named by its file, wherever that lies."""
    calib = made.plan.settings.calib
    text = "" if calib == SELF else " --stats FOLDER" if calib == STATS else f" --calib {calib}"
    return f"paretobit quantize {made.manifest['model']['name']} --plan plan.json{text} -o OUT"
