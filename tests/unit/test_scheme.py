"""The grammar of schemes, and what a grid means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretobit.errors import ParetobitError
from paretobit.qtensor import QTensor
from paretobit.scheme import LEVELS, Grid, Scheme, parse, spell, wider

AFFINE = st.builds(
    lambda bits, group, letter, act: f"w{bits:g}{group}{letter}{act}",
    st.sampled_from(sorted(LEVELS)),
    st.sampled_from(["", "g16", "g64", "g100", "g128"]),
    st.sampled_from(["", "s", "z"]),
    st.sampled_from(["", "a8", "a8s", "a8g16", "a8g64"]),
)


@given(AFFINE)
def test_parse_and_print_agree(text: str) -> None:
    try:
        scheme = parse(text)
    except ParetobitError:
        assert "z" in text and text[1:].startswith(("8", "1"))
        return
    assert parse(spell(scheme)) == scheme
    assert len(spell(scheme)) <= len(text)


@pytest.mark.parametrize(
    "text", ["w2t", "w1t", "w1.5t", "w2.5t", "w3.5ta8", "w3t4", "w4t8", "w2ta8", "bf16", "fp16", "fp32"]
)
def test_trellis_and_floats_round_trip(text: str) -> None:
    assert parse(spell(parse(text))) == parse(text)
    assert spell(parse("w2t8")) == "w2t"


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "w",
        "w7",
        "w3g",
        "w3g8",
        "3g64",
        "w3g64q",
        "w8z",
        "w1z",
        "w2tg64",
        "w5t",
        "w2.5",
        "w4.5t",
        "w2.0t",
        "w1.58t",
        "w2.5tg64",
        "w2.5t4",
        "W3",
        "w03",
        "w8a8g8",
        "w8a8z",
        "w8a8sg32",
    ],
)
def test_nonsense_is_refused_with_a_hint(bad: str) -> None:
    with pytest.raises(ParetobitError, match="hint:"):
        parse(bad)


def test_defaults_of_the_zero_point() -> None:
    assert parse("w3g64").weight.zero == "stored"
    assert parse("w3").weight.zero == "twos"
    assert parse("w3g64s").weight.zero == "twos"
    assert parse("w2").weight.zero == "mid"
    assert parse("w8g32").weight == Grid("affine", 8, 255, 32, "mid")
    assert parse("w5g64").weight.zero == "twos"


def test_grid_values_are_paretoq_s() -> None:
    """1 bit {±1}/2, ternary {-1,0,1}, 2 bits {±½,±1½}, 3 and 4 bits two's range, 8 bits symmetric."""

    def values(text: str) -> list[float]:
        grid = parse(text).weight
        codes = np.arange(grid.levels, dtype=np.uint8)[None]
        return QTensor(codes, np.ones((1, 1), np.float16), None, grid).dequant()[0].tolist()

    assert values("w1") == [-0.5, 0.5]
    assert values("w1.58") == [-1, 0, 1]
    assert values("w2") == [-1.5, -0.5, 0.5, 1.5]
    assert values("w3") == list(range(-4, 4))
    assert values("w4") == list(range(-8, 8))
    assert (values("w8")[0], values("w8")[-1]) == (-127, 127)


def test_activations_are_part_of_the_scheme() -> None:
    assert parse("w8a8").activation == Grid("affine", 8, 255, None, "mid")
    assert parse("w8a8g32").activation == Grid("affine", 8, 255, 32, "mid")
    assert parse("w8a8s").activation == Grid("static", 8, 255, None, "mid")
    assert parse("w8sa8s").weight == parse("w8").weight and parse("w8").activation is None
    assert str(wider(parse("w4g32a8g32"))) == "w6g32", "the head's activations stay floats"


def test_a_ragged_last_group_has_its_own_scale() -> None:
    grid = parse("w3g16").weight
    assert grid.groups(33) == 3
    scale = np.array([[1, 2, 4]], np.float16)
    q = QTensor(np.full((1, 33), 5, np.uint8), scale, np.ones((1, 3), np.uint8), grid)
    assert q.dequant()[0].tolist() == [4.0] * 16 + [8.0] * 16 + [16.0]


def test_the_embedding_is_wider_by_default() -> None:
    wanted = {"w3g64": "w4g64", "w2": "w4", "w8": "w8", "w4g64": "w6g64", "bf16": "bf16"}
    wanted |= {"w2t": "w4t", "w2.5t": "w4t", "w3t": "w4t", "w4t": "w5"}
    assert {text: str(wider(parse(text))) for text in wanted} == wanted
    assert isinstance(wider(parse("w2")), Scheme)
