"""The site, built and opened in a real browser.

Needs `pip install -e ".[docs]" selenium`, Chromium and its driver.
"""

import functools
import http.server
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import threading

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
DRIVER = shutil.which("chromedriver")
MODULES = (
    "mkdocs",
    "material",
    "mkdocstrings",
    "mkdocs_awesome_nav",
    "l2m4m",
    "selenium",
)
MISSING = [name for name in MODULES if not importlib.util.find_spec(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}"),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no Chromium"),
]
# All that a page shows, in one answer of the browser.
LOOK = """
const absolute = (each) => each.href.replace(location.origin, "");
const own = [...document.links].filter((each) => each.origin === location.origin);
const images = [...document.images].filter((each) => !each.naturalWidth);
return {
    links: own.map(absolute),
    ids: [...document.querySelectorAll("[id]")].map((each) => each.id),
    broken: images.map((each) => each.src),
    formulas: document.querySelectorAll("math").length,
    title: document.querySelector("h1").innerText,
    wide: document.documentElement.scrollWidth > innerWidth,
};
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the site, built as CI and publishing build it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # No other host resolves: what is fetched from one becomes an error.
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    for flag in ("--headless=new", "--no-sandbox", "--window-size=1400,1000", rules):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(DRIVER)
    with webdriver.Chrome(options=options, service=service) as driver:
        driver.set_page_load_timeout(60)
        yield driver


def wait_for(browser, condition):
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, 20).until(condition)


def by_css(selector):
    from selenium.webdriver.common.by import By

    return By.CSS_SELECTOR, selector


def by_text(text):
    from selenium.webdriver.common.by import By

    return By.XPATH, f"//nav//a[normalize-space()='{text}']"


def severe(browser):
    """Errors in the console since it was last asked."""
    return [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]


def title_of(browser):
    return browser.find_element(*by_css("h1")).text.removesuffix("¶")


@pytest.fixture(scope="module")
def pages(site, address, browser):
    """What the browser sees on each page, by its path."""
    found = {}
    for file in sorted(site.rglob("index.html")):
        path = "/" + file.relative_to(site).as_posix().removesuffix("index.html")
        severe(browser)
        browser.get(address + path)
        found[path] = browser.execute_script(LOOK) | {"errors": severe(browser)}
    return found


def test_pages_show_all_their_images_without_errors(pages):
    assert len(pages) > 20
    faults = {path: page["broken"] + page["errors"] for path, page in pages.items()}
    assert {path: found for path, found in faults.items() if found} == {}


def test_pages_fit_into_the_window(pages):
    assert [path for path, page in pages.items() if page["wide"]] == []


def test_links_inside_the_site_lead_to_pages_and_places(pages, site):
    lost = set()
    for start, page in pages.items():
        for link in page["links"]:
            path, _, place = link.partition("#")
            if path in pages:
                known = not place or place in pages[path]["ids"]
            else:
                known = (site / path.lstrip("/")).is_file()
            if not known:
                lost.add((start, link))
    assert lost == set()


def test_formulas_are_formulas(pages):
    assert pages["/concepts/loss/"]["formulas"] > 10


def test_reference_has_every_public_name(pages):
    import keras_pedcc

    ids = {each for page in pages.values() for each in page["ids"]}
    names = {f"keras_pedcc.{name}" for name in keras_pedcc.__all__}
    functions = {*keras_pedcc.losses.__all__} - {*keras_pedcc.__all__}
    names |= {f"keras_pedcc.losses.{name}" for name in functions}
    assert names - ids == set()


def test_navigation_leads_from_the_front_to_a_guide(address, browser):
    browser.get(address)
    for text in ("Guides", "Verify, enrol, identify"):
        wait_for(browser, lambda b, text=text: b.find_element(*by_text(text))).click()
    wait_for(browser, lambda b: title_of(b) == "Verify, enrol, identify")
    assert browser.current_url == f"{address}/guides/verify/"


def test_search_finds_a_name(address, browser):
    browser.get(address)
    browser.find_element(*by_css("input.md-search__input")).send_keys("KerdockDense")
    selector = by_css("a.md-search-result__link")
    first = wait_for(browser, lambda b: b.find_elements(*selector))[0]
    wait_for(browser, lambda b: first.is_displayed())
    first.click()
    wait_for(browser, lambda b: b.current_url.rstrip("/") != address)
    wait_for(browser, lambda b: "KerdockDense" in b.page_source)
    assert severe(browser) == []
