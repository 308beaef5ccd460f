"""GET /pool in a browser: it shows what is, it moves, and everybody can read it."""

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.support.load import Load
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.support.sessions import locked

# A lock is waited for until the test lets go of it.
SETTINGS = {
    "WORKERS": "2",
    "WORKER_THREADS": "4",
    "QUEUE_LENGTH": "64",
    "QUEUE_WAIT": "47",
    "LOCK_TIMEOUT": "45",
    "STATEMENT_TIMEOUT": "46",
    "LEAK_THRESHOLD": "47",
    "REQUEST_DEADLINE": "48",
    "GRACEFUL_SHUTDOWN_TIMEOUT": "49",
    "CONNECT_TIMEOUT": "1",
}
THREADS = 8
CLIENTS = 60  # at the most: fewer than there is room for before one worker

SCREENS: dict[str, ViewportSize] = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 360, "height": 780}}
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")

FOCUSABLE = "[...document.querySelectorAll('a[href], button, input, [tabindex]')].map(node => node.textContent)"
FOCUSED = """() => {
    const style = getComputedStyle(document.activeElement);
    return [document.activeElement.textContent, style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2];
}"""
PLACES = "[...document.querySelectorAll('h2, figure')].map(node => node.offsetTop)"
POINTS = "document.querySelector('.layers .line').getAttribute('d').split('L').length"


@pytest.fixture
def service(database: TestDatabase) -> Iterator[Service]:
    with Service({**database.environment, **SETTINGS}) as service:
        yield service


@contextmanager
def opened(browser: Browser, service: Service) -> Iterator[Page]:
    with browser.new_context(viewport=SCREENS["desktop"], color_scheme="light") as context:
        page = context.new_page()
        page.goto(f"{service.url}/pool")
        headline(page, "room")
        yield page


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Page]:
    """Yield the page. In the end nothing may have been wrong with it, and nobody else been asked for anything."""
    wrong: list[str] = []
    asked: set[str] = set()
    with browser.new_context(viewport=SCREENS["desktop"], color_scheme="light") as context:
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda answer: wrong.append(f"{answer.status}: {answer.url}") if not answer.ok else None)
        page.on("request", lambda request: asked.add(request.url))
        page.goto(f"{service.url}/pool")
        headline(page, "room")
        yield page
    assert wrong == []
    assert {f"{service.url}/pool", f"{service.url}/pool/page.js"} <= asked
    assert [url for url in asked if not url.startswith(f"{service.url}/pool")] == []


def headline(page: Page, state: str) -> None:
    expect(page.locator("#headline")).to_have_attribute("data-state", state)


@contextmanager
def crowded(service: Service, database: TestDatabase) -> Iterator[int]:
    """Have every thread held up by a lock and a queue before each worker while the block runs; yield how many wait."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        with locked(database):
            asked: list[Future[httpx.Response]] = []

            def queues() -> bool:
                if len(asked) < CLIENTS:
                    asked.append(clients.submit(httpx.get, f"{service.url}/users/1", timeout=60))
                return all(worker["queue"]["waiting"] for worker in service.client.get("/pool").json()["workers"])

            until(queues, "each worker has a queue")
            yield len(asked) - THREADS
        assert {request.result().status_code for request in asked} == {404}


def total(page: Page, row: str) -> int:
    """Return what the numbers before the "/" in this row of all workers come to."""
    return sum(int(text.split("/")[0]) for text in page.locator(f".{row} .number > :last-child").all_inner_texts())


def width(page: Page, selector: str) -> float:
    """Return how wide all that `selector` finds is."""
    return sum(box["width"] for found in page.locator(selector).all() if (box := found.bounding_box()))


def test_it_draws_the_workers_the_last_minutes_and_the_budget(page: Page, service: Service) -> None:
    workers = service.client.get("/pool").json()["workers"]
    expect(page.locator("article .pid")).to_have_text([f"Worker {worker['pid']}" for worker in workers])
    for row in ("threads", "connections"):
        expect(page.locator(f"article:first-child .{row} .cells i")).to_have_count(THREADS // 2)
        expect(page.locator(f".{row} .cells i")).to_have_count(THREADS)
        expect(page.locator(f".{row} .cells :is(.taken, .shut)")).to_have_count(0)
    expect(page.locator("#sentence")).to_have_text("2 workers, 8 connections: 0 in use, nobody waits")
    expect(page.locator("#announcement")).to_contain_text("Has room")
    expected = {
        "Throughput": r"served \d+ now, [1-9]\d* at most; refused 0 now, 0 at most",
        "Latency": r"p50 .+ now, [\d.]+ (µs|ms|s) at most",
        "Queued": r"waiting 0 now, 0 at most",
        "Connection held": r"p99 .+ now, [\d.]+ (µs|ms|s) at most",
    }
    expect(page.locator("figure h3")).to_have_text(list(expected))
    with Load(service.url, clients=1):
        for title, words in expected.items():
            figure = page.locator("figure", has=page.get_by_role("heading", name=title))
            expect(figure.get_by_role("img")).to_have_accessible_name(re.compile(words))
            expect(figure.locator(".layers .line").last).to_have_attribute("d", re.compile(r"^M[\d.]+ [\d.]+"))
    expect(page.locator("#database-state")).to_have_text("up")
    budget = service.client.get("/pool").json()["budget"]
    for name in ("ours", "others", "reserved", "free"):
        expect(page.locator(f"#budget-legend .{name} b")).to_have_text(str(budget[name]))
    expect(page.locator("#budget-limit")).to_have_text(f"limit {budget['limit']}")
    share = budget["ours"] / budget["limit"]
    until(
        lambda: abs(width(page, "#budget-bar .ours") / width(page, "#budget-bar") - share) < 0.01,
        "our part of the bar is as long as our part of the limit",
    )


def test_it_moves_under_load_and_nothing_jumps(page: Page, service: Service, database: TestDatabase) -> None:
    before = page.evaluate(PLACES)
    with crowded(service, database) as waiting:
        headline(page, "full")
        until(lambda: total(page, "queue") == waiting, "the queue is seen")
        for row in ("threads", "connections"):
            expect(page.locator(f".{row} .cells .taken")).to_have_count(THREADS)
        until(lambda: width(page, ".queue .bar i") > 1, "its bar grows")
        expect(page.locator("#sentence")).to_have_text(re.compile(f"^8 of 8 connections in use, {waiting} waits?$"))
        rows = page.locator("#holders tbody tr")
        expect(rows.locator("td:first-child")).to_have_text(["GET /users/{user_id}"] * 6)
        expect(page.locator("#more-holders")).to_have_text("and 2 more")
        expect(rows.first.locator("td:last-child")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
        assert page.evaluate(PLACES) == before
        until(lambda: waiting in service.client.get("/pool").json()["history"]["queued"], "a second has gone by")
    headline(page, "room")
    expect(page.locator(".cells .taken")).to_have_count(0)
    until(lambda: total(page, "queue") == 0 and width(page, ".queue .bar i") < 1, "the queue drains")
    expect(rows).to_have_count(0)
    expect(page.locator("#more-holders")).to_have_text("Nobody holds a connection.")
    expect(page.get_by_role("img", name="Queued")).to_have_accessible_name(re.compile("waiting 0 now, [1-9]"))
    assert page.evaluate(PLACES) == before


def test_it_shows_a_database_that_stops_and_its_return(page: Page, service: Service, victim: Cluster) -> None:
    # Both workers must have clients: one that is asked for nothing notices nothing.
    expect(page.locator("#budget-legend .ours b")).to_have_text(str(THREADS))
    with Load(service.url, clients=16):
        victim.stop()
        headline(page, "down")
        expect(page.locator("#announcement")).to_contain_text("Database down: ")
        expect(page.locator("#database-state")).to_have_text("down")
        expect(page.locator("#trouble")).to_contain_text("connection")
        expect(page.locator("#budget-limit")).to_have_text("not known now")
        expect(page.locator(".connections .shut")).not_to_have_count(0)
        expect(page.locator("#problems")).to_contain_text("database-unavailable")
        victim.start()
    headline(page, "room")
    expect(page.locator("#database-state")).to_have_text("up")
    expect(page.locator("#trouble")).to_have_text("")
    expect(page.locator("#budget-legend .ours b")).to_have_text(str(THREADS))
    expect(page.locator(".connections .shut")).to_have_count(0)


@pytest.mark.parametrize("answer", [None, 401, 500])
def test_a_service_that_does_not_tell_is_seen_beside_the_last_picture(
    browser: Browser, service: Service, answer: int | None
) -> None:
    with opened(browser, service) as page:
        expect(page.locator("article")).to_have_count(2)
        page.route(
            "**/pool",
            lambda route: route.fulfill(status=answer, json={"title": "The title"}) if answer else route.abort(),
        )
        headline(page, "lost")
        said = f"the service answers {answer}, The title" if answer else "the service cannot be reached"
        expect(page.locator("#sentence")).to_have_text(re.compile(f"^{said}; the picture is [1-9] s old$"))
        assert page.locator("main").evaluate("node => getComputedStyle(node).filter") == "grayscale(1)"
        expect(page.locator("article")).to_have_count(2)
        page.unroute("**/pool")
        headline(page, "room")
        assert page.locator("main").evaluate("node => getComputedStyle(node).filter") == "none"


def test_a_page_that_is_hidden_asks_nothing(browser: Browser, service: Service) -> None:
    with opened(browser, service) as page:
        page.clock.install()
        page.reload()
        headline(page, "room")
        page.evaluate("""() => {
            window.asked = window.answered = 0;
            const ask = window.fetch;
            window.show = (shown) => {
                Object.defineProperty(document, 'hidden', { value: !shown, configurable: true });
                document.dispatchEvent(new Event('visibilitychange'));
                return true;
            };
            window.fetch = (...all) => {
                asked += 1;
                if (asked === 3) queueMicrotask(() => show(false));
                return ask(...all).finally(() => answered += 1);
            };
        }""")
        for hidden in ("asked === 3 && answered === 3", "asked > 5 && asked === answered && show(false)"):
            until(partial(page.evaluate, hidden), "it is hidden, under way or between two questions")
            asked = page.evaluate("asked")
            for _ in range(3):
                page.clock.fast_forward(60_000)
            assert page.evaluate("asked") == asked
            page.evaluate("show(true)")
        until(lambda: page.evaluate("asked") > asked + 2, "it asks again")


@pytest.mark.parametrize("size", [(512, 8), (2, 1000), (3, 128)], ids=str)
def test_large_pools_are_drawn_too_and_all_text_is_text(
    browser: Browser, service: Service, size: tuple[int, int]
) -> None:
    workers, threads = size
    with opened(browser, service) as page:
        pool: dict[str, Any] = service.client.get("/pool").json()
        worker = pool["workers"][0] | {
            "threads": {"size": threads, "busy": threads // 2},
            "connections": {"size": threads, "open": threads, "used": threads // 2},
        }
        pool["workers"] = [worker] * workers
        pool["holders"] = [{"worker": 1, "route": "<img src=x> & more", "seconds": 1.5}]
        page.route("**/pool", lambda route: route.fulfill(body=json.dumps(pool), content_type="application/json"))
        expect(page.locator("article")).to_have_count(workers)
        cells = workers * threads if workers * threads <= 2048 and threads <= 128 else 0
        expect(page.locator(".threads .cells i")).to_have_count(cells)
        expect(page.locator(".threads .bar i")).to_have_count(0 if cells else workers)
        expect(page.locator("#holders tbody td:first-child")).to_have_text("<img src=x> & more")
        for screen in SCREENS.values():
            page.set_viewport_size(screen)
            assert page.evaluate("document.documentElement.scrollWidth") == screen["width"]


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing(page: Page, service: Service, database: TestDatabase, theme: Theme) -> None:
    page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    with crowded(service, database):
        headline(page, "full")
        until(lambda: total(page, "queue"), "the queue is seen")
        finds_nothing(page)
    headline(page, "room")
    finds_nothing(page)
    database.cluster.stop()
    headline(page, "down")
    finds_nothing(page)


def finds_nothing(page: Page) -> None:
    for size in SCREENS.values():
        page.set_viewport_size(size)
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()
        looked_at = {found["id"] for found in results.response["passes"]}
        assert {"color-contrast", "region", "heading-order", "svg-img-alt"} <= looked_at


def test_whoever_uses_the_keyboard_sees_where_they_are(page: Page) -> None:
    focusable = page.evaluate(FOCUSABLE)
    assert focusable
    for text in focusable:
        page.keyboard.press("Tab")
        assert page.evaluate(FOCUSED) == [text, True]


def test_it_can_be_had_as_a_picture(page: Page, service: Service, database: TestDatabase, tmp_path: Path) -> None:
    """Written to the folder SCREENSHOTS when that is set, with two whole minutes in the plots."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    page.emulate_media(reduced_motion="reduce")  # no colour on its way to another
    with Load(service.url, clients=3):
        for points in (30, 60, 85, 115) if "SCREENSHOTS" in os.environ else (5,):
            until(partial(page.evaluate, f"{POINTS} > {points}"), "time goes by in the plots", within=60)
            with crowded(service, database):
                until(lambda: total(page, "queue"), "the queue is seen")
                take(page, folder)


def take(page: Page, folder: Path) -> None:
    for (screen, size), theme in product(SCREENS.items(), THEMES):
        page.set_viewport_size(size)
        page.emulate_media(color_scheme=theme)
        picture = folder / f"pool-{screen}-{theme}.png"
        page.screenshot(path=picture, full_page=True)
        assert picture.stat().st_size > 20_000
