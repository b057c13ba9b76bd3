"""The report as a person sees it: in a headless Chromium, which is skipped where there is none."""

from __future__ import annotations

import base64
import re
import shutil
import threading
import time

import pytest

from cbst_mx.report.page import write_report
from cbst_mx.report.server import open_server
from tests.report_runs import HOSTILE, write_data, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here: apt-get install chromium chromium-driver"
)
DARK = re.compile(r"rgb\((\d+), (\d+), (\d+)\)")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    truths = write_data(root / "data", images=4)
    write_run(root / "runs" / "cbst", root / "data", truths)
    write_run(root / "runs" / "st", root / "data", truths, method="st", gain=-0.02)
    return root


@pytest.fixture(scope="module")
def page(runs):
    out = runs / "report.html"
    write_report([runs / "runs" / "cbst", runs / "runs" / "st"], out)
    return out.as_uri()


@pytest.fixture(scope="module")
def chromium():
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium):
    """Return the browser at a desktop's width and in light colours, and see afterwards that it had no complaint."""
    show(chromium, 1280)
    chromium.get_log("browser")
    yield chromium
    complaints = [entry["message"] for entry in chromium.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert [one for one in complaints if "favicon" not in one] == []


def show(driver, width, scheme="light"):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def open_page(driver, address):
    """Open a report, and wait until its script is done."""
    driver.get("about:blank")
    driver.get(address)
    wait(lambda: driver.execute_script("return document.documentElement.dataset.ready") == "true")


def find(driver, selector):
    from selenium.webdriver.common.by import By

    return driver.find_element(By.CSS_SELECTOR, selector)


def wait(check, seconds=30):
    """Return what a check gives as soon as it is something; the time is for machines under load."""
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def brightness(driver, script):
    return sum(map(int, DARK.match(driver.execute_script(f"return {script}")).groups())) / 3


def ground(driver):
    return brightness(driver, "getComputedStyle(document.body).backgroundColor")


def set_slider(driver, selector, value):
    script = (
        "const one = document.querySelector(arguments[0]); one.value = arguments[1];"
        "one.dispatchEvent(new Event('input', {bubbles: true}));"
    )
    driver.execute_script(script, selector, value)


def test_charts_are_drawn(browser, page):
    open_page(browser, page)
    svg = "one => [one.id, !!one.querySelector('svg')]"
    drawn = browser.execute_script(f"return [...document.querySelectorAll('.plot')].map({svg})")
    wanted = {"chart-gains", "chart-miou", "chart-kept-0", "chart-reliability", "chart-loss-0"}
    assert {key for key, _ in drawn} >= wanted
    assert all(svg for _, svg in drawn)


def panels(driver):
    """Return the pictures of predictions that are seen, by their captions."""
    figures = "[...document.querySelectorAll('.viewer[data-kind=predictions] .panels figure')]"
    pair = "one => [one.querySelector('figcaption').textContent, one.querySelector('img').src]"
    return dict(driver.execute_script(f"return {figures}.map({pair})"))


def test_the_slider_changes_the_pictures(browser, page):
    open_page(browser, page)
    last = panels(browser)
    assert list(last) == ["image", "truth", "source-only", "CBST, round 2", "ST, round 2"]
    set_slider(browser, ".viewer[data-kind=predictions] .round", 1)
    first = panels(browser)
    assert list(first) == ["image", "truth", "source-only", "CBST, round 1", "ST, round 1"]
    assert first["CBST, round 1"] != last["CBST, round 2"]
    assert first["truth"] == last["truth"]
    find(browser, ".viewer[data-kind=predictions] .after").click()
    assert panels(browser)["truth"] != first["truth"]
    loaded = "return [...document.images].filter(one => one.src).every(one => one.complete && one.naturalWidth > 0)"
    wait(lambda: browser.execute_script(loaded))


def test_before_and_after_is_divided_by_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    clip = "return document.querySelector('.right').style.clipPath"
    assert browser.execute_script(clip) == "inset(0px 0px 0px 50%)"
    find(browser, ".divide").send_keys(Keys.ARROW_RIGHT)
    assert browser.execute_script(clip) == "inset(0px 0px 0px 51%)"


def test_an_image_of_the_tables_shows_its_pictures(browser, page):
    open_page(browser, page)
    name = "return document.querySelector('#images .see').dataset.image"
    wanted = browser.execute_script(name)
    browser.execute_script("document.querySelector('#images .see').click()")
    shown = "return document.querySelector('.viewer[data-kind=predictions] .which').selectedOptions[0].text"
    assert browser.execute_script(shown) == wanted


def test_tables_sort(browser, page):
    open_page(browser, page)
    cells = (
        "return [...document.querySelectorAll('#classes table.sortable tbody tr')].map(row => row.cells[1].textContent)"
    )
    head = find(browser, "#classes table.sortable thead th:nth-child(2) button")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", head)
    head.click()
    down = [float(value) for value in browser.execute_script(cells)]
    assert down == sorted(down, reverse=True)
    head.click()
    assert [float(value) for value in browser.execute_script(cells)] == sorted(down)
    assert find(browser, "#classes .sortable th:nth-child(2)").get_attribute("aria-sort") == "ascending"


def test_dark_as_the_system_and_by_the_button(browser, page):
    ink = "getComputedStyle(document.querySelector('#chart-miou text')).fill"
    show(browser, 1280, "dark")
    open_page(browser, page)
    assert ground(browser) < 50
    assert brightness(browser, ink) > 180
    find(browser, "#theme").click()
    assert ground(browser) > 200
    assert brightness(browser, ink) < 80


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_scrolls_sideways(browser, page, width):
    show(browser, width)
    open_page(browser, page)
    browser.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    time.sleep(0.5)  # charts that were closed are resized
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return innerWidth") == width  # a phone would widen its view


def test_it_prints_in_light_colours(browser, page):
    show(browser, 1280, "dark")
    open_page(browser, page)
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 50_000
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    parts = "[...document.querySelectorAll('details:not([open])')]"
    closed = f"return {parts}.filter(one => !one.querySelector('pre')).length"
    assert browser.execute_script(closed) == 0
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(closed) > 0
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert ground(browser) > 200
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_names_with_html_do_not_run(browser, page):
    open_page(browser, page)
    time.sleep(0.3)
    assert browser.title == "CBST, ST"
    assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    options = browser.execute_script("return [...document.querySelector('.which').options].map(one => one.text)")
    assert any(HOSTILE in option for option in options)


def test_keyboard_reaches_what_can_be_pressed(browser, page):
    open_page(browser, page)
    unreachable = browser.execute_script(
        "return [...document.querySelectorAll('button, select, input, summary, a, .wide')]"
        ".filter(one => one.tabIndex < 0).length"
    )
    assert unreachable == 0
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('input, select')]"
        ".filter(one => !one.closest('label') && !one.getAttribute('aria-label')).length"
    )
    assert unnamed == 0


def test_a_served_report_grows_with_its_run(browser, runs):
    truths = write_data(runs / "live-data", images=3)
    write_run(runs / "live" / "run", runs / "live-data", truths, rounds=3, done=1)
    with open_server([runs / "live"], port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            browser.get(server.address)
            find(browser, "input[type=checkbox]").click()
            find(browser, "button[type=submit]").click()
            title = "return (document.querySelector('h1') || {}).textContent || ''"
            wait(lambda: "after 1 of 3 rounds" in browser.execute_script(title))
            browser.execute_script("window.before = true")
            browser.execute_script("document.querySelector('#runs details').open = true")
            browser.execute_script("document.querySelector('.which').value = 1")
            time.sleep(1)  # the page has asked once
            shutil.rmtree(runs / "live" / "run")
            write_run(runs / "live" / "run", runs / "live-data", truths, rounds=3, done=2)
            wait(lambda: not browser.execute_script("return !!window.before"))
            wait(lambda: "after 2 of 3 rounds" in browser.execute_script(title))
            kept = "return [document.querySelector('#runs details').open, document.querySelector('.which').value]"
            wait(lambda: browser.execute_script(kept) == [True, "1"])
        finally:
            browser.get("about:blank")
            server.shutdown()
