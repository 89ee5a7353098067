"""What people say they can afford, and what it means in bytes, milliseconds and joules."""

from __future__ import annotations

import pytest

from paretobit.budget import Budget, parse_fit
from paretobit.errors import ParetobitError

BYTES_16BIT, PARAMETERS = 269_000_000, 134_500_000


@pytest.mark.parametrize(
    ("wish", "nbytes"),
    [
        ("60000000", 60_000_000),
        ("60MB", 60_000_000),
        ("60 MB", 60_000_000),
        ("0.06GB", 60_000_000),
        ("512kB", 512_000),
        ("1.5KiB", 1536),
        ("60MiB", 62_914_560),
        ("1GiB", 1_073_741_824),
        ("87%", 34_970_000),  # 13 % of 269 MB
        ("99.9%", 269_000),
        ("2.5bpw", 42_031_250),  # 2.5 · 134.5 M / 8
        ("10.9B", 10),  # a byte that is not whole is not there
    ],
)
def test_sizes(wish: str, nbytes: int) -> None:
    assert parse_fit([wish], BYTES_16BIT, PARAMETERS) == Budget(bytes=nbytes)


def test_times_and_energies_combine_with_a_size() -> None:
    found = parse_fit(["60MB", "12ms", "400mJ"], BYTES_16BIT, PARAMETERS)
    assert found == Budget(bytes=60_000_000, ms_per_token=12.0, joules_per_token=0.4)
    assert found.limits() == {"bytes": 60_000_000, "ms_per_token": 12.0, "joules_per_token": 0.4}
    assert parse_fit(["0.5s"], BYTES_16BIT, PARAMETERS).limits() == {"ms_per_token": 500.0}
    assert parse_fit([], BYTES_16BIT, PARAMETERS).limits() == {}


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        (["60 parsecs"], "60 parsecs"),
        (["60mb"], "60mb"),
        (["-60MB"], "-60MB"),
        (["1e3MB"], "1e3MB"),
        (["nanMB"], "nanMB"),
        (["MB"], "MB"),
        ([""], "is no size"),
        (["9" * 400 + "MB"], "is no size"),
        (["0MB"], "nothing fits into nothing"),
        (["0.000ms"], "nothing fits into nothing"),
        (["100%"], "leaves nothing"),
        (["60MB", "87%"], "bytes is limited twice"),
        (["60MB", "2bpw"], "bytes is limited twice"),
        (["12ms", "1s"], "ms_per_token is limited twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(wishes: list[str], said: str) -> None:
    with pytest.raises(ParetobitError, match=r"; hint: ") as why:
        parse_fit(wishes, BYTES_16BIT, PARAMETERS)
    assert said in str(why.value)
