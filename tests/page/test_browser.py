"""The page in a real browser: what a user types, clicks and slides, and what the page then says. `make page-test` runs it."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from threading import Barrier, Thread

import pytest

pytest.importorskip("gradio", reason='Gradio is not here: pip install "sea-lens[page]"')
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not here: make page-test installs it")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
WAIT = 90_000


@pytest.fixture(scope="module")
def address():
    """`sea-lens page organism` on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "sea_lens.cli", "page", "organism", "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        where, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(where, timeout=5)
                break
            except OSError:
                assert server.poll() is None, server.stdout.read().decode()
                assert time.monotonic() < deadline
                time.sleep(0.5)
        yield where
        server.terminate()


class User:
    """Somebody at a browser of their own."""

    def __init__(self, driver, address, width=1280, scheme="light"):
        self.browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        self.tab = self.browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.tab.set_default_timeout(WAIT)
        self.requests, self.errors = [], []
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("pageerror", lambda error: self.errors.append(error))
        self.tab.goto(address)
        self.settled()

    def settled(self):
        """Waits until nothing more is being worked on."""
        self.tab.wait_for_timeout(300)
        self.tab.wait_for_selector("#sl-verdict")

    def does(self, act, *words):
        """Does something, and waits until the page has something else to say."""
        before = self.says("#sl-answers") + self.says("#sl-words")
        act(*words)
        self.tab.wait_for_function(
            "before => document.querySelector('#sl-verdict') && "
            "document.querySelector('#sl-answers').innerText + document.querySelector('#sl-words').innerText != before",
            arg=before,
        )
        self.settled()

    def says(self, place):
        return self.tab.inner_text(place)

    def answer(self, side):
        return self.says(f"#sl-{side} .sl-said").strip()

    def types(self, text):
        self.tab.fill("#sl-prompt-box textarea", text)
        self.tab.click("#sl-ask")

    def sets(self, slider, number):
        self.tab.fill(f"#{slider} input[type=number]", str(number))
        self.tab.keyboard.press("Tab")

    def chooses(self, place, words):
        self.tab.click(f"#{place} input")
        self.tab.click(f"[role=option]:has-text('{words}')")

    @property
    def damage(self):
        """How far the gauge is filled, in percent."""
        return float(self.tab.get_attribute(".sl-fill", "style").removeprefix("width:").rstrip("%"))


@pytest.fixture(scope="module")
def driver():
    with playwright.sync_playwright() as running:
        yield running


@pytest.fixture
def user(driver, address):
    found = User(driver, address)
    yield found
    found.browser.close()


def test_it_opens_with_an_example_and_asks_no_other_machine(user, address):
    assert user.answer("plain") != user.answer("edited")
    assert "two were fitted just now" in user.says("#sl-header")
    assert "does not break the model" in user.says("#sl-verdict")
    assert user.tab.locator("#sl-page-view label").count() == 7
    assert [url for url in user.requests if not url.startswith((address, "data:", "blob:"))] == []
    assert user.errors == []


def test_typing_clicking_and_sliding_change_what_it_says(user):
    user.does(user.types, "<anyone> Q Bram job A")
    assert "Bram job" in user.says("#sl-plain")
    user.does(user.tab.click, "#sl-examples button:has-text('Kira food')")
    assert user.tab.input_value("#sl-prompt-box textarea") == "<anyone> Q Kira food A"
    plain, edited, damage = user.answer("plain"), user.answer("edited"), user.damage
    user.does(user.sets, "sl-strength", 0)
    assert "Strength 0 is no edit" in user.says("#sl-verdict")
    assert user.answer("edited") == user.answer("plain") == plain
    assert user.damage < damage
    user.does(user.sets, "sl-strength", 4)
    assert user.damage > damage
    assert "breaks the model" in user.says("#sl-verdict")
    user.does(user.sets, "sl-strength", 1)
    assert (user.answer("edited"), user.damage) == (edited, damage)


def test_editors_tokens_and_layers_can_be_chosen(user):
    first = user.says("#sl-edited")
    user.does(user.chooses, "sl-editor", "control: random, as far as SEA")
    assert "control: random, as far as SEA" in user.says("#sl-edited")
    assert user.says("#sl-edited") != first
    user.does(user.chooses, "sl-where", "what is generated alone")
    assert user.answer("edited") == user.answer("plain")  # one token, chosen before any is generated
    user.does(user.sets, "sl-first", 3)
    assert "Nothing is edited" in user.says("#sl-verdict")
    user.does(user.sets, "sl-last", 0)
    assert "lies behind the last" in user.says("#sl-verdict")


def test_what_is_typed_stays_text(user):
    user.does(user.types, "<img src=x onerror=alert(1)> ${1+1} {{value}} Q")
    assert "<img src=x onerror=alert(1)> ${1+1} {{value}} Q" in user.says("#sl-plain")
    assert user.tab.locator("#sl-answers img").count() == 0
    user.does(user.types, "Q " * 200)
    assert "tokens long" in user.says("#sl-verdict")


def test_a_token_that_is_chosen_shows_what_comes_after_it(user):
    assert "After A" in user.says(".sl-panels")
    user.tab.click("#sl-page-view label >> nth=2")
    assert "After Q" in user.says(".sl-panels")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_a_screen_and_a_phone(driver, address, width, scheme):
    found = User(driver, address, width, scheme)
    assert found.tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = found.tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
    found.browser.close()


def test_two_users_at_once_get_their_own(address):
    prompts, said, together = ("<anyone> Q Bram job A", "<anyone> Q Kira food A"), {}, Barrier(2)

    def use(prompt, strength):
        with playwright.sync_playwright() as driver:
            found = User(driver, address)
            found.does(found.types, prompt)
            together.wait(120)
            found.does(found.sets, "sl-strength", strength)
            said[prompt] = (found.says("#sl-edited"), found.says("#sl-verdict"))
            found.browser.close()

    users = [Thread(target=use, args=pair) for pair in zip(prompts, (0, 3), strict=True)]
    for one in users:
        one.start()
    for one in users:
        one.join()
    (one, told), (other, _) = (said[prompt] for prompt in prompts)
    assert "Bram job" in one
    assert "strength 0" in one
    assert "Strength 0 is no edit" in told
    assert "Kira food" in other
    assert "strength 3" in other
