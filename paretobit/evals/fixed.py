"""What a decoded token takes beside its matrices: fitted to small blank models, whose matrices take little and known
time, so that the rest of a token shows.

Each of the models has much of one thing that `pace.work` counts: blocks, elements, positions, logits, rotations. Near
ones stay in the caches. One large model is streamed from memory: what its blocks and its key-value cache take longer
than near ones is the second table. Times are those of `Session`, so all that a token waits for is in them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from paretobit import hardware, pace
from paretobit.artifact import Artifact
from paretobit.evals.blank import Shapes, blank, decode_ms
from paretobit.pace import Pace
from paretobit.planfile import ROTATE, Plan, uniform
from paretobit.profile import FIXED, Hardware
from paretobit.speed import SPARE, Pick

NEAR, FAR = "w2", "w8"  # schemes: little time for matrices, and many bytes
SHORT, LONG = 16, 448  # tokens of a prompt
TOKENS, ROUNDS = 32, 7
FAR_TOKENS, FAR_ROUNDS = 8, 5
ADDED = ("block", "kv")  # what takes longer from memory


@dataclass(frozen=True)
class Small:
    """A decoder with heads of 64, a third of them for keys and values; tied, so that its vocabulary costs a matrix."""

    hidden: int
    intermediate: int
    layers: int
    prompt: int = SHORT
    vocab: int = 1024
    turned: bool = False

    def source(self) -> Shapes:
        heads = max(1, self.hidden // 64)
        return Shapes(
            {
                "model_type": "llama", "hidden_size": self.hidden, "intermediate_size": self.intermediate,
                "num_hidden_layers": self.layers, "num_attention_heads": heads, "head_dim": 64,
                "num_key_value_heads": max(1, heads // 3), "vocab_size": self.vocab, "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0, "max_position_embeddings": 1024, "hidden_act": "silu",
                "tie_word_embeddings": True,
            }
        )  # fmt: skip

    def plan(self, source: Shapes, scheme: str) -> Plan:
        plan = uniform(source.arch, source.hash, scheme, scheme, ("rtn", "rtn", "rtn"), {})
        return replace(plan, transforms=({"method": ROTATE, "seed": 0},) if self.turned else ())


SMALL = (
    Small(64, 128, 32),
    Small(64, 128, 8, LONG),
    Small(192, 512, 8),
    Small(384, 1024, 4),
    Small(384, 1024, 4, turned=True),
    Small(384, 1024, 4, LONG),
    Small(768, 2048, 1),
    Small(768, 2048, 1, turned=True),
    Small(64, 128, 1, vocab=1 << 17),
)
LARGE = Small(192, 768, 160)


def fixed_ns(
    machine: Hardware, threads: int, pick: Pick = statistics.median
) -> tuple[dict[str, float], dict[str, float]]:
    """(nanoseconds that each of profile.FIXED takes near, nanoseconds added from memory) with so many threads.

    machine: this one, with all that is measured of matrices at that number of threads; pick: see speed.Matrices. Raises
    ParetobitError where the disk has no room for some hundred megabytes.
    """
    rows, left = [], []
    for small in SMALL:
        counts, ms = _left(machine, small, threads, pick)
        rows.append([0.0 if name == "kv" else counts[name] for name in FIXED])
        left.append(ms)
    near = dict(zip(FIXED, nonnegative(np.array(rows), np.array(left)), strict=True))
    return near, _far(machine, threads, near, pick)


def _left(machine: Hardware, small: Small, threads: int, pick: Pick) -> tuple[dict[str, float], float]:
    """(what there is to do beside matrices, the nanoseconds that are left for it)."""
    source = small.source()
    plan = small.plan(source, NEAR)
    with blank(source, plan) as packed:
        return _counted(machine, packed, threads, small.prompt, TOKENS, ROUNDS, pick)


def _counted(
    machine: Hardware, packed: Artifact, threads: int, prompt: int, tokens: int, rounds: int, pick: Pick
) -> tuple[dict[str, float], float]:
    arch, plan, context = packed.arch, packed.plan, prompt + tokens // 2
    at = Pace(arch, machine, threads, pace.bytes_read(arch, plan, context), context)
    matrices = sum(at.matrix_ms(name, layer.scheme) for name, layer in plan.layers.items())
    found = decode_ms(packed, threads, prompt=prompt, tokens=tokens, rounds=rounds, pick=pick)
    ms = pick((found.least, found.median, found.most))
    return pace.work(arch, context, pace.turned_taps(arch, plan)), 1e6 * (ms - matrices)


def _far(machine: Hardware, threads: int, near: Mapping[str, float], pick: Pick) -> dict[str, float]:
    """What blocks and the key-value cache take more in a model that is read from memory."""
    source = LARGE.source()
    each = pace.bytes_read(source.arch, LARGE.plan(source, FAR)) / LARGE.layers
    layers = max(2, min(LARGE.layers, int(hardware.memory_available() / SPARE / each)))
    large = replace(LARGE, layers=layers)
    source = large.source()
    rows, left = [], []
    with blank(source, large.plan(source, FAR)) as packed:
        for prompt in (SHORT, LONG):
            counts, ms = _counted(machine, packed, threads, prompt, FAR_TOKENS, FAR_ROUNDS, pick)
            assert machine.speeds is not None
            nbytes = pace.bytes_read(source.arch, packed.plan, prompt + FAR_TOKENS // 2)
            far = max(0.05, pace.distance(machine.speeds, nbytes, threads))
            rows.append([far * counts[name] if name in ADDED else 0.0 for name in FIXED])
            left.append(ms - sum(near[name] * counts[name] for name in FIXED))
    return dict(zip(FIXED, nonnegative(np.array(rows), np.array(left)), strict=True))


def nonnegative(rows: np.ndarray, wanted: np.ndarray) -> list[float]:  # (n, k), (n,) -> (k,)
    """x ≥ 0 with rows · x nearest to `wanted`, errors as shares of it: least squares, the columns that would come out
    negative left out one after the other."""
    weight = 1 / np.maximum(np.abs(wanted), 1e-3 * np.abs(wanted).max() + 1e-9)
    scale = np.abs(rows).max(0)
    kept, found = [i for i in range(rows.shape[1]) if scale[i] > 0], np.zeros(rows.shape[1])
    while kept:
        x = np.linalg.lstsq(rows[:, kept] / scale[kept] * weight[:, None], wanted * weight, rcond=None)[0]
        if x.min() >= 0:
            found[kept] = x / scale[kept]
            break
        kept.pop(int(x.argmin()))
    return [float(value) for value in found]
