"""The page of `--serve` in a real browser: what it shows, and what pointer and keys do."""

import re
import urllib.parse

import pytest

from stream_rpn.drawing import DrawSpec
from stream_rpn.frame import StreamInfo
from stream_rpn.sinks import SinkOptions, make_header
from stream_rpn.sinks.web.sink import WebSink
from tests.browser import browser, wait_for
from tests.served import BOX, COLOR, HEIGHT, STATUS, WIDTH, Camera, address, proposals

SIZES = {"phone": (390, 844), "tablet": (900, 700), "desk": (1440, 900)}


@pytest.fixture(scope="module")
def opened():
    with browser() as one:
        yield one


@pytest.fixture
def look(opened):
    """Opens an address as (width, height) of a theme, and fails the test on errors there."""
    tabs, errors = [], []

    def open_(url, size="desk", theme="light"):
        width, height = SIZES[size]
        tab = opened.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda said: said.type == "error" and errors.append(said.text))
        tab.set_default_timeout(30_000)
        tab.goto(url)
        tabs.append(tab)
        return tab

    yield open_
    for tab in tabs:
        tab.close()
    # The browser's own word for a server that has gone, as it does at the end of a test.
    assert [error for error in errors if "net::ERR_CONNECTION_" not in error] == []


def pixel(tab, x, y):
    """The colour at a point of the frame in the picture that is shown alone."""
    return tab.evaluate(
        "([x, y]) => { const { left, top, wide } = big.fit, scale = wide / big.result.width;"
        "return [...big.canvas.getContext('2d').getImageData(left + x * scale, top + y * scale,"
        "1, 1).data].slice(0, 3); }",
        [x, y],
    )


def on_screen(tab, x, y):
    """Where a point of the frame lies in the window."""
    return tab.evaluate(
        "([x, y]) => { const { left, top, wide, dense } = big.fit;"
        "const scale = wide / big.result.width, at = big.canvas.getBoundingClientRect();"
        "return [at.left + (left + x * scale) / dense, at.top + (top + y * scale) / dense]; }",
        [x, y],
    )


def slide(tab, name, value):
    tab.evaluate(
        f"part('{name}').value = {value}; part('{name}').dispatchEvent(new Event('input'))"
    )


def drawn(tab, number):
    wait_for(tab, f"part('picture').dataset.boxes == {number}")


def test_the_page_begins_with_what_was_asked_to_be_drawn(look):
    with Camera(draw=DrawSpec(top=7, score=0.5)) as camera:
        tab = look(camera.url)
        drawn(tab, 2)  # of scores 0.9, 0.6 and 0.3
        assert [tab.inner_text(f"#{name}-value") for name in ("top", "score")] == ["7", "0.50"]
        slide(tab, "score", 0)
        drawn(tab, 3)


class TestOneSource:
    def test_boxes_over_the_moving_picture(self, look):
        with Camera() as camera:
            tab = look(camera.url)
            wait_for(tab, "part('picture').dataset.frame > 5")
            assert tab.evaluate("[big.image.width, big.image.height]") == [WIDTH, HEIGHT]
            assert not tab.locator("#back").is_visible()
            slide(tab, "top", 1)
            # The best box is hot, on a gray ground; inside it is the picture.
            red, green, blue = pixel(tab, BOX[0], (BOX[1] + BOX[3]) / 2)
            assert red > 180
            assert blue < 120
            assert max(abs(v - (90 - 16) * 255 / 219) for v in pixel(tab, 200, 100)) < 4
            # The picture moves, and is that of the boxes' frame.
            first = tab.evaluate("big.result.frame")
            wait_for(tab, f"big.result.frame > {first + 10}")
            tab.keyboard.press("Space")
            assert min(pixel(tab, tab.evaluate("8 * big.result.frame % 304 + 8"), 5)) > 200
            slide(tab, "top", 20)
            drawn(tab, 3)
            # Of boxes that lie one over the other the best is shown.
            assert tab.evaluate("""() => {
                const boxes = big.result.boxes, apart = boxes[1];
                boxes[1] = boxes[0].map(side => side + 2);
                const shown = big.chosen().map(each => each.rank);
                boxes[1] = apart;
                return shown;
            }""") == [0, 2]
            slide(tab, "score", 0.5)
            drawn(tab, 2)
            slide(tab, "top", 0)
            drawn(tab, 0)
            red, green, _ = pixel(tab, BOX[0], (BOX[1] + BOX[3]) / 2)
            assert abs(red - green) < 10
            words = tab.inner_text("aside")
        for told in (
            r"stale\s+3",
            "h264 \\(software\\)",
            r"Age, median\s+40 ms",
            r"decode\s+1.0 · 2.0",
        ):
            assert re.search(told, words), told

    def test_what_is_under_the_pointer_tells_what_it_is(self, look):
        with Camera() as camera:
            tab = look(camera.url)
            wait_for(tab, "part('picture').dataset.frame > 1")
            tab.mouse.move(*on_screen(tab, 160, 180))
            tab.wait_for_selector("#tip:visible")
            assert tab.inner_text("#tip") == "score 0.90 · 192 × 144 px · 1. best"
            tab.mouse.move(*on_screen(tab, 310, 230))
            tab.wait_for_selector("#tip", state="hidden")
            # With keys alone: the next best box, with its number where objects are followed.
            tab.focus("#picture")
            tab.keyboard.press("ArrowDown")
            tab.keyboard.press("ArrowDown")
            assert "2. best" in tab.inner_text("#tip")
            tab.evaluate("big.result.track_ids = [7, -1, 12]; pause(true); point(1)")
            assert "id 12" in tab.inner_text("#tip")
            tab.keyboard.press("Escape")
            assert not tab.is_visible("#tip")

    def test_pause_save_and_full_screen(self, look):
        with Camera() as camera:
            tab = look(camera.url)
            wait_for(tab, "part('picture').dataset.frame > 1")
            tab.keyboard.press("Space")
            assert tab.get_attribute("#pause", "aria-pressed") == "true"
            number = tab.evaluate("big.result.frame")
            with tab.expect_download() as saved:
                tab.keyboard.press("s")
            assert saved.value.suggested_filename == f"camera-frame-{number}.png"
            assert saved.value.path().read_bytes().startswith(b"\x89PNG")
            assert tab.evaluate("big.result.frame") == number
            tab.click("#pause")
            wait_for(tab, f"big.result.frame > {number}")
            tab.keyboard.press("f")
            wait_for(tab, "document.fullscreenElement === part('stage')")

    def test_a_server_that_goes_and_comes_back(self, look):
        with Camera() as camera:
            place = "{}:{}".format(*address(camera.url))
            tab = look(camera.url)
            wait_for(tab, "part('picture').dataset.frame > 1")
            assert tab.inner_text("#connection") == "running"
        wait_for(tab, "part('connection').textContent.startsWith('not connected')")
        with Camera(place, first=10_000):
            wait_for(tab, "part('picture').dataset.frame > 10000")
            assert tab.inner_text("#connection") == "running"

    def test_the_end_is_told_with_its_count(self, look):
        sink = WebSink("serve:127.0.0.1:0", SinkOptions(names={"a.mp4": "a"})).open()
        info = StreamInfo("a.mp4", "a", WIDTH, HEIGHT, color=COLOR)
        sink.watch(lambda: {**STATUS, "source": "a.mp4"})
        tab = look(sink.url)
        wait_for(tab, "part('connection').textContent == 'waiting'")
        sink.begin(make_header(info, model="tiny"), info)
        for number in range(320):
            sink.write(proposals(number, "a.mp4"))
        sink.end({"frames": 320})
        sink.close()
        tab.wait_for_selector("#again:visible")
        assert tab.inner_text("#connection") == "finished: 320 results"
        assert not tab.evaluate("document.body.classList.contains('away')")


class TestManySources:
    NAMES = ("door", "<b>yard", "street")

    def test_a_click_to_one_and_keys_to_the_others_and_back(self, look):
        with Camera(token="s&cret tok?", sources=self.NAMES) as camera:
            tab = look(camera.url)
            wait_for(tab, "document.querySelectorAll('.card canvas[data-frame]').length == 3")
            assert tab.locator(".card b").all_inner_texts() == list(self.NAMES)
            assert tab.inner_text("#connection") == "3 running"
            tab.click(".card >> nth=1")
            wait_for(tab, "big.result?.source == '<b>yard' && big.image.width == 320")
            assert tab.title() == "<b>yard · stream-rpn"
            tab.keyboard.press("ArrowRight")
            wait_for(tab, "big.result?.source == 'street'")
            tab.keyboard.press("Escape")
            tab.wait_for_selector("#grid:visible")
            # By keys alone, too; and the browser's own way back.
            tab.focus(".card >> nth=0")
            tab.keyboard.press("Enter")
            wait_for(tab, "big.result?.source == 'door'")
            tab.go_back()
            tab.wait_for_selector("#grid:visible")

    def test_each_tells_what_has_become_of_it(self, look):
        with Camera(sources=self.NAMES) as camera:
            camera.silent.add("street")
            camera.sink.end({"frames": 1, "source": "street", "stopped": "failed"})
            camera.status["door"]["reconnecting_seconds"] = 95.0
            tab = look(camera.url)
            tab.wait_for_selector(".card[data-state=reconnecting]")
            said = tab.locator(".card .state").all_inner_texts()
            counts = tab.inner_text("#connection")
        assert said[:2] == ["reconnecting for 2 min", "running"]
        assert said[2].startswith("failed")
        assert counts == "1 reconnecting · 1 running · 1 failed"

    @pytest.mark.parametrize("theme", ["light", "dark"])
    @pytest.mark.parametrize("size", list(SIZES))
    def test_it_fits_every_screen_in_both_themes(self, look, size, theme):
        with Camera(sources=self.NAMES) as camera:
            tab = look(camera.url, size, theme)
            tab.wait_for_selector(".card canvas[data-frame]")
            for view in ("#/", "#/door"):
                tab.evaluate(f"location.hash = '{view}'")
                tab.wait_for_selector("#grid:visible" if view == "#/" else "#stage:visible")
                wide, high = tab.evaluate(
                    "[document.documentElement.scrollWidth - innerWidth,"
                    "document.documentElement.scrollHeight - innerHeight]"
                )
                assert wide <= 0
                assert high <= 0 or size == "phone"
            dark = "rgb(16, 18, 20)"
            ground = "getComputedStyle(document.body).backgroundColor"
            assert (tab.evaluate(ground) == dark) == (theme == "dark")
            # Chosen, it stays so.
            tab.select_option("#theme", "light" if theme == "dark" else "dark")
            tab.reload()
            assert (tab.evaluate(ground) == dark) == (theme == "light")

    def test_addresses_to_copy_work_elsewhere(self, look, opened):
        with Camera(token="s&cret tok?", sources=self.NAMES) as camera:
            tab = look(camera.url + "#/" + urllib.parse.quote("<b>yard"))
            tab.wait_for_selector("aside .address input")
            urls = tab.eval_on_selector_all("aside .address input", "all => all.map(e => e.value)")
            tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
            tab.click("[aria-label='Copy Moving picture, MJPEG']")
            tab.wait_for_selector("text=Copied")
            assert tab.evaluate("navigator.clipboard.readText()") == urls[1]
            # A page of another site shows them as plain pictures, as a dashboard does.
            other = opened.new_page()
            other.set_content(f'<img id="still" src="{urls[0]}"><img id="moving" src="{urls[1]}">')
            for name in ("still", "moving"):
                wait_for(other, f"document.getElementById('{name}').naturalWidth == {WIDTH}")
            other.close()
        paths = [urllib.parse.urlsplit(url).path for url in urls]
        assert paths == [
            "/frame/%3Cb%3Eyard.jpg",
            "/mjpeg/%3Cb%3Eyard",
            "/results",
            "/metrics",
            "/healthz",
        ]
