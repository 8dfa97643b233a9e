"""The studio's folder, queue and guard: without models, without Gradio, without a browser."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import random
import time
import wave
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

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
from mssync.app.visitors import Visitor, address
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


def test_a_visitor_s_many_jobs_do_not_keep_another_one_waiting(queue, here):
    order: list[str] = []

    async def one(session: str, address: str) -> None:
        await queue.run("copy", me(session, address), {"file": stored(here)}, told([]))
        order.append(address)

    async def everyone() -> None:
        queue.start()
        many = [asyncio.create_task(one(f"s{k}", "10.0.0.1")) for k in range(12)]
        while len(queue.line) < 10:
            await asyncio.sleep(0.005)
        await one("page", "10.0.0.2")
        await asyncio.gather(*many)

    asyncio.run(everyone())
    assert order.index("10.0.0.2") <= 4  # the two that ran, and what ended in the same moment


def test_nobody_has_all_places(queue, here):
    words: list = []

    async def main() -> None:
        queue.start()
        running = [
            asyncio.create_task(queue.run("wait", me(f"r{k}", "10.0.0.9"), {}, told([]), seconds=60)) for k in (1, 2)
        ]
        while len(queue.running) < 2:
            await asyncio.sleep(0.01)

        def waiting(session: str, address: str) -> asyncio.Task:
            return asyncio.create_task(queue.run("copy", me(session, address), {}, told(words)))

        page = [waiting("page", "10.0.0.1") for _ in range(20)]
        scripts = [waiting(f"s{k}", "10.0.0.1") for k in range(64)]
        await asyncio.sleep(0.2)
        assert len(queue.line) == jobs.OF_ADDRESS
        assert sum(ticket.visitor.session == "page" for ticket in queue.line) == jobs.OF_SESSION
        others = [waiting("s", f"10.0.0.{k}") for k in range(20, 90)]
        await asyncio.sleep(0.2)
        assert len(queue.line) == jobs.WAITING
        assert [ticket.visitor.address for ticket in jobs._in_turn(queue.line, queue.running)[:3]] == [
            "10.0.0.1", "10.0.0.20", "10.0.0.21",
        ]  # fmt: skip
        for task in (*running, *page, *scripts, *others):
            task.cancel()
        said = {str(e) for e in await asyncio.gather(*page, *scripts, *others, return_exceptions=True)}
        assert "8 of your jobs are waiting already; give more when some are done" in said
        assert "32 jobs from your address are waiting already; give more when some are done" in said
        assert any(line.startswith("64 jobs are waiting already; try again in") for line in said)

    asyncio.run(main())


def test_turns_against_a_slow_rule(queue):
    """Each turn goes to the address, and in it to the session, that had the fewest; then to the first to come."""
    rng = random.Random(0)
    for _ in range(200):
        tickets = [
            jobs.Ticket(me(rng.choice("ab"), rng.choice("xyz")), 1.0, arrived=float(k))
            for k in range(rng.randint(1, 9))
        ]
        running, line = tickets[: rng.randint(0, 2)], tickets[2:]
        had, expected = list(running), []
        while left := [ticket for ticket in line if ticket not in expected]:

            def turns(ticket: jobs.Ticket, had: list = had) -> tuple:
                visitor = ticket.visitor
                return (
                    sum(one.visitor.address == visitor.address for one in had),
                    sum(one.visitor == visitor for one in had),
                )

            fewest = min(turns(ticket)[0] for ticket in left)
            firsts = {}
            for ticket in left:  # of each address that may be next: whom it would send
                if turns(ticket)[0] == fewest:
                    best = firsts.get(ticket.visitor.address)
                    if best is None or (turns(ticket)[1], ticket.arrived) < (turns(best)[1], best.arrived):
                        firsts[ticket.visitor.address] = ticket
            expected.append(min(firsts.values(), key=lambda ticket: ticket.arrived))
            had.append(expected[-1])
        assert jobs._in_turn(line, running) == expected


def test_the_first_estimate_knows_how_long_the_speech_is(queue, here, make_sound):
    """Nothing was measured yet: two who speak for 10 s run, one who speaks for 40 s and one of 10 s wait."""
    words: list[list] = [[], []]

    async def main() -> None:
        queue.start()
        sounds = {}
        for seconds in (10, 40):
            recording = make_sound(f"{seconds}.wav", np.zeros(seconds * 8000, np.float32), 8000)
            sounds[seconds] = stored(here, "a.wav", recording.read_bytes())

        def task(k: int, seconds: int, words: list) -> asyncio.Task:
            return asyncio.create_task(queue.run("dawdle", me(f"s{k}"), {"file": sounds[seconds]}, told(words)))

        running = [task(k, 10, []) for k in range(2)]
        while len(queue.running) < 2:
            await asyncio.sleep(0.01)
        waiting = []
        for k, seconds in enumerate((40, 10)):
            waiting.append(task(2 + k, seconds, words[k]))
            while not words[k]:
                await asyncio.sleep(0.01)
        for one in (*running, *waiting):
            one.cancel()
        await asyncio.gather(*running, *waiting, return_exceptions=True)

    asyncio.run(main())
    job = jobs.START + 10 * jobs.PACE
    assert words[0][0][1] == f"waiting: 0 before you, about {in_words(job)}"
    assert words[1][0][1] == f"waiting: 1 before you, about {in_words(job)}"  # the other worker is free by then


@pytest.mark.parametrize(
    ("done", "elapsed", "left"), [(0, 4, 7), (0, 40, 0), (0.5, 5.5, 5.5), (0.5, 22, 13.75), (1, 20, 0)]
)
def test_how_long_a_job_will_take(queue, done, elapsed, left):
    """11 s are usual."""
    job = jobs.Ticket(me("s"), 10.0, begun=time.monotonic() - elapsed, done=done)
    assert abs(queue._left(job) - left) < 0.1


def test_a_job_alone_has_all_cores(queue, here, monkeypatch):
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 8)

    async def main() -> list[int]:
        queue.start()
        alone = await queue.run("threads", me("s"), {}, told([]))
        waiting = asyncio.create_task(queue.run("wait", me("s"), {}, told([]), seconds=60))
        while not queue.running:
            await asyncio.sleep(0.01)
        with_another = await queue.run("threads", me("s"), {}, told([]))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return [alone["threads"], with_another["threads"]]

    assert asyncio.run(main()) == [8, 4]


def test_addresses_of_visitors():
    assert address("192.168.0.7") == address("::ffff:192.168.0.7") == "192.168.0.7"
    assert address("2001:db8::1") == address("2001:db8::ffff:1") != address("2001:db8:0:1::1")
    assert (address(None), address("testclient")) == ("", "testclient")


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


def broken_disk(monkeypatch, number: int) -> None:
    def fails(source, target) -> None:
        target.write(source.read(10))
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(uploads.shutil, "copyfileobj", fails)


def test_a_full_disk_is_said_and_nothing_stays_on_it(client, here, monkeypatch, caplog):
    whole = [("files", ("a.wav", bytes(1000))), ("files", ("b.wav", bytes(1000)))]
    broken_disk(monkeypatch, errno.ENOSPC)
    answer = client.post("/gradio_api/upload", files=whole)
    assert (answer.status_code, "disk is full; try again later" in answer.text) == (507, True)
    broken_disk(monkeypatch, errno.EIO)
    answer = client.post("/gradio_api/upload", files=whole)
    assert (answer.status_code, "cannot store files at present" in answer.text) == (507, True)
    monkeypatch.undo()
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda path: SimpleNamespace(free=1500))
    assert client.post("/gradio_api/upload", files=whole).status_code == 507  # before anything is written
    assert files(here) == []
    assert list(here.root.iterdir()) == [here.root / ".lock"]
    assert [len(record.message.splitlines()) for record in caplog.records if "stored" in record.message] == [1, 1, 1]


def test_one_address_does_not_fill_the_folder(here, monkeypatch):
    monkeypatch.setattr(place, "OF_ADDRESS", 5)
    mine = here.upload("a.mp4", "10.0.0.1")
    mine.write_bytes(b"abcdef")
    with pytest.raises(InputError, match="from your address take all the room"):
        here.upload("b.mp4", "10.0.0.1")
    here.upload("c.mp4", "10.0.0.2")
    here.remove(mine.parent)
    here.upload("d.mp4", "10.0.0.1")


def test_a_picture_that_is_too_large_is_refused_at_once(client, here):
    picture = io.BytesIO()
    Image.new("1", (13000, 13000)).save(picture, "PNG")
    answer = client.post("/gradio_api/upload", files={"files": ("sky.png", picture.getvalue())})
    assert (answer.status_code, answer.text) == (
        413,
        "sky.png has 13000x13000 pixels; scale it to 50,000,000 in all or less",
    )
    assert files(here) == []


def test_the_progress_of_an_upload_is_told(here):
    app = Uploads(here)
    routes = [Route("/upload", app.take, methods=["POST"]), Route("/progress", app.progress)]
    with TestClient(Starlette(routes=routes)) as client:
        assert client.post("/upload?upload_id=x", files={"files": ("me.png", b"png")}).status_code == 200
        events = [json.loads(line[6:]) for line in client.get("/progress?upload_id=x").text.split("\n\n") if line]
        assert {event["orig_name"] for event in events[:-1]} == {"me.png"}
        assert sum(event["chunk_size"] for event in events[:-1]) > 3
        assert events[-1] == {"msg": "done"}


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
