"""The studio's folder, queue and guard: without models, without Gradio, without a browser."""

from __future__ import annotations

import asyncio
import io
import os
import time
import wave

import pytest

pytest.importorskip("starlette")
import quickwork
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from mssync.app import guard, jobs, place, uploads
from mssync.app.guard import Guard, download
from mssync.app.jobs import Jobs
from mssync.app.limits import in_words
from mssync.app.place import Place, clear_abandoned, safe_name
from mssync.app.uploads import Uploads
from mssync.app.visitors import Visitor
from mssync.errors import InputError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(place.tempfile, "tempdir", str(tmp_path))
    made = Place()
    yield made
    made.close()
    assert not list(tmp_path.glob("mssync-studio-*"))


def stored(here: Place, name: str = "a.mp4", content: bytes = b"abc") -> str:
    """The alias of a new upload."""
    path = here.upload(name, "10.0.0.1")
    path.write_bytes(content)
    return f"/files/{path.parent.name}/{path.name}"


def files(here: Place) -> list:
    return [path for path in here.root.rglob("*") if path.is_file() and path.name != ".lock"]


# ---- the folder


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("me.jpg", "me.jpg"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("<img src=x onerror=alert(1)>.png", "img_src_x_onerror_alert_1.png"),
        ("%d\0\n.wav", "d.wav"),
        (".lock", "file.lock"),
        ("...", "file"),
        ("ü ñ.mp3", "ü_ñ.mp3"),
        ("x" * 500 + ".mp4", "x" * 80 + ".mp4"),
    ],
)
def test_names_of_uploads(name, kept):
    assert safe_name(name) == kept


def test_files_are_found_by_their_alias_alone(here):
    alias = stored(here)
    assert here.find(alias).read_bytes() == b"abc"
    folder = alias.split("/")[2]
    (here.root / folder / "link.mp4").symlink_to("/etc/passwd")
    for other in (
        f"/files/{folder}/other.mp4", f"/files/{folder}/../.lock", "/files/.lock", "/files/../x/a.mp4", "/etc/passwd",
        f"/files/{folder}/link.mp4", f"/files/{folder}", f"{here.root}/{folder}/a.mp4", f"/files/{folder}/a.mp4\0", "",
    ):  # fmt: skip
        assert here.find(other) is None


def test_files_belong_to_a_page_and_go_with_it_unless_a_job_uses_them(here):
    mine, used, other = (here.given(stored(here), session) for session in ("me", "me", "other"))
    with here.used([used.parent]):
        here.leave("me")
        assert not mine.exists()
        assert used.exists()
        assert other.exists()
    with pytest.raises(InputError, match="upload it again"):
        here.given(mine, "me")


def test_old_files_go(here, monkeypatch):
    old, new, busy = (here.given(stored(here), "me") for _ in range(3))
    for path in (old, busy):
        os.utime(path.parent, (0, time.time() - place.KEEP - 1))
    with here.used([busy.parent]):
        here.sweep()
    assert [path.exists() for path in (old, new, busy)] == [False, True, True]
    monkeypatch.setattr(place, "MAX_BYTES", 5)
    with pytest.raises(InputError, match="full"):
        here.upload("b.mp4", "10.0.0.1")


def test_what_a_killed_server_left_is_cleared_and_nothing_else(here, tmp_path):
    killed = tmp_path / "mssync-studio-killed"
    (killed / "upload").mkdir(parents=True)
    (killed / ".lock").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mssync-studio-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mssync-studio-other").mkdir()  # no lock: not ours
    clear_abandoned()
    assert not killed.exists()
    assert here.root.exists()
    assert (tmp_path / "elsewhere").exists()
    (tmp_path / "mssync-studio-link").unlink()
    (tmp_path / "mssync-studio-other").rmdir()


# ---- the queue


@pytest.fixture
def queue(here, monkeypatch):
    monkeypatch.setattr(jobs, "serve", quickwork.serve)
    monkeypatch.setattr(jobs, "ASKED", 0.01)
    made = Jobs(here, "compact", "cpu", "auto")
    yield made
    made.stop()


def me(session: str, address: str = "10.0.0.1") -> Visitor:
    return Visitor(address, session)


def told(words: list) -> jobs.Tell:
    return lambda share, what: words.append((share, what))


def test_everyone_gets_their_own_and_two_at_once(queue, here):
    words: list[list] = [[] for _ in range(8)]

    async def one(k: int) -> bytes:
        alias = stored(here, content=b"%d" % k)
        answer = await queue.run("copy", me(f"s{k}"), {"file": alias}, told(words[k]))
        return here.find(answer["video"].replace(str(here.root), "/files")).read_bytes()

    async def everyone() -> list[bytes]:
        queue.start()
        return await asyncio.gather(*(one(k) for k in range(8)))

    assert asyncio.run(everyone()) == [b"%d" % k for k in range(8)]
    assert (0.75, "copying, about 1 second left") in [(share, what) for share, what in words[0]]
    assert words[7][0][1].startswith("waiting: ")
    assert len(queue.idle) == 2
    for k in range(8):
        here.leave(f"s{k}")
    assert files(here) == []


def test_a_job_that_is_not_wanted_any_more_leaves_nothing(queue, here):
    async def main() -> None:
        queue.start()
        started = [asyncio.create_task(queue.run("wait", me("s"), {}, told([]), seconds=60)) for _ in range(2)]
        waiting = asyncio.create_task(queue.run("copy", me("s"), {"file": stored(here)}, told([])))
        while len(files(here)) < 3:
            await asyncio.sleep(0.02)
        for task in (waiting, *started):
            task.cancel()
        assert all(
            isinstance(e, asyncio.CancelledError)
            for e in await asyncio.gather(*started, waiting, return_exceptions=True)
        )
        here.leave("s")
        assert files(here) == []
        answer = await queue.run("copy", me("s"), {"file": stored(here)}, told([]))  # with a new process
        assert answer["says"] == "copied"

    asyncio.run(main())


def test_a_page_that_is_closed_ends_its_jobs(queue, here, monkeypatch):
    monkeypatch.setattr(jobs, "GRACE", 0.1)

    async def main() -> None:
        queue.start()
        task = asyncio.create_task(queue.run("wait", me("s"), {}, told([]), seconds=60))
        while not files(here):
            await asyncio.sleep(0.02)
        queue.leave("s")
        queue.arrive("s")  # a reload
        await asyncio.sleep(0.2)
        assert not task.done()
        queue.leave("s")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert files(here) == []

    asyncio.run(main())


def test_what_goes_wrong_is_said_and_the_next_job_runs(queue, here, monkeypatch, caplog):
    async def main() -> None:
        queue.start()
        alias = stored(here, "mine.png")
        for name, given, expected in [
            ("refuse", {"file": alias}, "^mine.png is not to our taste$"),
            ("die", {}, "process ended"),
            ("fail", {}, "^this job broke; the server's messages tell why$"),
            ("copy", {"file": "/etc/passwd"}, "upload it again"),
        ]:
            with pytest.raises(InputError, match=expected):
                await queue.run(name, me("s"), given, told([]))
        monkeypatch.setattr(jobs, "LIMIT", 0.2)
        with pytest.raises(InputError, match="took more than"):
            await queue.run("wait", me("s"), {}, told([]), seconds=60)
        monkeypatch.setattr(jobs, "LIMIT", 60)
        monkeypatch.setattr(jobs, "WAITING", 0)
        with pytest.raises(InputError, match="0 jobs are waiting already; try again in"):
            await queue.run("copy", me("s"), {"file": alias}, told([]))
        monkeypatch.setattr(jobs, "WAITING", 9)
        assert (await queue.run("copy", me("s"), {"file": alias}, told([])))["says"] == "copied"

    asyncio.run(main())
    assert "a secret of the server" in caplog.text


def test_times_in_words():
    assert [in_words(s) for s in (0.2, 42.4, 100, 900)] == ["1 second", "42 seconds", "2 minutes", "15 minutes"]


# ---- the guard (who may ask for what is in test_security.py)


@pytest.fixture
def client(here):
    async def echo(request):
        return JSONResponse(await request.json())

    async def events(request):
        async def stream():
            yield f"data: {here.root}/x/a.mp4\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    routes = [
        Route("/gradio_api/upload", Uploads(here).take, methods=["POST"]),
        Route("/gradio_api/file={alias:path}", download(here)),
        Route("/gradio_api/queue/join", echo, methods=["POST"]),
        Route("/gradio_api/queue/data", events),
    ]
    return TestClient(Guard(Starlette(routes=routes), here, None), base_url="http://localhost")


def test_an_upload_and_its_way_back(client, here):
    aliases = client.post("/gradio_api/upload", files={"files": ("me.png", b"png")}).json()
    assert aliases == [f"/files/{files(here)[0].parent.name}/me.png"]
    answer = client.get(f"/gradio_api/file={aliases[0]}")
    assert answer.content == b"png"
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"].startswith("inline")
    assert client.get(f"/gradio_api/file={aliases[0]}", headers={"Range": "bytes=1-2"}).content == b"ng"


def test_paths_are_replaced_both_ways(client, here):
    alias = stored(here)
    message = {"data": [{"path": alias, "url": "http://elsewhere.example/x"}, {"a": [{"path": alias}]}, 1]}
    named = {"path": alias, "url": None, "meta": {"_type": "gradio.FileData"}}
    assert client.post("/gradio_api/queue/join", json=message).json() == {"data": [named, {"a": [named]}, 1]}
    assert client.get("/gradio_api/queue/data").text == "data: /files/x/a.mp4\n\n"


def test_uploads_are_limited(client, here, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_UPLOAD", 1_000_000)
    assert client.post("/gradio_api/upload", files={"files": ("a.wav", bytes(990_000))}).status_code == 200

    def parts():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
        yield from (bytes(10_000) for _ in range(200))

    for content in (bytes(1_000_001), None):  # with its length told, and without
        sent = {"files": {"files": ("a.wav", content)}} if content else {"content": parts()}
        kind = {} if content else {"headers": {"content-type": "multipart/form-data; boundary=x"}}
        answer = client.post("/gradio_api/upload", **sent, **kind)
        assert (answer.status_code, answer.text) == (413, "this file is too large; at most 1 MB are taken")
    assert len(files(here)) == 1


def test_three_hours_are_refused_at_once(client, here):
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 1, 2000, 0, "NONE", ""))
        file.writeframes(bytes(3 * 3600 * 2000))
    answer = client.post("/gradio_api/upload", files={"files": ("lecture.wav", sound.getvalue())})
    assert answer.status_code == 413
    assert answer.text.startswith("lecture.wav lasts 180 minutes; at most 5 are taken here: cut it")
    assert list(here.root.iterdir()) == [here.root / ".lock"]


def test_a_page_that_is_closed_is_noticed():
    class Seen(list):
        def arrive(self, session):
            self.append(f"{session} comes")

        def leave(self, session):
            self.append(f"{session} goes")

    seen, sent = Seen(), []

    async def receive():
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(guard.Heartbeat(seen)({"path_params": {"session": "me"}}, receive, send))
    assert seen == ["me comes", "me goes"]
    assert sent[1]["body"] == b"data: ALIVE\n\n"
    for session in ("rwfxvs1vhk", "1b4e28ba-2fa1-11d2-883f-0016d3cca427"):  # of a page, of gradio_client
        assert guard.OPEN.fullmatch(f"/gradio_api/heartbeat/{session}")
