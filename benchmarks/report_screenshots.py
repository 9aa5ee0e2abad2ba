"""Pictures of the page of `spo-verl report` for the documentation (docs/figures/report_*.png), by a headless Chromium.

    python benchmarks/report_screenshots.py RUN [RUN...] [--output FOLDER]

Needs the packages of ``.[dev]`` and Debian's ``chromium`` and ``chromium-driver``.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, TALL = 1420, 1000, 1750
BINARIES, DRIVERS = ("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)
READY = "return document.body.dataset.ready === 'yes'"


def installed() -> tuple[str, str] | None:
    """Paths of a browser and its driver; None where one of them is missing."""
    found = [next(filter(None, map(shutil.which, names)), None) for names in (BINARIES, DRIVERS)]
    return None if None in found else (str(found[0]), str(found[1]))


@contextmanager
def browser(profile: Path, *, dark: bool = False) -> Iterator[Any]:
    """A headless Chromium without network, which keeps what pages write to its console.

    Args:
        profile: folder for everything that the browser writes.
        dark: whether pages see a reader who prefers dark ones.

    Raises:
        SystemExit: no browser is installed.
    """
    from selenium import webdriver

    paths = installed()
    if paths is None:
        raise SystemExit("there is no Chromium with its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
                     "--disable-extensions", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
                     f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}",
                     *(["--blink-settings=preferredColorScheme=0"] if dark else [])):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=paths[1]))
    try:
        driver.set_page_load_timeout(60)
        driver.set_script_timeout(60)
        yield driver
    finally:
        driver.quit()


def open_page(driver: Any, path: Path) -> None:
    """Open a page from its file and wait until it is drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get(path.resolve().as_uri())
    WebDriverWait(driver, 60).until(lambda one: one.execute_script(READY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run with its record")
    parser.add_argument("--output", type=Path, default=Path("docs/figures"), help="folder of the pictures")
    arguments = parser.parse_args()
    from selenium.webdriver.support.ui import WebDriverWait
    from typer.testing import CliRunner

    from spo_verl.cli.app import app

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        done = CliRunner().invoke(app, ["report", *arguments.runs, "--output", str(page)])
        if done.exit_code:
            raise SystemExit(done.output)
        print(done.output)
        with browser(Path(folder) / "profile") as driver:
            open_page(driver, page)
            driver.set_window_size(WIDTH, TALL)
            take(driver, arguments.output / "report_top.png")
            driver.set_window_size(WIDTH, HEIGHT)
            driver.execute_script("document.getElementById('section-samples').scrollIntoView()")
            take(driver, arguments.output / "report_samples.png")
            driver.execute_script("document.getElementById('section-all-prompts').scrollIntoView()")
            driver.execute_script("document.querySelector('#prompts tbody tr').click()")
            WebDriverWait(driver, 30).until(
                lambda one: one.execute_script("return document.getElementById('history').open")
            )
            take(driver, arguments.output / "report_prompt.png")


def take(driver: Any, path: Path) -> None:
    driver.save_screenshot(str(path))
    print(path)


if __name__ == "__main__":
    main()
