"""Pages in a real browser: they load nothing, draw everything, and fit wide and narrow screens."""

import dataclasses
from pathlib import Path

import pytest

from loadgen.record import ClientProcess
from loadgen.report.groups import Entry
from loadgen.report.page import write_page
from tests.support.browser import Browser, executable
from tests.support.report_samples import sample_comparison, sample_entry, sample_run

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        executable() is None, reason="no chromium on PATH (Debian: apt-get install chromium): pages cannot be looked at"
    ),
]

DRAWN = "[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))"
PNG = b"\x89PNG\r\n"


def searched_and_invalid() -> Entry:
    run = dataclasses.replace(sample_run(requests=80), clients=[ClientProcess(requests=80, cpu_share=0.91)])
    entry = sample_entry(run, splitwise=True)
    tries = [{"rate_rps": 2.0, "attainment": 1.0, "valid": True}, {"rate_rps": 4.0, "attainment": 0.7, "valid": False}]
    return dataclasses.replace(entry, result={**entry.result, "goodput_search": {"tries": tries, "best": {"0.9": 2.0}}})


def write(kind: str, path: Path) -> None:
    if kind == "compare":
        entries, comparison = sample_comparison(runs=2, requests=80)
        write_page(path, entries, comparison=comparison)
    elif kind == "run":
        write_page(path, [sample_entry(sample_run(requests=80))])
    else:
        write_page(path, [searched_and_invalid()])


@pytest.mark.parametrize(("kind", "plots"), [("run", 12), ("invalid", 13), ("compare", 12)])
async def test_a_page_loads_nothing_draws_everything_and_fits(tmp_path: Path, kind: str, plots: int) -> None:
    path = tmp_path / "page.html"
    write(kind, path)
    async with Browser() as browser:
        for width in (1280, 400):
            async with browser.open(path.as_uri(), width=width) as page:
                await page.until(DRAWN)
                assert await page.evaluate("document.querySelectorAll('.plot .plot-container').length") == plots
                assert await page.evaluate("document.querySelectorAll('.plot .error, .plot:empty').length") == 0
                assert await page.evaluate("innerWidth") == width
                assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
                    f"too wide at {width} px"
                )
                assert await page.evaluate("document.querySelectorAll('[data-title*=\"Share\"]').length") == 0
                outside = [url for url in page.requests[1:] if not url.startswith(("data:", "blob:"))]
                assert (page.requests[0], outside, page.errors) == (path.as_uri(), [], [])


async def test_a_page_follows_the_colours_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write("run", path)
    ink = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    async with Browser() as browser, browser.open(path.as_uri(), width=800) as page:
        await page.until(DRAWN)
        light = await page.evaluate(ink)
        await page.prefer("dark")
        await page.until(f"{ink} !== '{light}'")
        assert (await page.screenshot()).startswith(PNG)
        assert page.errors == []


async def test_the_browser_sees_what_a_page_does_wrong(tmp_path: Path) -> None:
    """Else the tests above would prove nothing."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<div style='width:900px'>wide</div><script src='http://127.0.0.1:9/a.js'></script>"
        "<script>console.error('said'); throw new Error('thrown')</script>"
    )
    async with Browser() as browser, browser.open(path.as_uri(), width=400) as page:
        assert "http://127.0.0.1:9/a.js" in page.requests
        assert any("said" in error for error in page.errors) and any("thrown" in error for error in page.errors)
        assert await page.evaluate("document.documentElement.scrollWidth > innerWidth")
