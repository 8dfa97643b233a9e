"""The studio's jobs and its API, with small stand-ins for the models."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeGenerator, FakeMesh, FakeReenactor, speech
from PIL import Image

pytest.importorskip("starlette")
import quickwork
from starlette.testclient import TestClient
from test_app import live_talker

from mssync.animate import Pipeline
from mssync.app import jobs, limits, overlay, place, work
from mssync.errors import InputError
from mssync.video import VideoReader, probe

# ---- the jobs


@pytest.fixture
def tools():
    made = work.Tools("compact", "cpu", "auto")
    made.talker = Pipeline(FakeReenactor(), FakeGenerator(), face_mesh=FakeMesh())
    return made


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.random.default_rng(1).integers(1, 255, (301, 400, 3), np.uint8)).save(tmp_path / "me.png")
    return str(tmp_path / "me.png")


OPTIONS = {"paste_back": False, "badge": False, "motion": False}
ANIMATE = {"head_motion": 1, "expression": 1, "smooth": 0, "seed": 0}


def test_animate(tools, picture, make_sound, tmp_path):
    sound = str(make_sound("say.wav", speech(0.8), 16000))
    told_so: list = []

    def made(**options) -> np.ndarray:
        answer = work.animate(
            tools,
            tmp_path,
            lambda *what: told_so.append(what),
            picture=picture,
            speech=sound,
            **ANIMATE,
            **OPTIONS | options,
        )
        assert answer["says"] == "0.8 s of video, 20 frames"
        assert probe(answer["video"]).generated
        assert Path(answer["video"]).name == "me-say.mp4"
        return next(iter(VideoReader(answer["video"])))

    plain, drawn, badged = made(), made(motion=True), made(badge=True)
    assert plain.shape == (512, 512, 3)
    assert np.abs(plain.astype(int) - drawn).mean() > np.abs(plain.astype(int) - badged).mean() > 0.1
    assert made(paste_back=True, motion=True).shape == (302, 400, 3)
    assert told_so[0] == (0, 0, "listening")
    assert told_so[20] == (19, 20, "drawing")


def test_reenact(tools, picture, film, tmp_path):
    answer = work.reenact(
        tools, tmp_path, lambda *_: None, picture=picture, video=str(film(tmp_path / "drive.mp4", 0.4)),
        absolute=False, best_frame=True, **OPTIONS,
    )  # fmt: skip
    assert probe(answer["video"]).frames == 10
    assert Path(answer["video"]).name == "me-drive.mp4"


def test_what_visitors_may_not_send(picture, make_sound, film, tmp_path, monkeypatch):
    sound = str(make_sound("say.wav", speech(3), 16000))
    monkeypatch.setattr(limits, "MAX_SECONDS", 2.0)
    monkeypatch.setattr(limits, "MAX_PIXELS", 100_000)
    monkeypatch.setattr(limits, "MAX_FRAME", 100_000)
    (tmp_path / "notes.txt").write_text("hello")
    for check, path, expected in [
        (limits.check_length, sound, "lasts 0 minutes; at most 0 are taken here"),
        (limits.check_length, picture, "is a picture; give a recording"),
        (limits.check_length, str(film(tmp_path / "a.mp4", 0.2)), "320x320"),
        (check_picture, picture, "400x301 pixels; scale it"),
        (check_picture, sound, "is not a picture"),
        (check_picture, str(tmp_path / "notes.txt"), "is not a picture"),
    ]:
        with pytest.raises(InputError, match=expected):
            check(path)
    monkeypatch.setattr(limits, "MAX_PIXELS", 10**9)
    monkeypatch.setattr(limits, "MAX_PICTURE_BYTES", 300_000)
    with pytest.raises(InputError, match="0 MB; a picture may have"):
        check_picture(picture)


def test_the_pixels_of_a_refused_picture_go_at_once(picture):
    """Also while the error is still about: they would add up to gigabytes."""
    seen: list[weakref.ref] = []

    def look(pixels: np.ndarray) -> None:
        seen.append(weakref.ref(pixels))
        raise InputError("no face")

    with pytest.raises(InputError, match="no face") as caught:
        asyncio.run(limits.with_picture(Path(picture), "me.png", look))
    assert caught.value is not None
    assert seen[0]() is None


def check_picture(path: str) -> None:
    limits.check_picture(Path(path), path)


def test_a_preview_shows_the_crop_bright_and_the_keypoints(tools, picture):
    pixels = np.asarray(Image.open(picture))
    shown = overlay.preview(tools.talker, pixels)
    assert shown.shape == (overlay.PREVIEW, overlay.PREVIEW, 3)
    assert shown[100, 280].mean() > 1.5 * shown[:60].mean()
    assert (shown == overlay.KEYPOINT).all(-1).sum() > 50
    with pytest.raises(InputError, match="no face found"):
        overlay.preview(tools.talker, np.zeros_like(pixels))


# ---- the page's API, with Gradio


@pytest.fixture
def studio(tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    from mssync.app import studio as module

    monkeypatch.setattr(place.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(jobs, "serve", quickwork.serve)
    with TestClient(module.create_studio(live_talker()), base_url="http://localhost") as client:
        yield client
    assert not list(tmp_path.glob("mssync-studio-*"))


def call(studio, name: str, **arguments) -> tuple[str, str]:
    """Event and data that end a call of the API."""
    event = studio.post(f"/gradio_api/call/v2/{name}", json=arguments).json()["event_id"]
    said = [part for part in studio.get(f"/gradio_api/call/v2/{name}/{event}").text.split("\n\n") if part]
    kind, content = said[-1].split("\n")
    return kind.removeprefix("event: "), content.removeprefix("data: ")


def test_a_job_over_the_api(studio, tmp_path):
    picture, sound = (
        studio.post("/gradio_api/upload", files={"files": (name, b"face")}).json()[0] for name in ("a.png", "b.wav")
    )
    kind, content = call(studio, "animate", picture={"path": picture}, speech={"path": sound}, head_motion=0.5)
    assert kind == "complete", content
    assert "copied. Done after" in content
    assert str(tmp_path) not in content
    video = content.split('"path": "')[1].split('"')[0]
    assert studio.get(f"/gradio_api/file={video}").content == b"face"
    kind, content = call(studio, "animate", picture={"path": picture}, speech={"path": "/files/gone/b.wav"})
    assert kind == "error"
    assert "upload it again" in content


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"picture": 5}, "wrong arguments for /animate: Input should be a valid dictionary"),
        ({"picture": {"path": 3}}, "wrong arguments for /animate: path Input should be a valid string"),
        ({"head_motion": "much"}, "head_motion must be a number, not 'much'"),
        ({"head_motion": 9}, "head motion must be between 0 and 2, got 9"),
        ({"seed": None}, "seed must be a whole number, not None"),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"smooth": True}, "smooth must be a number, not True"),
        ({"badge": "yes"}, "badge must be true or false, not 'yes'"),
    ],
)
def test_wrong_arguments_are_answered_in_a_line(studio, caplog, capfd, arguments, expected):
    files = {
        name: {"path": studio.post("/gradio_api/upload", files={"files": ("a.png", b"face")}).json()[0]}
        for name in ("picture", "speech")
    }
    kind, content = call(studio, "animate", **files | arguments)
    assert kind == "error"
    assert json.loads(content)["error"].startswith(expected)
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("call/v2/animate", {"nonsense": 1}, "Parameter `nonsense` is not a valid"),
        ("call/v2/animate", {}, "No value provided for required argument: picture"),
        ("call/v2/nonsense", {}, "there is no /nonsense"),
        ("queue/join", {"data": [], "fn_index": 999, "session_hash": "x"}, "there is no 999"),
    ],
)
def test_wrong_requests_are_answered_in_a_line(studio, caplog, capfd, path, body, expected):
    answer = studio.post(f"/gradio_api/{path}", json=body)
    assert (answer.status_code, answer.json()["error"].startswith(f"wrong request: {expected}")) == (400, True)
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())


def test_what_breaks_in_a_call_is_no_null(studio, monkeypatch, caplog):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(place.Place, "new", full)
    kind, content = call(studio, "score", video=None)
    assert (kind, json.loads(content)["error"]) == ("error", "Give a video first.")
    monkeypatch.setattr(place.Place, "given", full)
    kind, content = call(studio, "score", video={"path": "/files/a/b.mp4"})
    assert (kind, "this server's disk is full" in json.loads(content)["error"]) == ("error", True)


def test_the_schema_names_the_endpoints_and_their_arguments(studio):
    ends = studio.get("/gradio_api/info").json()["named_endpoints"]
    assert sorted(ends) == ["/animate", "/mend", "/reenact", "/score"]
    names = [one["parameter_name"] for one in ends["/animate"]["parameters"]]
    assert names[:3] == ["picture", "speech", "head_motion"]
    assert "/gradio_api/call/animate" in str(studio.get("/gradio_api/openapi.json").json()["paths"].keys())


def test_the_page_asks_nobody_else_for_anything(studio, tmp_path):
    page = studio.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert studio.get("/live/").status_code == 200
    for text in (page.text, studio.get("/config").text):
        assert str(tmp_path) not in text
        assert os.getcwd() not in text
        assert "site-packages" not in text
