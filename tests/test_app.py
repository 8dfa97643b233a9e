"""The live server: protocol, limits, tokens, slow clients, several sessions."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeGenerator, FakeMesh, FakeReenactor, speech
from newcomer import blocks
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from mssync.animate import Pipeline
from mssync.app import limits, server
from mssync.app.engine import TURN_FRAMES, Engine, Speaker, drawn
from mssync.app.server import HEADER, create_app
from mssync.app.work import DEMO_PORTRAIT
from mssync.config import GeneratorConfig
from mssync.cores import Cores
from mssync.errors import InputError
from mssync.generator import Generator
from mssync.speech import SpeechEncoder

SMALL = GeneratorConfig(
    layers=1, heads=2, width=16, feed_forward=24, context=6, audio_width=12, branch_hidden=10, hears="speech"
)


def live_talker() -> Pipeline:
    torch.manual_seed(0)
    generator, ears = Generator(SMALL), SpeechEncoder(width=32, expansion=1)
    for network in (generator, ears):
        network.eval().requires_grad_(False)
    return Pipeline(FakeReenactor(), generator, ears=ears, live=True, face_mesh=FakeMesh())


@pytest.fixture
def talker() -> Pipeline:
    return live_talker()


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(1, 255, (301, 400, 3), np.uint8)


def client(app) -> TestClient:
    return TestClient(app, base_url="http://localhost")


def sound(seconds: float) -> bytes:
    return (speech(seconds) * 32767).astype("<i2").tobytes()


def play(socket, seconds: float = 1.0, start: dict | None = None, portrait: bytes | None = None) -> tuple[list, dict]:
    """Speak; returns frames [(index, seconds, JPEG)] and the last message."""
    socket.send_json({"type": "start", **(start or {})})
    if portrait is not None:
        socket.send_bytes(portrait)
    assert socket.receive_json()["type"] == "ready"
    blocks = sound(seconds)
    for begin in range(0, len(blocks), 1280):
        socket.send_bytes(blocks[begin : begin + 1280])
    socket.send_json({"type": "end"})
    frames = []
    while "bytes" in (message := socket.receive()) and message["bytes"]:
        index, at = HEADER.unpack_from(message["bytes"])
        frames.append((index, at, message["bytes"][HEADER.size :]))
        socket.send_json({"type": "seen", "index": index})
    return frames, json.loads(message["text"])


def test_a_session_from_sound_to_frames(talker, picture) -> None:
    app = create_app(talker, picture, size=384)
    with client(app) as here, here.websocket_connect("ws://localhost/ws") as socket:
        frames, last = play(socket)
    assert last == {"type": "end", "frames": 25}
    indices = [index for index, _, _ in frames]
    assert indices == sorted(set(indices))
    assert indices[-1] == 24
    for index, at, coded in frames:
        assert at == index / 25
        assert Image.open(io.BytesIO(coded)).size == (384, 384)


@pytest.mark.parametrize(("share", "size"), [(0.0, 384), (100.0, 512)])
def test_frames_are_as_large_as_the_machine_can_draw_them(talker, picture, monkeypatch, share, size) -> None:
    monkeypatch.setattr(server, "SHARE", share)
    assert server.quick_size(talker, talker.portrait(picture)) == size


def test_a_client_brings_its_portrait(talker, picture) -> None:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    with client(create_app(talker)) as here, here.websocket_connect("ws://localhost/ws") as socket:
        assert play(socket, 0.4, {"portrait": True, "head_motion": 0.5}, file.getvalue())[1]["frames"] == 10


def refusal(app, *messages: str | bytes, path: str = "ws://localhost/ws", **options) -> str:
    """What the server says before it closes."""
    with client(app) as here, here.websocket_connect(path, **options) as socket:
        for message in messages:
            (socket.send_bytes if isinstance(message, bytes) else socket.send_text)(message)
        while (said := socket.receive_json())["type"] != "error":
            pass
        with pytest.raises(WebSocketDisconnect):
            socket.receive_json()
    return said["message"]


START = '{"type": "start"}'


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (["nonsense"], "JSON object"),
        (["[1]"], "JSON object"),
        (['{"type": "' + "x" * 2000 + '"}'], "at most 1000"),
        ([b"\0\0"], "JSON object"),
        (['{"type": "go"}'], "first message must be"),
        (['{"type": "start", "portrait": true}', b"no picture"], "the picture is not a picture"),
        (['{"type": "start", "portrait": true}', START], "picture file"),
        (['{"type": "start", "head_motion": 7}'], "head motion must be between"),
        (['{"type": "start", "head_motion": "x"}'], "must be numbers"),
        ([START, b"\0\0\0"], "16-bit samples"),
        ([START, bytes(40000)], "at most 32000 bytes"),
    ],
)
def test_messages_of_no_use(talker, picture, messages, expected) -> None:
    assert expected in refusal(create_app(talker, picture), *messages)


def test_no_portrait_anywhere(talker) -> None:
    assert "send a picture" in refusal(create_app(talker), START)


def test_more_sessions_than_allowed(talker, picture) -> None:
    app = create_app(talker, picture, sessions=1)
    with client(app) as here:
        with here.websocket_connect("ws://localhost/ws") as first:
            first.send_text(START)
            assert first.receive_json()["type"] == "ready"
            with here.websocket_connect("ws://localhost/ws") as second:
                assert "all 1 sessions are taken; try again in" in second.receive_json()["message"]
            assert here.get("/status").json() == {"sessions": 1, "limit": 1, "portrait": True}
        with here.websocket_connect("ws://localhost/ws") as third:  # the place is free again
            assert play(third, 0.4)[1]["frames"] == 10


def huge(side: int = 13000) -> bytes:
    """A small file that claims many pixels: one bit each, all black."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


def test_a_picture_that_is_too_large_is_refused_by_its_header(talker, monkeypatch) -> None:
    bomb, small = huge(), huge(64)
    Image.init()  # plugins that are imported for the first time may load pictures of their own
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it is decoded"))
    said = refusal(create_app(talker), '{"type": "start", "portrait": true}', bomb)
    assert said == "the picture has 13000x13000 pixels; scale it to 50,000,000 in all or less"
    monkeypatch.setattr(limits, "MAX_PICTURE_BYTES", 10)
    assert "0 MB; a picture may have" in refusal(create_app(talker), '{"type": "start", "portrait": true}', small)


def test_who_speaks_does_not_wait_for_pictures_of_others(talker, picture, monkeypatch) -> None:
    """While a picture is looked at, another session says all that it has to say."""
    seen, begun = threading.Event(), threading.Event()

    def slowly(*arguments) -> None:
        begun.set()
        assert seen.wait(30)

    monkeypatch.setattr(limits, "check_picture", slowly)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    with client(create_app(talker, picture)) as here, here.websocket_connect("ws://localhost/ws") as other:
        other.send_json({"type": "start", "portrait": True})
        other.send_bytes(file.getvalue())
        assert begun.wait(30)
        with here.websocket_connect("ws://localhost/ws") as socket:
            assert play(socket)[1] == {"type": "end", "frames": 25}
        seen.set()
        assert other.receive_json()["type"] == "ready"


def test_the_portrait_is_there_before_it_speaks(talker, picture) -> None:
    with client(create_app(talker, picture)) as here:
        assert Image.open(io.BytesIO(here.get("/portrait.jpg").content)).size == (512, 512)
    with client(create_app(talker)) as here:
        assert here.get("/portrait.jpg").status_code == 404
    with client(create_app(talker, picture, token="secret")) as here:
        assert here.get("/portrait.jpg").status_code == 403


# ---- whose place it is


class Visits:
    """Sessions of visitors with addresses, as behind a proxy."""

    def __init__(self, app) -> None:
        self.client = client(ProxyHeadersMiddleware(app, trusted_hosts="*"))

    def open(self, address: str):
        return self.client.websocket_connect("ws://localhost/ws", headers={"x-forwarded-for": address})


def begin(socket) -> str:
    socket.send_text(START)
    said = socket.receive_json()
    return said.get("message", said["type"])


def test_who_holds_all_live_places_gives_one_to_a_newcomer(talker, picture, caplog) -> None:
    visits = Visits(create_app(talker, picture, sessions=3))
    with visits.client, ExitStack() as all_of_them:
        held = [all_of_them.enter_context(visits.open("10.0.0.1")) for _ in range(3)]
        assert [begin(socket) for socket in held] == ["ready"] * 3
        with visits.open("10.0.0.1") as more:
            assert begin(more).startswith("all 3 sessions are taken; try again in 5 minutes")
        newcomer = all_of_them.enter_context(visits.open("10.0.0.2"))
        assert begin(newcomer) == "ready"
        assert "you had more than one session" in held[0].receive_json()["message"]
        with pytest.raises(WebSocketDisconnect):
            held[0].receive_json()
        assert visits.client.get("/status").json()["sessions"] == 3
        third = all_of_them.enter_context(visits.open("10.0.0.3"))
        assert begin(third) == "ready"
        with visits.open("10.0.0.4") as fourth:  # everybody has one
            assert "are taken" in begin(fourth)
        assert play_on(newcomer) == 10  # who stays is not disturbed
    assert "never retrieved" not in caplog.text


def play_on(socket) -> int:
    """Speak in a session that is ready; returns the number of frames that it had."""
    socket.send_bytes(sound(0.4))
    socket.send_json({"type": "end"})
    while "bytes" in (message := socket.receive()) and message["bytes"]:
        socket.send_json({"type": "seen"})
    return json.loads(message["text"])["frames"]


def test_a_session_that_has_lasted_gives_way_where_somebody_waits(talker, picture, monkeypatch) -> None:
    visits = Visits(create_app(talker, picture, sessions=1))
    with visits.client, visits.open("10.0.0.1") as old:
        assert begin(old) == "ready"
        with visits.open("10.0.0.2") as early:
            assert "are taken" in begin(early)
        monkeypatch.setattr(server, "LASTING", 0.0)
        with visits.open("10.0.0.2") as new:
            assert begin(new) == "ready"
            assert old.receive_json()["message"].startswith("somebody else waited, and this session had lasted")
            assert play_on(new) == 10


def test_tokens_and_other_sites(talker, picture) -> None:
    app = create_app(talker, picture, token="secret")
    assert "wrong token" in refusal(app)
    assert "wrong token" in refusal(app, path="ws://localhost/ws?token=guess")
    assert "other sites" in refusal(
        app, path="ws://localhost/ws?token=secret", headers={"origin": "http://evil.example"}
    )
    with TestClient(app, base_url="http://a.host.of.yours") as here:
        assert here.get("/status").status_code == 403
        with here.websocket_connect(
            "ws://a.host.of.yours/ws?token=secret", headers={"origin": "http://a.host.of.yours"}
        ) as socket:
            assert play(socket, 0.4)[1]["frames"] == 10


def test_without_a_token_only_this_machine_s_names_are_served(talker, picture) -> None:
    with TestClient(create_app(talker, picture), base_url="http://evil.example") as here:
        assert here.get("/").status_code == 400


def test_a_silent_client_is_closed(talker, picture, monkeypatch) -> None:
    monkeypatch.setattr(server, "IDLE", 0.2)
    assert "nothing came" in refusal(create_app(talker, picture), START)


def test_a_slow_client_loses_frames_and_no_sync(talker, picture) -> None:
    """It sees nothing until all has been said: WINDOW frames were under way, the newest few waited."""
    with client(create_app(talker, picture)) as here, here.websocket_connect("ws://localhost/ws") as socket:
        socket.send_text(START)
        assert socket.receive_json()["type"] == "ready"
        for _ in range(100):
            socket.send_bytes(sound(0.04))
            time.sleep(0.002)
        socket.send_json({"type": "end"})
        time.sleep(0.5)
        indices = []
        while "bytes" in (message := socket.receive()) and message["bytes"]:
            index, at = HEADER.unpack_from(message["bytes"])
            assert at == index / 25
            indices.append(index)
            socket.send_json({"type": "seen", "index": index})
    assert server.WINDOW <= len(indices) <= server.WINDOW + 2 * server.WAITING
    assert indices[-1] == 99
    assert json.loads(message["text"])["frames"] == 100


@pytest.mark.slow
def test_the_client_of_the_documentation_runs_as_written(talker, tmp_path) -> None:
    (page,) = (Path(__file__).parents[1] / "docs").glob("live.md")
    (code,) = [
        block.code for block in blocks(page.read_text(encoding="utf-8"), page.name) if "websockets" in block.code
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = Starlette(routes=[Mount("/live", create_app(talker))])
    running = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    (tmp_path / "out").mkdir()
    shutil.copy(DEMO_PORTRAIT, tmp_path / "out" / "portrait.png")
    (tmp_path / "mssync").symlink_to(Path(server.__file__).parents[1])
    code = code.replace("127.0.0.1:8765", f"127.0.0.1:{port}")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    running.should_exit = True
    thread.join()
    assert json.loads(done.stdout) == {"type": "end", "frames": 249}, done.stderr
    drawn = sorted((tmp_path / "out" / "frames").iterdir())
    assert len(drawn) > 100
    assert Image.open(drawn[0]).size in ((384, 384), (512, 512))


def test_the_page_and_what_it_needs(talker) -> None:
    with client(create_app(talker)) as here:
        page = here.get("/")
        assert "default-src 'self'" in page.headers["content-security-policy"]
        for name in ("style.css", "live.js", "capture.js"):
            assert here.get(f"/{name}").status_code == 200
        assert here.get("/../server.py").status_code == 404


def test_the_full_model_is_refused() -> None:
    with pytest.raises(InputError, match="speak live"):
        create_app(Pipeline(FakeReenactor(), FakeGenerator(), face_mesh=FakeMesh()))


# ---- the engine


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [0]), (2, [0, 1]), (3, [1, 2]), (10, [4, 9])])
def test_frames_that_are_drawn_in_a_turn(count, expected) -> None:
    assert TURN_FRAMES == 2
    assert drawn(count) == expected


class SlowAnimator:
    """Makes 25 poses a second of sound, draws ten frames a second at most."""

    def __init__(self) -> None:
        self.made, self.drawn = 0, 0

    def push_motion(self, samples: np.ndarray) -> np.ndarray:
        self.made += len(samples) // 640
        return np.zeros((len(samples) // 640, 10, 6), np.float32)

    def flush_motion(self) -> np.ndarray:
        return np.zeros((0, 10, 6), np.float32)

    def picture(self, motion: np.ndarray) -> np.ndarray:
        time.sleep(0.01)
        self.drawn += 1
        return np.zeros((8, 8, 3), np.uint8)


def test_sessions_share_and_stay_in_sync() -> None:
    engine, speakers, latest, finished = Engine(Cores(torch.device("cpu"))), [], {}, threading.Semaphore(0)
    for k in range(4):

        def deliver(index: int, coded: bytes | None, k: int = k) -> None:
            if coded is None:
                finished.release()
            else:
                latest[k] = index

        speakers.append(Speaker(SlowAnimator(), deliver))
        engine.add(speakers[-1])
    engine.start()
    for t in range(50):  # a second of sound in 0.5 s: five times more than can be drawn
        for speaker in speakers:
            speaker.hear(np.zeros(640, np.float32))
        engine.wake()
        time.sleep(0.01)
        if t > 15:
            assert all(t - latest[k] <= 20 for k in range(4))  # behind by a round of turns, and no more
    for speaker in speakers:
        speaker.end()
    engine.wake()
    for _ in speakers:
        assert finished.acquire(timeout=5)
    engine.stop()
    counts = [speaker.animator.drawn for speaker in speakers]
    assert all(speaker.animator.made == 50 for speaker in speakers)
    assert max(counts) < 50
    assert max(counts) - min(counts) <= max(4, 0.4 * max(counts))


def test_a_session_that_breaks_leaves_the_others(caplog) -> None:
    class Broken(SlowAnimator):
        def push_motion(self, samples: np.ndarray) -> np.ndarray:
            raise RuntimeError("broken")

    engine, said, done = Engine(Cores(torch.device("cpu"))), [], threading.Event()
    broken = Speaker(Broken(), lambda index, coded: said.append(index))
    whole = Speaker(SlowAnimator(), lambda index, coded: coded is None and done.set())
    for speaker in (broken, whole):
        engine.add(speaker)
        speaker.hear(np.zeros(640, np.float32))
        speaker.end()
    engine.start()
    assert done.wait(5)
    engine.stop()
    assert said[:1] == [-1]
    assert "broke" in caplog.text


def test_jobs_run_between_turns_and_hand_on_their_errors() -> None:
    engine = Engine(Cores(torch.device("cpu")))
    engine.start()
    assert engine.call(lambda: 7).result(5) == 7
    with pytest.raises(InputError):
        engine.call(lambda: (_ for _ in ()).throw(InputError("no face"))).result(5)
    engine.stop()


def test_addresses() -> None:
    assert all(server.local(host) for host in ("127.0.0.1", "::1", "localhost", "127.8.9.1"))
    assert not any(server.local(host) for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"))
    assert server.address("0.0.0.0", 80, "abc") == "http://localhost:80/?token=abc"
    assert server.address("::1", 8765, None) == "http://[::1]:8765/"
