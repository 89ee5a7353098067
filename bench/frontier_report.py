"""What bench/frontier.py says about its rows: a Markdown table, the acceptance bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.frontier_picture import HOLLOW
from bench.frontier_rows import Row, frontier, paired_kl, sources
from bench.peers.rounders import LIBRARIES

LLAMA = "llama.cpp"
PEERS = (LLAMA, *LIBRARIES)
BASELINES = ("rtn", "gptq", *PEERS)
FRONTIER_BITS = 4.5  # below it, no baseline may lie on the frontier
SMALLER, SPARED = 0.8, ("Q4_K_M",)  # of the bytes of each of llama.cpp's types but these


@dataclass(frozen=True)
class Bar:
    """A scheme of ours, at most so many bits per weight, KL at most `factor` times that of a type of llama.cpp's."""

    scheme: str
    bits: float
    factor: float
    peer: str
    note: str = ""


BARS = (
    Bar("w3t", 3.3, 0.85, "IQ3_XXS"),
    Bar("w2t", 2.5, 1.0, "IQ2_XXS"),
    Bar("w2t", 2.5, 1.0, "IQ1_M", " (enough where nothing is trained)"),
    Bar("w4t", 4.3, 0.7, "Q3_K_M"),
)


def table(rows: Sequence[Row]) -> str:
    """By size. The last column is bytes over those of the smallest llama.cpp file whose KL is no higher."""
    header = (
        "point | family | MB | bits per weight | KL | perplexity | same top-1 | s | frontier | ÷ llama.cpp at this KL"
    )
    lines = [f"| {header} |", "|" + "---|" * (header.count("|") + 1)]
    best = {row.key for row in frontier(rows)}
    for row in sorted(rows, key=lambda row: row.bytes):
        rivals = [peer.bytes for peer in rows if peer.family == LLAMA != row.family and peer.kl <= row.kl]
        cells = [
            row.name + (f" {HOLLOW}" if row.source_grid else "") + ("" if row.sources == sources() else " *"),
            row.family,
            f"{row.bytes / 1e6:.2f}",
            f"{row.bits_per_weight:.3f}",
            kl_text(row),
            f"{row.perplexity:.2f}",
            f"{row.mean('same_top1')[0]:.1%}",
            f"{row.seconds:.0f}",
            "●" if row.key in best else "",
            f"{row.bytes / min(rivals):.2f}" if rivals else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def kl_text(row: Row) -> str:
    """With its standard error."""
    return f"{row.kl:.4f} ± {row.mean('kl_divergence')[1] or 0:.4f}"


def pair_line(rows: Sequence[Row], a: str, b: str) -> str:
    """KL of one point less another's, by name."""
    found = {row.name: row for row in rows}
    if missing := {a, b} - found.keys():
        return f"not measured: {', '.join(sorted(missing))}"
    gap, stderr = paired_kl(found[a], found[b])
    return f"KL of {a} less that of {b}: {gap:+.4f} ± {stderr or 0:.4f}, paired by window"


# ---- bars


def bars(rows: Sequence[Row]) -> list[str]:
    """One line a bar: met, MISSED, or open where a row is not measured yet."""
    ours = [row for row in rows if row.family not in PEERS and not row.source_grid]
    theirs = {row.name: row for row in rows if row.family == LLAMA}
    lines = [_named(bar, ours, theirs) for bar in BARS]
    lines.append(_dominance(rows))
    return lines + [_smaller(peer, ours) for name, peer in theirs.items() if name not in SPARED]


def _named(bar: Bar, ours: Sequence[Row], theirs: dict[str, Row]) -> str:
    what = f"{bar.scheme} at ≤ {bar.bits} bits: KL ≤ {bar.factor} × {bar.peer}'s{bar.note}"
    new = [row for row in ours if row.family not in BASELINES and row.name.split()[0] == bar.scheme]
    if not new or bar.peer not in theirs:
        return f"open   {what}"
    fitting, peer = [row for row in new if row.bits_per_weight <= bar.bits], theirs[bar.peer]
    if not fitting:
        return f"MISSED {what}: the smallest has {min(row.bits_per_weight for row in new):.3f} bits"
    best = min(fitting, key=lambda row: row.kl)
    gap, stderr = paired_kl(best, peer, bar.factor)
    verdict = "met   " if gap <= 0 else "MISSED"
    return (f"{verdict} {what}: {best.name}, {best.bits_per_weight:.3f} bits, {best.kl:.4f} = "
            f"{best.kl / peer.kl:.2f} × {peer.kl:.4f}, {gap:+.4f} ± {stderr or 0:.4f} from the bar")  # fmt: skip


def _dominance(rows: Sequence[Row]) -> str:
    what = f"no {', '.join(BASELINES)} on the frontier below {FRONTIER_BITS} bits"
    if all(row.family in BASELINES for row in rows):
        return f"open   {what}"
    left = [r.name for r in frontier(rows) if r.family in BASELINES and r.bits_per_weight < FRONTIER_BITS]
    return f"MISSED {what}: {', '.join(left)}" if left else f"met    {what}"


def _smaller(peer: Row, ours: Sequence[Row]) -> str:
    beyond = " (beyond the bar)" if "+" in peer.name else ""  # not a type of its own: one with another embedding
    what = f"ours of ≤ {SMALLER} × the bytes of {peer.name} ({SMALLER * peer.bytes / 1e6:.1f} MB), KL ≤ {peer.kl:.4f}"
    what += beyond
    if not ours:
        return f"open   {what}"
    fitting = [row for row in ours if row.bytes <= SMALLER * peer.bytes]
    if not fitting:
        return f"MISSED {what}: nothing is that small"
    best = min(fitting, key=lambda row: row.kl)
    verdict = "met   " if best.kl <= peer.kl else "MISSED"
    return f"{verdict} {what}: {best.name}, {best.bytes / 1e6:.1f} MB, {best.kl:.4f}"
