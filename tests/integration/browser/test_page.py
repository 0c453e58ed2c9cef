"""The page in a real browser, before a real server: what a person would do and see.

Needs Chromium and the package `websockets`; skips itself by name where one is missing. Run it by itself:
`python -m pytest tests/integration/browser`. With OCTAVO_SCREENSHOTS=FOLDER it leaves pictures there.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="the package `websockets` is not installed")

from safetensors.numpy import load_file, save_file

from tests.integration.browser.chromium import Chromium, Page, find_chromium
from tests.support.tiny_models import tiny_model_dir

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")

FLAGS = ("--port", "0", "--num-blocks", "120", "--max-model-len", "1024", "--threads", "1")
KEY = "open-sesame"


@pytest.fixture(scope="module")
def endless_model(tmp_path_factory) -> Path:
    """A tiny model that takes some milliseconds a step and, at temperature 0, never ends a text by itself."""
    path = tiny_model_dir(tmp_path_factory.mktemp("endless") / "endless", num_hidden_layers=24)
    tensors = load_file(path / "model.safetensors")
    tensors["model.embed_tokens.weight"][[0, 2]] = 0  # tied with the head: both ends of text have the logit 0
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


@contextmanager
def serving(model: Path, *flags: str, log: Path) -> Iterator[str]:
    """A server of its own; the address of its page."""
    environment = {name: value for name, value in os.environ.items() if name != "OCTAVO_API_KEY"}
    command = [sys.executable, "-m", "octavo", "serve", str(model), *FLAGS, *flags]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment)
    try:
        yield wait_till_ready(process, log)
    finally:
        process.terminate()
        assert process.wait(30) == 0, log.read_text()


def wait_till_ready(process: subprocess.Popen, log: Path) -> str:
    end = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        if found := re.search(r"Serving \S+ at (http://[\d.:]+)", log.read_text()):
            return found[1] + "/"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def address(endless_model, tmp_path_factory) -> Iterator[str]:
    with serving(endless_model, log=tmp_path_factory.mktemp("log") / "server.log") as found:
        yield found


@pytest.fixture
def page(tmp_path) -> Iterator[Page]:
    """A fresh browser, as large as a laptop's window."""
    with Chromium(tmp_path / "profile") as browser:
        tab = browser.page()
        tab.resize(1280, 1100)
        yield tab


def picture(page: Page, name: str) -> None:
    if folder := os.environ.get("OCTAVO_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(Path(folder) / f"{name}.png")


def write(page: Page, text: str, **fields: object) -> None:
    """Fill in settings by their ids, write a message and press Enter."""
    for name, value in fields.items():
        page.evaluate(f"byId({name.replace('_', '-')!r}).value = {json.dumps(str(value))}")
    page.evaluate("byId('prompt').focus()")
    page.type(text)
    page.press("Enter", 13, "\r")


LAST = "document.querySelector('.turn:last-child')"


def test_a_message_streams_and_the_engine_is_seen_at_work(page, address):
    page.open(address)
    page.wait_for("byId('link').dataset.state === 'live'")
    page.wait_for("byId('model').textContent === 'endless'")
    before = page.evaluate("view.frame.totals.steps")
    page.evaluate("""
        window.lengths = [], window.used = new Set(), window.rows = new Set();
        new MutationObserver(() => lengths.push(document.querySelector('.turn:last-child .text').textContent.length))
          .observe(byId('log'), {subtree: true, childList: true, characterData: true});
        new MutationObserver(() => {
          used.add(view.codes.filter((code) => code > 1).length);
          for (const row of byId('requests').rows) rows.add(row.cells.length === 6 ? row.cells[1].textContent : 'none');
        }).observe(byId('requests'), {childList: true});
    """)
    write(page, "Why are books folded? <b>Tell me</b>", temperature=0, max_tokens=500, seed=3, system="Be brief.")
    page.wait_for("byId('stop').disabled === false")
    picture(page, "streaming")
    page.wait_for("running === null && view.frame.totals.running === 0", 60)
    lengths = page.evaluate("lengths")
    assert len(set(lengths)) > 50  # the text grew in many steps
    assert lengths == sorted(lengths)
    assert page.evaluate("document.querySelector('.turn.user .text').textContent") == (
        "Why are books folded? <b>Tell me</b>"
    )
    assert page.evaluate("document.querySelectorAll('#log b').length") == 0
    meta = page.evaluate(f"{LAST}.querySelector('.meta').textContent")
    assert re.fullmatch(r"500 tokens · [\d.]+ tokens/s · first token after \d+ ms · cut at the limit", meta)
    used = page.evaluate("[...used]")
    assert len(used) > 2  # blocks were taken while the text grew
    assert max(used) >= 10
    assert page.evaluate("[...rows].sort()") == ["none", "running"]
    assert page.evaluate("view.frame.totals.steps") >= before + 500
    assert page.evaluate("view.steps.at(-1).step") == page.evaluate("view.frame.totals.steps")
    assert page.evaluate("view.codes.filter((code) => code === 1).length") > 15  # at rest its blocks are cached
    assert page.evaluate("view.codes.filter((code) => code > 1).length") == 0
    assert page.problems == []


def test_canvases_speak_to_pointer_and_keys(page, address):
    page.open(address)
    write(page, "hello", temperature=0, max_tokens=30)
    page.wait_for("running === null && view.steps.length > 3 && view.frame.totals.running === 0", 30)
    box = page.evaluate("(({right, top}) => [right, top])(byId('steps').getBoundingClientRect())")
    page.move_pointer(box[0] - 3, box[1] + 20)
    page.wait_for("!byId('tip').classList.contains('hidden')")
    assert re.match(r"Step \d+: 1 token, [\d.]+ ms\n\S+  decode\nms: plan", page.evaluate("byId('tip').textContent"))
    picture(page, "tip")
    page.evaluate("byId('map').focus()")
    page.press("ArrowRight", 39)
    assert page.evaluate("byId('tip').textContent").startswith("Block 0: ")
    page.press("ArrowRight", 39)
    assert page.evaluate("byId('tip').textContent").startswith("Block 1: ")
    page.press("Escape", 27)
    assert page.evaluate("byId('tip').classList.contains('hidden')")
    drawn = (
        "new Set(byId('{}').getContext('2d').getImageData(0, 0, 1200, 230).data.join().match(/\\d+,\\d+,\\d+,255/g))"
    )
    assert page.evaluate(drawn.format("map") + ".size") >= 2
    assert page.evaluate(drawn.format("steps") + ".size") >= 3


def test_stop_ends_the_request_and_errors_are_shown(page, address):
    page.open(address)
    page.wait_for("byId('link').dataset.state === 'live'")
    write(page, "hello", temperature=0)
    page.wait_for(f"{LAST}?.querySelector('.text').textContent.length > 20")
    page.evaluate("byId('stop').click()")
    page.wait_for("running === null")
    assert "stopped" in page.evaluate(f"{LAST}.querySelector('.meta').textContent")
    page.wait_for("view.frame.totals.running === 0")
    assert page.evaluate("view.frame.totals.blocks_used") == 0
    page.evaluate("byId('new').click()")
    assert page.evaluate("document.querySelectorAll('.turn').length") == 0
    write(page, "hello", max_tokens=5000)
    problem = page.wait_for(f"{LAST}?.querySelector('.problem')?.textContent")
    assert "max_tokens" in problem
    assert page.evaluate("messages.length") == 0
    assert page.evaluate("byId('prompt').value") == "hello"  # to be sent again


def test_nobody_who_looks_away_is_fed(page, address):
    page.open(address)
    page.wait_for("byId('link').dataset.state === 'live'")
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for("byId('link').textContent === 'paused'")
    seen = page.evaluate("view.frame.time")
    time.sleep(2.5)
    assert page.evaluate("view.frame.time") == seen
    page.evaluate("delete document.hidden")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for(f"byId('link').dataset.state === 'live' && view.frame.time > {seen}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_fits_every_width_in_both_schemes(page, address, width, scheme):
    page.prefer(scheme)
    page.resize(width, 780, is_phone=width < 1000)
    page.open(address)
    write(page, "x" * 200 + " what", temperature=0, max_tokens=60)
    page.wait_for("running === null && view.steps.length > 0", 30)
    picture(page, f"{scheme}-{width}")
    page.evaluate("byId('settings').open = true")
    picture(page, f"{scheme}-{width}-settings")
    boxes = "[...document.querySelectorAll('#log, .scroll, section')]"
    assert page.evaluate(boxes + ".filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.id)") == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(
        "[...document.querySelectorAll('main *')].every((e) => e.getBoundingClientRect().right <= innerWidth)"
    )
    background, ink = page.evaluate("((s) => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    assert contrast(background, ink) > 12
    assert (luminance(background) < luminance(ink)) == (scheme == "dark")
    soft = page.evaluate("getComputedStyle(document.querySelector('dt')).color")
    card = page.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor")
    assert contrast(soft, card) > 4.5
    assert page.problems == []


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)" (WCAG 2.2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


def test_every_control_has_a_name_and_is_reached_by_tab(page, address):
    page.open(address)
    page.wait_for("byId('link').dataset.state === 'live'")
    page.evaluate("byId('settings').open = true")
    tree = page.command("Accessibility.getFullAXTree")["nodes"]
    controls = [
        node
        for node in tree
        if node.get("role", {}).get("value") in {"button", "textbox", "spinbutton", "image", "log"}
    ]
    assert len(controls) >= 10
    assert [node for node in controls if not node.get("name", {}).get("value")] == []
    reached = set()
    for _ in range(20):
        page.press("Tab", 9)
        reached.add(page.evaluate("document.activeElement.id"))
    assert {
        "prompt",
        "send",
        "temperature",
        "max-tokens",
        "seed",
        "system",
        "new",
        "key-button",
        "map",
        "steps",
    } <= reached


def test_a_server_with_a_key_is_asked_with_it(page, endless_model, tmp_path):
    with serving(endless_model, "--api-key", KEY, log=tmp_path / "server.log") as address:
        page.open(address)
        page.wait_for("byId('key-dialog').open")
        picture(page, "key")
        assert page.evaluate("byId('link').textContent") == "needs a key"
        page.type("wrong")  # the field has the focus
        page.press("Enter", 13, "\r")
        page.wait_for("byId('key-dialog').open && byId('key-note').textContent.includes('key is needed')")
        page.type(KEY)
        page.press("Enter", 13, "\r")
        page.wait_for("byId('link').dataset.state === 'live' && !byId('key-dialog').open")
        write(page, "hello", temperature=0, max_tokens=20)
        page.wait_for(f"{LAST}?.querySelector('.text').textContent.length > 3 && running === null")
        assert page.evaluate("Object.values(sessionStorage)") == [KEY]
        assert page.evaluate("localStorage.length + document.cookie.length") == 0
        page.open(address + "?again")
        page.wait_for("byId('link').dataset.state === 'live'")  # the tab still knows it


def test_a_server_that_comes_back_is_found_again(page, endless_model, tmp_path):
    with serving(endless_model, log=tmp_path / "first.log") as address:
        page.open(address)
        page.wait_for("byId('link').dataset.state === 'live'")
    page.wait_for("byId('link').dataset.state === 'lost'")
    port = re.search(r":(\d+)/", address)[1]
    with serving(endless_model, "--port", port, log=tmp_path / "second.log"):
        page.wait_for("byId('link').dataset.state === 'live'", 30)
