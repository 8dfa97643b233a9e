"""The studio in a browser, as a person uses it: headless Chromium, real models, a wide screen and a phone's."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageFilter

from mssync.app.work import DEMO_PORTRAIT, DEMO_SPEECH
from mssync.audio import SAMPLE_RATE, load_audio
from mssync.video import probe

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium", allow_module_level=True)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = pytest.mark.slow
PATIENCE = 1000 * int(os.environ.get("MSSYNC_PATIENCE", "120"))  # ms for any one step: an idle machine needs 25 s
WIDE = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A real server."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mssync.cli", "serve", "--port", str(port)]
    server = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(folder)})
    for _ in range(PATIENCE // 500):
        try:
            urllib.request.urlopen(f"http://localhost:{port}/config").close()
            break
        except OSError:
            time.sleep(0.5)
    yield f"http://localhost:{port}/"
    server.terminate()
    server.wait(60)
    assert [str(path.relative_to(folder)) for path in folder.rglob("*")] == []


@pytest.fixture(scope="module")
def playwright():
    with sync_api.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright):
    started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield started
    started.close()


@pytest.fixture(params=[WIDE, PHONE], ids=["wide and light", "phone and dark"])
def page(request, browser, address):
    """The page, loaded; at the end: nothing was asked of others, nothing is wider than the screen, nothing failed."""
    context = browser.new_context(accept_downloads=True, **request.param)
    opened, asked, wrong = context.new_page(), [], []
    opened.set_default_timeout(PATIENCE)
    opened.on("request", lambda asking: asked.append(asking.url))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("response", lambda answer: answer.status in (404, 500) and wrong.append(f"{answer.status} {answer.url}"))
    opened.goto(address)
    opened.get_by_role("heading", name="MS-Sync").wait_for()
    yield opened
    assert opened.evaluate("document.documentElement.scrollWidth") <= opened.viewport_size["width"]
    context.close()
    assert not [url for url in asked if not url.startswith((address, "blob:", "data:"))]
    assert not wrong


def give(page, name: str, path: Path) -> None:
    page.locator(f"#{name} input[type=file]").first.set_input_files(path)


def says(page, text: str) -> None:
    expect(page.get_by_text(re.compile(text)).first).to_be_visible(timeout=PATIENCE)


def test_an_example_becomes_a_video(page, tmp_path):
    page.get_by_role("button", name="Use the example portrait and speech").click()
    page.locator("#animate-preview img").wait_for()
    page.get_by_role("button", name="Make the video").click()
    says(page, r"drawing, about \d+ (second|minute)s? left")
    page.locator("#animate-result video").wait_for()
    expect(page.get_by_label("About it").first).to_have_value(re.compile(r"10\.0 s of video, 249 frames\. Done after"))
    video = page.locator("#animate-result video")
    played = "video => video.play().then(() => new Promise(go => setTimeout(() => go(video.currentTime), 1500)))"
    assert video.evaluate(played) > 0
    with page.expect_download() as download:
        page.locator("#animate-result a[download], #animate-result [aria-label=Download]").first.click()
    assert download.value.suggested_filename == f"{DEMO_PORTRAIT.stem}-{DEMO_SPEECH.stem}.mp4"
    download.value.save_as(tmp_path / "got.mp4")
    found = probe(tmp_path / "got.mp4")
    assert (found.frames, found.generated) == (249, True)


def test_a_job_is_cancelled_and_another_one_made(page):
    page.get_by_role("button", name="Use the example portrait and speech").click()
    page.locator("#animate-preview img").wait_for()
    make = page.get_by_role("button", name="Make the video")
    cancel = page.get_by_role("button", name="Cancel", exact=True).first
    expect(cancel).to_be_disabled()
    make.click()
    says(page, "drawing")
    expect(make).to_be_disabled()
    cancel.click()
    expect(make).to_be_enabled()
    expect(page.get_by_text("drawing")).to_have_count(0)
    assert page.locator("#animate-result video").count() == 0


def test_after_a_job_that_fails_no_older_result_stands_there(page, tmp_path):
    with wave.open(str(tmp_path / "word.wav"), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes((load_audio(DEMO_SPEECH)[:SAMPLE_RATE] * 32767).astype("<i2").tobytes())
    (tmp_path / "notes.wav").write_text("a text file under another name")
    give(page, "animate-portrait", DEMO_PORTRAIT)
    give(page, "speech", tmp_path / "word.wav")
    page.locator("#animate-preview img").wait_for()
    page.get_by_role("button", name="Make the video").click()
    page.locator("#animate-result video").wait_for()
    page.locator("#speech").get_by_role("button", name="Clear").click()
    give(page, "speech", tmp_path / "notes.wav")
    page.get_by_role("button", name="Make the video").click()
    says(page, "is not a video or sound file")
    assert page.locator("#animate-result video").count() == 0
    expect(page.get_by_label("About it").first).to_have_value("")


def test_what_cannot_be_used_is_told_helpfully(page, tmp_path):
    height, width = 400, 600
    hills = 250 + 40 * np.sin(np.arange(width) / 60) + 15 * np.sin(np.arange(width) / 17)
    sky = np.linspace((90, 140, 220), (220, 230, 250), height)[:, None].repeat(width, 1)
    land = np.where(np.arange(height)[:, None, None] > hills[None, :, None], (60, 110, 50), sky).astype(np.uint8)
    Image.fromarray(land).filter(ImageFilter.GaussianBlur(1)).save(tmp_path / "landscape.jpg")
    (tmp_path / "notes.txt").write_text("a text file")
    (tmp_path / "notes.png").write_text("a text file under another name")
    with wave.open(str(tmp_path / "lecture.wav"), "wb") as file:
        file.setparams((1, 1, 2000, 0, "NONE", ""))
        file.writeframes(bytes([128]) * (3 * 3600 * 2000))

    page.get_by_role("button", name="Make the video").click()
    says(page, "Give a portrait first")
    give(page, "animate-portrait", tmp_path / "landscape.jpg")
    says(page, "no face found; use a picture that shows one face")
    page.reload()
    give(page, "animate-portrait", tmp_path / "notes.png")
    says(page, r"is not a picture that can be read \(jpg, png, webp")
    page.reload()
    give(page, "animate-portrait", tmp_path / "notes.txt")
    says(page, "[Ii]nvalid file type")
    give(page, "speech", tmp_path / "lecture.wav")
    says(page, "lasts 180 minutes; at most 5 are taken here")


def test_a_video_is_measured_and_mended(page, tmp_path):
    page.get_by_role("tab", name="Score").click()
    page.get_by_role("button", name="Use the example: a video whose sound is late").click()
    page.locator("#scored video").wait_for()
    page.get_by_role("button", name="Measure").click()
    verdict = page.get_by_label("Lips and sound")
    expect(verdict).to_have_value(re.compile(r"sound is late by (1[6-9]|2[0-3])\d ms"), timeout=PATIENCE)
    page.get_by_text("Offset over time").first.wait_for()
    page.get_by_role("button", name="Mend: move the sound into place").click()
    expect(verdict).to_have_value(re.compile("moved, picture and sound copied"), timeout=PATIENCE)
    with page.expect_download() as download:
        page.locator("#mended a[download], #mended [aria-label=Download]").first.click()
    assert download.value.suggested_filename == "late-mended.mp4"


def test_live_is_there(page):
    page.get_by_role("tab", name="Live").click()
    live = page.frame_locator("iframe")
    live.get_by_role("button", name="Start").wait_for()
    live.get_by_role("button", name="Start").click()
    live.get_by_text("Choose a portrait first.").wait_for()
    live.get_by_label(re.compile("Portrait")).set_input_files(DEMO_PORTRAIT)
    page.wait_for_timeout(1000)
    assert live.locator("#screen").evaluate(DRAWN) > 50  # the portrait, before it speaks
    for name in ("Start", "Stop"):
        box = live.get_by_role("button", name=name).bounding_box()
        assert box["y"] + box["height"] <= page.viewport_size["height"]
    inside, outside = live.locator("body").bounding_box(), page.locator("iframe").bounding_box()
    assert abs(inside["height"] - outside["height"]) < 2  # nothing of it is cut off, nothing empty is below it


DRAWN = "c => new Set(c.getContext('2d').getImageData(0, 0, 512, 512).data).size"


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """Chromium's flags for a camera before the example portrait, and a microphone that hears the example's speech."""
    folder = tmp_path_factory.mktemp("devices")
    portrait = Image.open(DEMO_PORTRAIT).convert("RGB").resize((480, 480))
    seen = Image.new("RGB", (640, 480), (120, 120, 120))
    seen.paste(portrait, (80, 0))
    planes = av.VideoFrame.from_image(seen).reformat(format="yuv420p").to_ndarray().tobytes()
    (folder / "camera.y4m").write_bytes(b"YUV4MPEG2 W640 H480 F10:1 Ip A1:1 C420jpeg\n" + 10 * (b"FRAME\n" + planes))
    with wave.open(str(folder / "microphone.wav"), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes((load_audio(DEMO_SPEECH) * 32767).clip(-32768, 32767).astype("<i2").tobytes())
    return [
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={folder / 'camera.y4m'}",
        f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}",
    ]


@pytest.fixture
def equipped(playwright, devices, address):
    """The page in a browser with camera and microphone."""
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS + devices)
    opened = browser.new_context(permissions=["camera", "microphone"], **WIDE).new_page()
    opened.set_default_timeout(PATIENCE)
    opened.goto(address)
    opened.get_by_role("heading", name="MS-Sync").wait_for()
    yield opened
    browser.close()


def test_camera_and_microphone_become_a_video(equipped):
    portrait, speech = equipped.locator("#animate-portrait"), equipped.locator("#speech")
    portrait.get_by_role("button", name="Capture from camera").click()
    portrait.get_by_role("button", name="Click to Access Webcam").click()
    take = portrait.get_by_role("button", name="capture photo")
    take.wait_for()
    equipped.wait_for_timeout(2000)  # a camera's first pictures may be dark
    take.click()
    equipped.locator("#animate-preview img").wait_for()
    speech.get_by_role("button", name="Record audio").click()
    speech.get_by_role("button", name="Record", exact=True).click()
    equipped.wait_for_timeout(3000)
    speech.get_by_role("button", name="Stop", exact=True).first.click()
    speech.get_by_role("button", name="Play", exact=True).wait_for()
    equipped.get_by_role("button", name="Make the video").click()
    equipped.locator("#animate-result video").wait_for()
    expect(equipped.get_by_label("About it").first).to_have_value(re.compile(r"[2-4]\.\d s of video, \d+ frames"))


def test_live_answers_a_microphone(equipped, tmp_path):
    equipped.get_by_role("tab", name="Live").click()
    live = equipped.frame_locator("iframe")
    live.get_by_label(re.compile("Portrait")).set_input_files(DEMO_PORTRAIT)
    live.get_by_role("button", name="Start").click()
    expect(live.locator("#rate")).to_have_text(re.compile(r"^\d+"), timeout=PATIENCE)
    equipped.wait_for_timeout(4000)
    assert float(live.locator("#rate").inner_text().split()[0]) > 1
    assert re.search(r"\d", live.locator("#delay").inner_text())
    assert live.locator("#screen").evaluate(DRAWN) > 50
    live.get_by_role("button", name="Stop").click()
    expect(live.get_by_role("button", name="Start")).to_be_enabled()


def test_live_catches_up_after_a_hiccup_of_the_network(equipped):
    """For half a second nothing comes through: the delay grows by it, and is what it was some seconds later."""
    held: list = []

    def between(socket) -> None:
        server = socket.connect_to_server()
        server.on_message(lambda message: held.append(message) if hiccup else socket.send(message))
        sockets.append(socket)

    sockets, hiccup = [], False
    equipped.route_web_socket(re.compile("/live/ws"), between)
    equipped.goto(f"{equipped.url}live/")
    equipped.get_by_label(re.compile("Portrait")).set_input_files(DEMO_PORTRAIT)
    equipped.get_by_role("button", name="Start").click()
    expect(equipped.locator("#delay")).to_have_text(re.compile(r"\d+ ms"), timeout=PATIENCE)

    def delay() -> int:
        return int(equipped.locator("#delay").inner_text().split()[0])

    equipped.wait_for_timeout(7000)  # the first frames are slower than those that follow
    before, hiccup = delay(), True
    equipped.wait_for_timeout(600)
    hiccup = False
    for message in held:
        sockets[0].send(message)
    equipped.wait_for_timeout(300)
    after = delay()
    assert after > before + 250
    equipped.wait_for_timeout(12000)
    assert delay() < before + (after - before) / 2
    equipped.get_by_role("button", name="Stop").click()


def test_with_the_keyboard_alone(page):
    def reach(name: str) -> None:
        page.get_by_role("button", name=name).first.wait_for()  # the page grows for a while after its heading is there
        # At first the whole page has the focus, whose text holds every name.
        focused = "((e) => e === document.body ? '' : e.innerText || e.ariaLabel || '')(document.activeElement)"
        for _ in range(60):
            if name in page.evaluate(focused):
                return
            page.keyboard.press("Tab")
        pytest.fail(f"{name} is not reached")

    reach("Use the example portrait and speech")
    page.keyboard.press("Enter")
    page.locator("#animate-preview img").wait_for()
    reach("Make the video")
    page.keyboard.press("Enter")
    says(page, "drawing")
    reach("Cancel")
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Make the video")).to_be_enabled()
