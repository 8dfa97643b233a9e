"""The package as a user meets it: names, help, types; saving, progress and ending early."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeGenerator, FakeMesh, FakeReenactor, speech

import mssync
from mssync.errors import InputError
from mssync.provenance import badged
from mssync.video import VideoReader, probe, write_video

ROOT = Path(__file__).parents[1]
PICTURE = np.random.default_rng(1).integers(1, 255, (301, 400, 3), np.uint8)


def python(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Names


def test_every_name_leads_somewhere():
    for name in mssync.__all__:
        assert getattr(mssync, name) is not None
        assert importlib.util.find_spec(f"mssync.{name}") is None, "a module of this name would take its place"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mssync.nothing  # noqa: B018
    public = [name for name in dir(mssync) if not name.startswith("_")]
    assert public == sorted(set(mssync.__all__) - {"__version__"})


def test_importing_is_quick_and_order_does_not_matter():
    python("-c", "import mssync, sys; dir(mssync); assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    for name in sorted(mssync._HOMES):
        importlib.import_module(name)
    assert mssync.score is mssync.sync.score.score
    assert mssync.resync is mssync.sync.resync.resync


def test_what_is_exported_tells_its_arguments():
    for name in mssync.__all__:
        value = getattr(mssync, name)
        if callable(value) and not (inspect.isclass(value) and issubclass(value, Exception)):
            assert inspect.getdoc(value), name


@pytest.mark.slow
def test_a_users_program_is_typed(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(
        """
import io
from pathlib import Path
import numpy as np
import torch
from PIL import Image
import mssync

talker = mssync.load("compact", device="auto")
def told(done: int, total: int) -> None: ...
for picture in ("a.jpg", Path("a.jpg"), b"", io.BytesIO(), Image.new("RGB", (9, 9)), np.zeros(3), torch.zeros(3)):
    frames = talker.animate(picture, np.zeros(3), sample_rate=44100)
count: int = frames.save("out.mp4", badge=True, progress=told)
moved: mssync.Frames = talker.reenact(open("a.jpg", "rb"), b"", absolute=True)
animator = mssync.StreamingAnimator(talker, "a.jpg", sample_rate=48000)
words: str = mssync.score("a.mp4").says
done: mssync.Mended = mssync.resync("a.mp4", "b.mp4", offset=80)
loss = mssync.MultiScaleSyncLoss(mssync.SyncerPyramid.load(fps=30))
reveal_type(mssync.load_audio("a.wav"))
talker.animate(3, "a.wav")
""",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", str(tmp_path / "program.py")],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, env={"MYPYPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    mine = [line for line in done.stdout.splitlines() if line.startswith("program.py")]
    errors = [line for line in mine if "error:" in line]
    assert len(errors) == 1, done.stdout
    assert 'Argument 1 to "animate" of "Pipeline" has incompatible type "int"' in errors[0]
    assert any("Revealed type" in line and "floating" in line for line in mine), done.stdout


def test_the_fastest_device(monkeypatch):
    from mssync import animate as A

    for cuda, mps, wanted in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert A._fastest() == wanted
    assert mssync.load(device="auto").device == torch.device("cpu")
    assert inspect.signature(mssync.load).parameters["device"].default == "cpu"


# Saving


@pytest.fixture
def talker() -> mssync.Pipeline:
    return mssync.Pipeline(FakeReenactor(), FakeGenerator(), face_mesh=FakeMesh(), name="fake")


def test_a_saved_video_has_frames_sound_and_marks(talker, tmp_path):
    frames = talker.animate(PICTURE, speech(1), sample_rate=16000)
    told: list[tuple[int, int]] = []
    assert frames.save(tmp_path / "a.mp4", progress=lambda *now: told.append(now)) == 25
    assert told == [(done, 25) for done in range(26)]
    write_video(tmp_path / "b.mp4", talker.animate(PICTURE, speech(1), sample_rate=16000), speech(1))
    shown, wanted = (np.stack(list(VideoReader(tmp_path / name))) for name in ("a.mp4", "b.mp4"))
    np.testing.assert_array_equal(shown, wanted)
    np.testing.assert_array_equal(mssync.load_audio(tmp_path / "a.mp4"), mssync.load_audio(tmp_path / "b.mp4"))
    found = probe(tmp_path / "a.mp4").provenance
    assert (found.model, found.precision, found.marks) == ("fake", "float32", ("tags", "XMP"))


def test_a_badge_is_drawn(talker, tmp_path):
    talker.animate(PICTURE, speech(0.4), sample_rate=16000).save(tmp_path / "a.mp4", badge=True)
    plain = list(talker.animate(PICTURE, speech(0.4), sample_rate=16000))
    shown = np.stack(list(VideoReader(tmp_path / "a.mp4"))).astype(float)
    near, far = (np.abs(shown - np.stack(list(x))).mean() for x in (badged(plain), plain))
    assert near < far


def test_frames_that_have_begun_are_not_saved(talker, tmp_path):
    frames = talker.animate(PICTURE, speech(1), sample_rate=16000)
    next(frames)
    with pytest.raises(InputError, match="make new ones"):
        frames.save(tmp_path / "a.mp4")
    done = talker.animate(PICTURE, speech(0.4), sample_rate=16000)
    done.save(tmp_path / "b.mp4")
    with pytest.raises(InputError, match="make new ones"):
        done.save(tmp_path / "c.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["b.mp4"]


def test_a_name_of_no_use_costs_no_frames(talker, tmp_path):
    frames = talker.animate(PICTURE, speech(1), sample_rate=16000)
    with pytest.raises(InputError, match=r"must end in \.mp4"):
        frames.save(tmp_path / "a.avi")
    assert talker.reenactor.batches == []
    assert frames.save(tmp_path / "a.mp4") == 25  # nothing was taken: another name will do


class Enough(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1, 7, 25])
def test_progress_may_end_the_work(talker, tmp_path, at):
    def told(done: int, total: int) -> None:
        if done == at:
            raise Enough

    (tmp_path / "a.mp4").write_bytes(b"before")
    frames = talker.animate(PICTURE, speech(1), sample_rate=16000)
    with pytest.raises(Enough):
        frames.save(tmp_path / "a.mp4", progress=told)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"before"
    assert len(list(frames)) == (25 if at == 0 else 0)  # none was drawn yet
    assert at == 0 or sum(talker.reenactor.batches) <= at + 4 * (talker.cores.count + 2)
    assert talker.animate(PICTURE, speech(0.4), sample_rate=16000).save(tmp_path / "a.mp4") == 10


def test_closed_frames_are_drawn_no_more(talker):
    with talker.animate(PICTURE, speech(4), sample_rate=16000) as frames:
        next(frames)
    drawn = sum(talker.reenactor.batches)
    assert list(frames) == []
    assert sum(talker.reenactor.batches) == drawn < 100
    assert len(frames) == len(frames.motion) == 100


def test_threads_end_with_their_pipeline():
    def busy() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("mssync-core")}

    before = busy()
    talker = mssync.Pipeline(FakeReenactor(), FakeGenerator(), face_mesh=FakeMesh())
    frames = talker.animate(PICTURE, speech(2), sample_rate=16000)
    next(frames)
    mine = busy() - before
    assert mine
    frames.close()
    del frames, talker
    for thread in mine:
        thread.join(10)
        assert not thread.is_alive()


def test_progress_of_watching_a_video(talker, tmp_path):
    write_video(tmp_path / "a.mp4", [np.full((120, 160, 3), 20 + 6 * t, np.uint8) for t in range(31)], speech(31 / 25))
    told: list[tuple[int, int]] = []
    motion = talker.motion(tmp_path / "a.mp4", progress=lambda *now: told.append(now))
    assert told == [(done, 62) for done in (*range(32), *range(31, 63))]  # one turn to find the face, one to follow it
    np.testing.assert_array_equal(motion, talker.motion(tmp_path / "a.mp4"))

    for at in (0, 9, 40):

        def enough(done: int, total: int, at: int = at) -> None:
            if done == at:
                raise Enough

        with pytest.raises(Enough):
            talker.reenact(PICTURE, tmp_path / "a.mp4", progress=enough)
    assert len(talker.reenact(PICTURE, tmp_path / "a.mp4")) == 31
