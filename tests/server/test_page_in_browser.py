"""The page as Chromium shows it, used with the keyboard alone: it chats, stops, edits, tries again, two models side by
side, and asks nobody but its server. Screenshots stay in the folder that PARETOBIT_SCREENSHOTS names, if it does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from paretobit.server.launch import Server
from tests.browser import Browser, browser
from tests.served import idle, packed, running, slow_down

pytestmark = pytest.mark.cross

WINDOWS = {"phone": (360, 740), "desktop": (1280, 900)}
IDLE = "document.getElementById('stop').disabled"
TEXTS = "[...document.querySelectorAll('article p')].map(each => each.textContent)"
CONTRAST = """(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const kinds = 'h1, h2, p, label, button, summary, .who, .meter, select, input, textarea';
  const seen = [...document.querySelectorAll(kinds)]
    .filter(each => each.offsetParent && !each.disabled && !each.classList.contains('hidden'));
  return seen.map(each => {
    const [a, b] = [light(parse(getComputedStyle(each).color)), light(behind(each))];
    return [each.tagName + '.' + each.className, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  }).filter(each => each[1] < 4.5);
})()"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("packed")
    outs = [
        packed(folder, to, name, max_position_embeddings=2048) for to, name in (("w4g32", "four"), ("w2g32", "two"))
    ]
    with running(*outs) as served:
        yield served


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(server: Server, chromium: Browser) -> Iterator[Browser]:
    chromium.complaints.clear()
    chromium.look(*WINDOWS["desktop"], False)
    chromium.open("about:blank")
    chromium.asked.clear()
    chromium.open(f"{server.url}/")
    chromium.wait("document.documentElement?.dataset.ready")
    yield chromium
    chromium.wait(IDLE)
    assert chromium.complaints == []
    assert {address.partition("?")[0] for address in chromium.asked} <= {
        f"{server.url}/{path}" for path in ("", "v1/models", "v1/chat/completions", "meter", "favicon.ico")
    }


def choose(page: Browser, name: str, value: str) -> None:
    page.evaluate(
        f"(node => {{ node.value = '{value}'; node.dispatchEvent(new Event('change')); }})"
        f"(document.getElementById('{name}'))"
    )


def say(page: Browser, text: str) -> None:
    page.evaluate("document.getElementById('text').focus()")
    page.write(text)
    page.press("Enter", 13, "\r")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
def test_what_it_looks_like(page: Browser, window: str, dark: bool, tmp_path: Path) -> None:
    page.look(*WINDOWS[window], dark)
    choose(page, "max_tokens", "60")
    choose(page, "model-1", "two")
    say(page, "The river runs through the old town <b>and</b> on" + "x" * 60)
    page.wait(f"{IDLE} && document.querySelectorAll('article.assistant').length === 2")
    page.evaluate("document.querySelector('details').open = true")
    width, inside = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= inside == WINDOWS[window][0]
    assert page.evaluate(CONTRAST) == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(paper) < 60) if dark else (min(paper) > 200)
    shot = Path(os.environ.get("PARETOBIT_SCREENSHOTS", tmp_path)) / f"page-{window}-{'dark' if dark else 'light'}.png"
    page.screenshot(shot, whole=False)
    assert shot.stat().st_size > 10_000
    page.look(*WINDOWS["desktop"], False)


def test_a_conversation(page: Browser, server: Server) -> None:
    from paretobit.runtime.sampler import Sampling
    from tests.served import alone

    model = server.catalogue.models["four"].model
    choose(page, "temperature", "0")
    choose(page, "top_p", "1")
    choose(page, "max_tokens", "20")
    choose(page, "system", "Be brief.")

    def expected(*messages: tuple[str, str]) -> str:
        listed = [{"role": "system", "content": "Be brief."}, *({"role": r, "content": c} for r, c in messages)]
        ids = model.tokenizer.encode(model.tokenizer.chat(listed), add_special=False)
        return alone(model, ids, 20, Sampling())

    first = expected(("user", "The river"))
    say(page, "The river")
    page.wait(f"{IDLE} && ({TEXTS}).length === 2")
    assert page.evaluate(TEXTS) == ["The river", first]
    say(page, "runs")
    page.wait(f"{IDLE} && ({TEXTS}).length === 4")
    second = expected(("user", "The river"), ("assistant", first), ("user", "runs"))
    assert page.evaluate(TEXTS)[2:] == ["runs", second]
    assert "of them known" in page.evaluate("document.querySelectorAll('article.assistant .meter')[1].textContent")
    page.evaluate("document.querySelectorAll('article.assistant button')[0].click()")  # another answer to the first
    page.wait(f"{IDLE} && ({TEXTS}).length === 2")
    assert page.evaluate(TEXTS) == ["The river", first]
    page.evaluate("document.querySelector('article.user button').click()")
    assert page.evaluate("[document.activeElement.id, document.getElementById('text').value]") == ["text", "The river"]
    assert page.evaluate(TEXTS) == []
    page.wait("document.getElementById('machine').textContent.includes('J a token')")


def test_stop(page: Browser, server: Server) -> None:
    slow_down(server, 0.03)
    choose(page, "max_tokens", "1500")
    say(page, "The town")
    page.wait("document.querySelector('article.assistant p')?.textContent.length > 5")
    page.press("Escape", 27)
    page.wait(IDLE)
    idle(server)
    assert page.evaluate("document.querySelector('article.assistant .meter').textContent") == "stopped"


def test_everything_has_a_name_for_screen_readers(page: Browser) -> None:
    page.evaluate("document.querySelector('details').open = true")
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            roles.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "combobox", "textbox", "spinbutton", "log", "main"):
        assert roles.get(role) and all(roles[role]), (role, roles.get(role))
    assert "status" in roles and roles["main"] == ["Conversation"]


def test_an_error_is_shown(page: Browser) -> None:
    choose(page, "max_tokens", "100000")
    say(page, "Hello")
    page.wait(f"{IDLE} && document.querySelector('article.assistant .error').textContent.includes('do not fit')")
    page.complaints.clear()  # the browser's own line about the status 400


def test_the_api_page(chromium: Browser, server: Server) -> None:
    chromium.complaints.clear()
    chromium.asked.clear()
    chromium.open(f"{server.url}/docs")
    chromium.wait("document.querySelectorAll('h2').length > 5")
    assert "repetition_penalty" in chromium.evaluate("document.body.textContent")
    assert chromium.complaints == [] and {*chromium.asked} <= {f"{server.url}/docs", f"{server.url}/favicon.ico"}
