"""The report as Chromium shows it, from a file and without a network: nothing complains, everything is drawn and fits.
Screenshots stay in the folder that PARETOBIT_SCREENSHOTS names, if it does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import paretobit as pb
from tests.browser import Browser, browser
from tests.reports import measure, pack, write_details

pytestmark = pytest.mark.cross

WINDOWS = {"phone": (360, 740), "desktop": (1280, 900)}
LONG = "a-model-whose-name-is-so-long-that-no-phone-has-room-for-it-" * 2
EVIL = "<img src=x onerror=alert(1)></script><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def page(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every part, long words and hostile ones in it."""
    folder = tmp_path_factory.mktemp("report")
    names = ("small", LONG, EVIL.replace("/", "∕"))
    outs = [pack(model, folder / name, to) for name, to in zip(names, ("w2g16", "w4g16", "w8"), strict=True)]
    for out, kl, speed in zip(outs, (0.7, 0.05, 0.06), (300, 200, 100), strict=True):
        measure(out, "kl_divergence", kl, kl / 10, unit="nats")
        measure(out, "next_token_accuracy_retained", 1 - kl / 2, 0.004)
        measure(out, "decode_tokens_per_s", speed, command="paretobit bench THIS")
        measure(out, "joules_per_token_modelled", 10 / speed, command="paretobit bench THIS")
        write_details(out, f" {EVIL}" + "x" * 90)
    path = folder / "report.html"
    pb.report(*map(str, outs), out=str(path), grid="IND")
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
def test_the_page(page: Path, chromium: Browser, window: str, dark: bool, tmp_path: Path) -> None:
    chromium.asked.clear()
    chromium.look(*WINDOWS[window], dark)
    chromium.open(page)
    chromium.wait("document.documentElement?.dataset.drawn")
    chromium.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    width, inside = chromium.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= inside == WINDOWS[window][0]
    marks_of = "querySelectorAll('svg .mark-symbol path, svg .mark-rect path, svg .mark-line path').length"
    drawn = chromium.evaluate(
        f"[...document.querySelectorAll('.chart')].map(c => [c.id, c.{marks_of}, c.clientWidth,"
        " c.querySelector('svg')?.getAttribute('width') ?? 0])"
    )
    assert {name for name, *_ in drawn} == {
        *("chart-size", "chart-speed", "chart-energy", "chart-kl"), *(f"chart-bits-{i}" for i in range(3))
    }  # fmt: skip
    for name, marks, room, taken in drawn:
        least = {"chart-kl": 3}.get(name, 3 if "bits" not in name else 15)
        assert marks >= least, name
        assert 100 < float(taken) <= room <= inside, name
    colours = chromium.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.documentElement).backgroundColor,"
        " document.querySelector('#chart-size svg text').getAttribute('fill')]"
    )
    ink, paper, label = (brightness(colour) for colour in colours)
    assert (ink > 150 and paper < 60 and label > 100) if dark else (ink < 60 and paper > 200 and label < 140)
    shot = Path(os.environ.get("PARETOBIT_SCREENSHOTS", tmp_path)) / f"{window}-{'dark' if dark else 'light'}.png"
    chromium.screenshot(shot)
    assert shot.stat().st_size > 20_000
    assert "owned" not in chromium.evaluate("document.title").replace(EVIL, "")
    assert chromium.asked == [page.as_uri()] and chromium.complaints == []


def brightness(colour: str) -> float:
    """0 … 255, of rgb(r, g, b) or #rrggbb."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)] if colour.startswith("#") else None
    return sum(parts or [int(float(part)) for part in colour.strip("rgba()").split(",")[:3]]) / 3


def test_charts_follow_the_colours_and_the_width(page: Path, chromium: Browser) -> None:
    chromium.look(*WINDOWS["desktop"], False)
    chromium.open(page)
    chromium.wait("document.documentElement?.dataset.drawn")
    fill = "document.querySelector('#chart-size svg text').getAttribute('fill')"
    before = chromium.evaluate(fill)
    chromium.look(*WINDOWS["desktop"], True)
    chromium.wait(f"{fill} !== '{before}'")
    chromium.look(*WINDOWS["phone"], True)
    chromium.wait("[...document.querySelectorAll('.chart svg')].every(s => s.getAttribute('width') <= innerWidth)")
    assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_tooltip_shows_text(page: Path, chromium: Browser) -> None:
    """What hovers is a model's name, too: it must stay text."""
    chromium.look(*WINDOWS["desktop"], False)
    chromium.open(page)
    chromium.wait("document.documentElement?.dataset.drawn")
    x, y = chromium.evaluate(
        "(() => { const one = [...document.querySelectorAll('#chart-size .mark-symbol path')].at(-1);"
        " one.scrollIntoView({block: 'center'}); const r = one.getBoundingClientRect();"
        " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    chromium.wait("document.querySelector('#vg-tooltip-element.visible') !== null")
    shown = chromium.evaluate("[...document.querySelectorAll('#vg-tooltip-element td')].map(e => e.textContent)")
    assert any("<img src=x" in text for text in shown)
    assert not chromium.evaluate("document.querySelectorAll('img').length") and chromium.complaints == []


def test_the_policy_stops_what_it_shall(page: Path, chromium: Browser, tmp_path: Path) -> None:
    """A browser that could not tell would make the tests above worthless."""
    spoilt = tmp_path / "spoilt.html"
    more = "<script>document.title='owned'</script><img src='http://127.0.0.1:9/x'>"
    spoilt.write_text(page.read_text().replace("<footer>", more + "<footer>"))
    chromium.complaints.clear()
    chromium.open(spoilt)
    chromium.wait("document.documentElement?.dataset.drawn")
    assert chromium.evaluate("document.title") != "owned" and len(chromium.complaints) >= 2
    chromium.complaints.clear()
