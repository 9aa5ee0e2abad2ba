"""The page in a real browser: it opens from its file, draws, filters, and shows the history of a prompt.

Skipped where Chromium and its driver are missing: ``apt-get install chromium chromium-driver``.
"""

import json

import pytest

from benchmarks.report_screenshots import browser, installed, open_page
from spo_verl.record.reading import Record
from spo_verl.reporting.page import make_page
from spo_verl.reporting.sources import Source
from tests.reporting.blocks import blocks, history, read_json
from tests.support.records import made_run

pytest.importorskip("selenium", reason="the package selenium is not installed")
pytestmark = pytest.mark.skipif(
    installed() is None, reason="there is no Chromium with its driver: apt-get install chromium chromium-driver"
)

ATTACK = "</script><img src=x onerror=\"document.title='attacked'\">"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of one run and of two, with what they hold."""
    folder = tmp_path_factory.mktemp("pages")
    sync = made_run(folder / "sync", prompts=300, steps=6, batch=150)
    other = made_run(folder / "async", prompts=150, steps=8, batch=30, mode="separate_async", sessions=2, seed=1)
    for dump in (sync.folder / "rollouts").iterdir():
        rows = [json.loads(line) for line in dump.read_text().splitlines()]
        dump.write_text("".join(json.dumps({**row, "output": row["output"] + ATTACK}) + "\n" for row in rows))
    sources = [Source(one.folder.name, one.folder, Record.open(one.folder), one.folder / "rollouts")
               for one in (sync, other)]  # fmt: skip
    found = {}
    for name, shown in (("one", sources[:1]), ("two", sources)):
        text, _ = make_page(shown, "today")
        (folder / f"{name}.html").write_text(text)
        found[name] = (folder / f"{name}.html", blocks(text))
    return folder, found


@pytest.fixture(scope="module")
def driver(pages):
    with browser(pages[0] / "profile") as one:
        yield one


@pytest.fixture
def opened(driver, pages):
    """Open one of the pages; afterwards its console must be empty."""

    def open_one(name):
        driver.get("about:blank")
        driver.get_log("browser")
        open_page(driver, pages[1][name][0])
        return pages[1][name][1]

    yield open_one
    assert driver.get_log("browser") == []
    assert driver.title != "attacked"
    assert driver.execute_script("return document.querySelectorAll('img').length") == 0
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0


def write(driver, field, value):
    driver.execute_script(
        "const one = document.getElementById(arguments[0]); one.value = arguments[1];"
        "one.dispatchEvent(new Event('input', {bubbles: true}))",
        field,
        str(value),
    )


def count(driver, table):
    return driver.find_element("id", f"{table}-count").text.split(", page ")[0]


def wait(driver, script):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 30).until(lambda one: one.execute_script(f"return {script}"))


def column(driver, table, number):
    return driver.execute_script(
        f"return [...document.querySelectorAll('#{table} tbody tr')].map(row => row.children[{number}].textContent)"
    )


def test_every_section_is_drawn(driver, opened):
    found = opened("one")
    names = driver.execute_script("return [...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(names) == len(set(names))
    titles = [one.text for one in driver.find_elements("css selector", "main h2")]
    assert titles == ["Learning", "Values", "Curriculum", "Forgetting", "Signal", "First to finish", "Time", "Samples",
                      "All prompts", "All numbers"]  # fmt: skip
    charts = {one.get_attribute("aria-label") for one in driver.find_elements("css selector", "main section svg[role]")}
    assert {"reward", "mean reward", "retention", "divergence", "share of rollouts", "tokens", "seconds",
            "share of rollouts by difficulty", "share of rollouts by data source"} <= charts  # fmt: skip
    runs = read_json(found, "run-0")["curves"]["reward"]["mean"]
    drawn = driver.execute_script(
        "return document.querySelector('svg[aria-label=\"reward\"] path[stroke]').getAttribute('d')"
    )
    places = [tuple(map(float, point.split())) for point in drawn.replace("M", "L").split("L")[1:]]
    assert len(places) == len(runs) == 6
    # What is higher in the record is higher in the picture, and the scale is the same everywhere.
    for (_, one), (_, other), mean, next_mean in zip(places, places[1:], runs, runs[1:], strict=False):
        assert (other < one) == (next_mean > mean) or abs(next_mean - mean) < 1e-3
    lowest, highest = min(runs), max(runs)
    span = max(y for _, y in places) - min(y for _, y in places)
    for (_, y), mean in zip(places, runs, strict=True):
        assert max(place for _, place in places) - y == pytest.approx(
            (mean - lowest) / (highest - lowest) * span, abs=0.3
        )


def test_samples_are_filtered_searched_and_sorted(driver, opened):
    found = opened("one")
    shown = read_json(found, "samples-0")
    total = len(shown["step"])
    assert count(driver, "samples") == f"{total} of {total}"
    write(driver, "samples-ending", "failed")
    assert count(driver, "samples") == f"{shown['ending'].count('failed')} of {total}"
    write(driver, "samples-ending", "")
    write(driver, "samples-value-from", 0.6)
    write(driver, "samples-step-to", 4)
    inside = sum(value >= 0.6 and step <= 4 for value, step in zip(shown["value"], shown["step"], strict=True))
    assert 0 < inside < total
    assert count(driver, "samples") == f"{inside} of {total}"
    write(driver, "samples-value-from", "")
    write(driver, "samples-step-to", "")
    write(driver, "samples-search", "ONERROR=")  # in responses, in other letters
    with_response = sum(one is not None for one in shown["output"])
    assert count(driver, "samples") == f"{with_response} of {total}"
    write(driver, "samples-search", shown["uid"][3])
    assert count(driver, "samples") == f"1 of {total}"
    write(driver, "samples-search", "no prompt says this")
    assert count(driver, "samples") == f"0 of {total}"
    write(driver, "samples-search", "")
    driver.execute_script(
        "[...document.querySelectorAll('#samples th button')].find(one => one.textContent === 'Value').click()"
    )
    values = [float(one) for one in column(driver, "samples", 5)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(max(shown["value"]), rel=1e-2)
    driver.execute_script(
        "[...document.querySelectorAll('.pager button')].find(one => one.textContent === 'Next').click()"
    )
    assert ", page 2 of " in driver.find_element("id", "samples-count").text


def test_a_click_shows_the_history_of_a_prompt(driver, opened):
    found = opened("one")
    prompts = read_json(found, "run-0")["prompts"]
    second_piece = range(read_json(found, "book")["piece"], len(prompts["key"]))
    place = max(second_piece, key=lambda number: prompts["draws"][number])
    wanted = history(found, 0, place)
    assert len(wanted) > 1
    write(driver, "prompts-search", prompts["key"][place])
    assert count(driver, "prompts") == f"1 of {len(prompts['key'])}"
    driver.find_element("css selector", "#prompts tbody tr").click()
    wait(driver, "document.getElementById('history').open")
    text = driver.find_element("id", "history").text
    assert prompts["text"][place] in text
    assert prompts["key"][place] in text
    rows = driver.find_elements("css selector", "#history table.draws tbody tr")
    assert [row.text.split()[0] for row in rows] == [str(int(one["step"])) for one in wanted]
    assert [row.text.split()[8] for row in rows] == [f"{one['tokens']:.0f}" for one in wanted]
    assert driver.execute_script("return document.querySelectorAll('#history svg[role]').length") == 1
    driver.find_element("css selector", "#history table.draws summary").click()
    assert ATTACK in driver.find_element("css selector", "#history table.draws pre").text
    driver.find_element("css selector", "#history .close").click()
    wait(driver, "!document.getElementById('history').open")


def test_a_sample_opens_with_its_texts_and_a_link_leads_back(driver, opened):
    found = opened("one")
    shown = read_json(found, "samples-0")
    write(driver, "samples-search", shown["uid"][0])
    driver.find_element("css selector", "#samples tbody tr").click()
    wait(driver, "document.getElementById('history').open")
    text = driver.find_element("id", "history").text
    for part in (shown["output"][0] or "This rollout", shown["uid"][0], "Response"):
        assert part in text
    address = driver.current_url
    assert "#prompt=" in address
    driver.get("about:blank")
    driver.get(address)
    wait(driver, "document.getElementById('history').open")


def test_two_runs_share_charts_and_can_be_told_apart(driver, opened):
    found = opened("two")
    legend = driver.execute_script(
        "const chart = document.querySelector('svg[aria-label=\"reward\"]').parentNode;"
        "return [...chart.querySelectorAll('li')].map(one => one.textContent)"
    )
    assert legend == ["sync", "async"]
    counts = [len(read_json(found, f"samples-{number}")["step"]) for number in range(2)]
    assert count(driver, "samples") == f"{sum(counts):,} of {sum(counts):,}"
    write(driver, "samples-run", "1")
    assert count(driver, "samples") == f"{counts[1]:,} of {sum(counts):,}"
    keys = [set(read_json(found, f"run-{number}")["prompts"]["key"]) for number in range(2)]
    both = sorted(keys[0] & keys[1])[0]
    write(driver, "prompts-search", both)
    assert count(driver, "prompts").startswith("2 of ")
    driver.find_element("css selector", "#prompts tbody tr").click()
    wait(driver, "document.getElementById('history').open")
    titles = [one.text for one in driver.find_elements("css selector", "#history h3")]
    assert {"sync", "async"} <= set(titles)


def test_dark_and_light(driver, opened):
    opened("one")
    ground = "return getComputedStyle(document.body).backgroundColor"
    before = driver.execute_script(ground)
    driver.find_element("id", "theme").click()
    after = driver.execute_script(ground)
    assert {before, after} == {"rgb(255, 255, 255)", "rgb(20, 24, 28)"}


def test_any_number_of_the_steps_can_be_chosen(driver, opened):
    opened("one")
    write(driver, "metric", "actor/entropy")
    assert driver.execute_script("return document.querySelectorAll('svg[aria-label=\"actor/entropy\"]').length") == 1


def test_a_torn_page_says_so(driver, pages):
    page = pages[1]["one"][0]
    torn = page.with_name("torn.html")
    head, mark, rest = page.read_text().partition('id="book">')
    torn.write_text(head + mark + "AAAA" + rest)
    driver.get("about:blank")
    driver.get(torn.as_uri())
    assert wait(driver, "document.getElementById('main').textContent.includes('could not be opened')")
    driver.get_log("browser")
