"""Files that mean harm: code in checkpoints, bombs, links, playlists, names."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import zipfile
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from fakes import FakeReenactor
from PIL import Image
from test_time import film

from mssync import audio, errors, motion, video
from mssync.animate import Pipeline
from mssync.audio import load_audio
from mssync.errors import InputError, written_whole
from mssync.face.analyser import FaceMesh
from mssync.motion import load_motion, save_motion
from mssync.pictures import read_image
from mssync.reenact.convert import read_checkpoint
from mssync.video import VideoReader, open_media, probe, write_video
from mssync.weights import load_model


class Harm:
    """Unpickling it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.fixture
def harm(tmp_path):
    place = tmp_path / "harmed"
    yield Harm(place)
    assert not place.exists()


def test_pickled_checkpoints_are_refused_and_not_run(harm, tmp_path):
    torch.save({"generator": harm}, tmp_path / "zip.pth.tar")
    torch.save({"generator": harm}, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pth.tar").write_bytes(pickle.dumps(harm))
    for name in ("zip.pth.tar", "old.pth.tar", "bare.pth.tar"):
        with pytest.raises(InputError, match=r"refused|not a PyTorch checkpoint"):
            read_checkpoint(tmp_path / name)
        model = (tmp_path / name).rename(tmp_path / f"{name}.safetensors")
        with pytest.raises(InputError, match="not a safetensors file"):
            load_model(model)


def test_a_run_does_not_go_on_from_a_pickled_checkpoint(harm, tmp_path):
    pytest.importorskip("lightning")
    from mssync.training.common import Run

    torch.save({"model": harm}, tmp_path / "generator.pt")
    with pytest.raises(InputError, match="damaged"):
        Run(tmp_path, "generator", None, None).restore({})


def test_motion_files_hold_no_objects_and_no_bombs(harm, tmp_path, monkeypatch):
    fields = {"fps": 25, "reenactor": "compact", "source_size": [1, 1]}
    np.savez(tmp_path / "objects.npz", motion=np.array([harm], object), **fields)
    with pytest.raises(InputError, match="not a motion file"):
        load_motion(tmp_path / "objects.npz")
    header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 10, 6)}
    with zipfile.ZipFile(tmp_path / "claim.npz", "w") as archive, archive.open("motion.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(InputError, match="not a motion file"):
        load_motion(tmp_path / "claim.npz")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("motion.npy", bytes((1 << 24) + 1))
    monkeypatch.setattr(motion, "MAX_FILE", 1 << 24)
    with pytest.raises(InputError, match="unpacks to more"):
        load_motion(tmp_path / "bomb.npz")


def wav(path: Path, rate: int, seconds: float = 1) -> Path:
    body = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    sound = bytes(round(2 * rate * seconds))
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body) + 8 + len(sound)) + body)
    with path.open("ab") as file:
        file.write(b"data" + struct.pack("<I", len(sound)) + sound)
    return path


def test_sound_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="has sound at 1 Hz"):
        load_audio(wav(tmp_path / "slow.wav", 1, 32000))
    monkeypatch.setattr(audio, "MAX_SECONDS", 9)
    assert len(load_audio(wav(tmp_path / "nine.wav", 2000, 9))) == 9 * 16000
    with pytest.raises(InputError, match=r"more than 0\.0025 hours of sound"):
        load_audio(wav(tmp_path / "long.wav", 2000, 9.5))


def test_sound_of_an_unknown_codec_is_no_sound(tmp_path):
    data = bytearray(wav(tmp_path / "a.wav", 16000).read_bytes())
    data[20:22] = b"\x77\x77"  # the format's number
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(InputError, match="neither pictures nor sound"):
        probe(tmp_path / "a.wav")
    with pytest.raises(InputError, match="no sound that can be decoded"):
        load_audio(tmp_path / "a.wav")


def test_a_stream_that_begins_on_the_way(tmp_path):
    """FLV has no header that lists its streams; PyAV stumbles over one that it had not seen, at the very end."""
    path = film(tmp_path / "a.flv")
    content = path.read_bytes()
    script = b"\x12\x00\x00\x05" + bytes(7) + b"\x02\x00\x02hi"  # a tag of another type, before the last one
    at = content.rindex(b"\x09", 0, len(content) - 400)
    for place in (at, len(content)):
        (tmp_path / "b.flv").write_bytes(content[:place] + script + (16).to_bytes(4, "big") + content[place:])
        assert probe(tmp_path / "b.flv").kind == "video"
        assert len(load_audio(tmp_path / "b.flv")) > 16000


def test_frames_beyond_8k_are_refused_before_they_are_drawn(tmp_path, monkeypatch):
    with av.open(str(tmp_path / "wider.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 2048, 128, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(255, 1)
        picture = np.zeros((2048, 128, 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    for longest in (32000, 40000):  # the longest side is one bound, the area another
        monkeypatch.setattr(video, "MAX_SIDE", longest)
        with pytest.raises(InputError, match="32640x2048 pixels"):
            probe(tmp_path / "wider.mkv")


@pytest.mark.parametrize("times", [(0, 1, 62), (0, 61, 62), (0, 1, 10**7)])
def test_a_damaged_time_stamp_is_no_endless_video(make_video, times):
    path = make_video("a.mkv", [1, 2, 3], times)
    with pytest.raises(InputError, match="for more than 60 s"):
        for _ in VideoReader(path):
            pass
    assert len(list(VideoReader(make_video("b.mkv", [1, 2, 3], (0, 59, 60))))) == 60 * 25 + 1


def test_sides_that_fill_the_memory_are_refused(tmp_path):
    Image.new("L", (32767, 40)).save(tmp_path / "long.png")
    with pytest.raises(InputError, match="32767x40 pixels"):
        read_image(tmp_path / "long.png")
    with pytest.raises(InputError, match="40x32767 pixels"):
        Pipeline(FakeReenactor(), None).portrait(np.zeros((32767, 40, 3), np.uint8))
    Image.new("L", (32000, 40)).save(tmp_path / "still.png")
    assert FaceMesh()(read_image(tmp_path / "still.png")) == []


def test_playlists_reach_neither_the_network_nor_other_files(tmp_path):
    write_video(tmp_path / "other.mp4", [np.zeros((64, 64, 3), np.uint8)] * 3, None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        asked: list[object] = []

        def listen() -> None:
            with suppress(TimeoutError):
                asked.append(server.accept())

        listener = threading.Thread(target=listen)
        listener.start()
        for name, text in {
            "net.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{address}\n#EXT-X-ENDLIST\n",
            "file.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nother.mp4\n#EXT-X-ENDLIST\n",
            "up.mp4": "ffconcat version 1.0\nfile ../../../../../../etc/hostname\n",
            "concat.mp4": "ffconcat version 1.0\nfile other.mp4\n",
            "page.mp4": f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{address}</BaseURL></MPD>',
        }.items():
            (tmp_path / name).write_text(text)
            with pytest.raises(InputError, match="is not a video or sound file"):
                open_media(tmp_path / name)
        listener.join()
    assert not asked


def test_an_output_that_is_a_link_does_not_write_through_it(tmp_path):
    (tmp_path / "precious.txt").write_text("keep")
    (tmp_path / "out.npz").symlink_to(tmp_path / "precious.txt")
    save_motion(tmp_path / "out.npz", np.zeros((1, 10, 6), np.float32), space="compact-1", source_size=(1, 1))
    assert (tmp_path / "precious.txt").read_text(encoding="utf-8") == "keep"
    assert not (tmp_path / "out.npz").is_symlink()


def test_a_link_planted_for_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    class Guessed:
        hex = "0" * 32

    (tmp_path / "precious.txt").write_text("keep")
    monkeypatch.setattr(errors.uuid, "uuid4", Guessed)
    (tmp_path / f".mssync-{'0' * 12}.npz").symlink_to(tmp_path / "precious.txt")
    with pytest.raises(InputError, match="cannot write"), written_whole(tmp_path / "a.npz", ".npz"):
        pass
    assert (tmp_path / "precious.txt").read_text(encoding="utf-8") == "keep"


@pytest.mark.parametrize("name", ["a:b.mp4", "-i.mp4", "%d.mp4", "http:.mp4", "a\nb.mp4", "<b>&.mp4", "pipe:0.mp4"])
def test_strange_names_are_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert write_video(name, [np.zeros((64, 64, 3), np.uint8)] * 3, None) == 3
    assert os.listdir(tmp_path) == [name]
    assert len(list(VideoReader(name))) == 3
    assert len(list(VideoReader(f"../{tmp_path.name}/{name}"))) == 3


@pytest.mark.parametrize("kind", ["link in circles", "link to nothing", "pipe", "device", "folder", "name with a zero"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / "a.mp4"
    if kind == "link in circles":
        path.symlink_to(path)
    elif kind == "link to nothing":
        path.symlink_to(tmp_path / "nothing")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path = tmp_path / "a\0.mp4"
    for read in (probe, load_audio, VideoReader, load_motion):
        with pytest.raises(InputError):
            read(path)


# ---- the studio: who may ask, for what, and what nobody gets to see


@pytest.fixture
def private(tmp_path, monkeypatch):
    pytest.importorskip("starlette")
    from mssync.app import place

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(place.tempfile, "tempdir", str(tmp_path / "temporary"))
    made = place.Place()
    yield made
    made.close()


def studio(private, token=None):
    """A client of the guard, behind which a server answers with what it was asked."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from mssync.app.guard import Guard, download
    from mssync.app.uploads import Uploads

    async def anything(request: Request):
        return PlainTextResponse(f"{request.url.path} {(await request.body()).decode()}")

    routes = [
        Route("/gradio_api/upload", Uploads(private).take, methods=["POST"]),
        Route("/gradio_api/file={alias:path}", download(private)),
        Route("/{path:path}", anything, methods=["GET", "POST"]),
    ]
    return TestClient(Guard(Starlette(routes=routes), private, token), base_url="http://localhost:8765")


def test_pages_of_other_sites_may_not_use_the_studio(private):
    client = studio(private)
    own = {"Origin": "http://localhost:8765"}
    assert client.post("/gradio_api/queue/join", json={}, headers=own).status_code == 200
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:9999"},  # another program's page on this machine
        {"Origin": "null"},  # a sandboxed frame, a file
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    ):
        for path in ("/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/cancel", "/live/status"):
            assert client.post(path, json={}, headers=headers).status_code == 403
        assert client.get("/gradio_api/file=/files/a/b.mp4", headers=headers).status_code == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.get("/", headers=link).status_code == 200  # a link elsewhere to the page
    assert not list(private.root.glob("*/*"))


def test_a_name_of_somebody_else_for_this_machine_is_refused(private):
    for host in ("evil.example", "evil.example:8765", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        assert studio(private).get("/config", headers={"Host": host}).status_code == 400


def test_without_the_token_nothing_of_the_studio_is_reached(private):
    client = studio(private, "secret")
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/upload", "/gradio_api/queue/join", "/live/", "/x"):
        for headers in ({}, {"Authorization": "Bearer guess"}, {"Cookie": "mssync_token=guess"}):
            for answer in (client.get(path, headers=headers), client.post(path, headers=headers)):
                assert (answer.status_code, "wrong token" in answer.text) == (403, True)
    assert client.get("/config?token=guess").status_code == 403
    assert client.get("/config", headers={"Authorization": "Bearer secret"}).status_code == 200
    moved = client.get("/?token=secret&view=api", follow_redirects=False)
    assert (moved.status_code, moved.headers["location"]) == (303, "/?view=api")  # out of the address, into a cookie
    assert "HttpOnly" in moved.headers["set-cookie"]
    assert "SameSite=strict" in moved.headers["set-cookie"]
    assert client.get("/config", headers={"Host": "my.example"}).status_code == 200  # with the cookie, under any name


def test_routes_of_gradio_that_the_page_does_not_use_are_closed(private):
    for path in (
        "/gradio_api/proxy=http://169.254.169.254/", "/gradio_api/component_server", "/gradio_api/process_recording",
        "/gradio_api/deep_link", "/gradio_api/vibe-edit", "/gradio_api/runs", "/gradio_api/run-history/records",
        "/gradio_api/stream/a/b/c/playlist.m3u8", "/gradio_api/run/animate", "/gradio_api/api/animate", "/monitoring",
        "/gradio_api/dev/reload", "/login", "/docs", "/openapi.json", "/gradio_api/file/etc/passwd",
    ):  # fmt: skip
        assert studio(private).get(path).status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/files/../../etc/passwd", "/files/x/../../y", "http://169.254.169.254/", "/files/x", "x", ""],
)
def test_files_that_are_no_uploads_cannot_be_named(private, path):
    client = studio(private)
    for message in ({"data": [{"path": path}]}, {"data": [[{"video": {"path": path, "meta": {}}}]]}):
        assert client.post("/gradio_api/queue/join", json=message).status_code == 400
    assert client.get(f"/gradio_api/file={path}").status_code == 404


def test_real_paths_do_not_help_either(private):
    file = private.upload("a.mp4", "10.0.0.1")
    file.write_bytes(b"mine")
    assert studio(private).post("/gradio_api/call/score", json={"data": [{"path": str(file)}]}).status_code == 400
    assert studio(private).get(f"/gradio_api/file={file}").status_code == 404


def test_messages_that_are_none_are_refused(private):
    for content in (b"{", b"\xff", b"[" * 100_000):
        assert studio(private).post("/gradio_api/queue/join", content=content).status_code == 400
    assert studio(private).post("/gradio_api/queue/join", content=bytes(1_000_001)).status_code == 413


def test_uploads_stay_in_their_folder_and_come_back_as_media_or_attachments(private, tmp_path):
    client = studio(private)
    for name in ("../../up.png", "..\\up.png", "/etc/up.png", "a/../up.png", "<script>alert(1)</script>up.png"):
        (alias,) = client.post("/gradio_api/upload", files={"files": (name, b"x")}).json()
        assert alias.endswith("up.png")
        assert not set("<>()") & set(alias)
        assert client.get(f"/gradio_api/file={alias}").headers["content-disposition"].startswith("inline")
    assert all(private.root in path.parents for path in tmp_path.rglob("*up.png"))
    for name in ("page.html", "picture.svg", "script.js", "a.xml", "noname"):
        (alias,) = client.post("/gradio_api/upload", files={"files": (name, b"<script>alert(1)</script>")}).json()
        answer = client.get(f"/gradio_api/file={alias}")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "object-src 'none'" in answer.headers["content-security-policy"]


def test_links_in_the_studio_s_folder_are_not_followed(private):
    file = private.upload("a.mp4", "10.0.0.1")
    file.symlink_to("/etc/passwd")
    assert studio(private).get(f"/gradio_api/file=/files/{file.parent.name}/a.mp4").status_code == 404


def test_only_the_owner_may_look_into_the_studio_s_folder(private):
    assert private.root.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_fuzzing_runs(tmp_path) -> None:
    """A handful of the damaged files of `make fuzz`."""
    script = Path(__file__).with_name("fuzz.py")
    done = subprocess.run([sys.executable, script, "6", "--seed", "1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
