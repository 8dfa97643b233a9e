"""Preparing: what is in a shard, that killing a run changes nothing of it, and what becomes of broken files."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeReenactor

from mssync.audio import features
from mssync.data import parts, prepare, shards, workers
from mssync.data.clips import Clip, Entry, read_clips, read_index
from mssync.data.parts import Settings
from mssync.data.readers import Job
from mssync.data.sequences import extract, read_motion, read_sequences
from mssync.data.tracks import Limits
from mssync.errors import InputError
from mssync.face.analyser import FaceMesh
from mssync.faces import mirrored_landmarks

SLOW = bool(os.environ.get("MSSYNC_SLOW"))  # the tests of killed runs on more clips, with more kills
Film = Callable[..., Path]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "report.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def videos(film: Film, portrait: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five films: two plain ones, one with a cut, one of two faces, one that is too short."""
    folder = tmp_path_factory.mktemp("videos")
    film(folder / "one.mp4", 2.4)
    film(folder / "two.mp4", 2.0)
    other = np.ascontiguousarray(portrait[:, ::-1])
    film(folder / "cut.mp4", pictures=[portrait] * 55 + [other] * 20 + [portrait] * 60)
    film(folder / "pair.mp4", pictures=[np.concatenate([portrait, other], 1)] * 50)
    film(folder / "short.mp4", 1.0)
    return folder


@pytest.fixture(scope="module")
def prepared(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "data"
    totals = prepare.prepare([videos], out, Settings(per_shard=3), processes=1)
    assert totals["kept"] == 4
    assert totals["dropped"] == {"more than one face": 2, "too short": 2}
    return out


def test_what_a_folder_holds(prepared: Path) -> None:
    names = {"train-000000.tar", "train-000001.tar", "index.csv", "report.csv", "report.json", "settings.json"}
    assert set(content(prepared)) == names
    assert [entry.name for entry in read_index(prepared)] == ["cut", "cut+1", "one", "two"]
    found = {(row["source"].rsplit("/")[-1], row["start"], row["reason"]) for row in rows(prepared)}
    assert found == {
        ("one.mp4", "0.0", ""), ("two.mp4", "0.0", ""), ("short.mp4", "0.0", "too short"),
        ("cut.mp4", "0.0", ""), ("cut.mp4", "2.2", "too short"), ("cut.mp4", "3.0", ""),
        ("pair.mp4", "0.0", "more than one face"),
    }  # fmt: skip


def test_clips_are_read_at_random(prepared: Path, portrait: np.ndarray) -> None:
    clips = {clip.entry.name: clip for clip in read_clips(prepared, "train")}
    clip = pickle.loads(pickle.dumps(clips["cut+1"]))
    assert (len(clip), clip.entry.stabilised, clip.entry.identity) == (60, False, "cut")
    assert clip.frame(59).shape == (256, 256, 3)
    assert clip.landmarks.shape == (60, 478, 3)
    assert clip.waveform.shape == (60 * 640,)
    assert clip.arrays["audio"].shape == (240, 26)
    (face,) = FaceMesh()(clip.frame(30))
    np.testing.assert_allclose(face.landmarks[:, :2] / 128 - 1, clip.marks(30), atol=0.03)
    x, y, side = clip.arrays["boxes"][30]
    cut = portrait[int(y) : int(y + side), int(x) : int(x + side)].mean((0, 1))
    np.testing.assert_allclose(clip.frame(30).mean((0, 1)), cut, atol=3)
    sound = torch.from_numpy(clip.waveform)
    np.testing.assert_allclose(clip.arrays["audio"], features(sound, n_video_frames=60).numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="read-only"):
        clip.arrays["landmarks"][0] = 0


def test_webdataset_reads_the_shards(prepared: Path) -> None:
    wds = pytest.importorskip("webdataset")
    found = list(wds.WebDataset(str(prepared / "train-{000000..000001}.tar"), shardshuffle=False).decode())
    assert sorted(sample["__key__"] for sample in found) == ["cut", "cut+1", "one", "two"]
    for sample in found:
        about, arrays = sample["json"], sample["npz"]
        assert about["frames"] == len(arrays["landmarks"]) == len(arrays["offsets"]) - 1
        assert (about["corpus"], about["style"], about["features"])[1:] == ("fixed", "logfbank")
        assert len(sample["jpgs"]) == arrays["offsets"][-1]
        clip = next(c for c in read_clips(prepared, "train") if c.entry.name == sample["__key__"])
        assert sample["jpgs"][: arrays["offsets"][1]].startswith(b"\xff\xd8")
        np.testing.assert_array_equal(arrays["landmarks"], clip.arrays["landmarks"])


@pytest.mark.slow
def test_several_processes_and_another_order_give_the_same(videos: Path, prepared: Path, tmp_path: Path) -> None:
    prepare.prepare([videos], tmp_path / "data", Settings(per_shard=3), processes=2)
    assert content(tmp_path / "data") == content(prepared)


@pytest.mark.slow
def test_ray_gives_the_same(videos: Path, prepared: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    for count in (1, 2):
        prepare.prepare([videos], tmp_path / str(count), Settings(per_shard=3), processes=count, ray="local")
        assert content(tmp_path / str(count)) == content(prepared)


def test_a_finished_folder_is_left_alone_and_keeps_to_its_settings(videos: Path, prepared: Path) -> None:
    before = content(prepared)
    assert prepare.prepare([videos], prepared, Settings(per_shard=3))["kept"] == 4
    for settings, what in (
        (Settings(per_shard=4), "another value of per_shard"),
        (Settings(per_shard=3, style="centred"), "another value of style"),
        (Settings(per_shard=3, limits=Limits(min_face=50)), "another value of limits"),
    ):
        with pytest.raises(InputError, match=what):
            prepare.prepare([videos], prepared, settings)
    with pytest.raises(InputError, match="other sources"):
        prepare.prepare([videos / "one.mp4"], prepared, Settings(per_shard=3))
    assert content(prepared) == before


@pytest.mark.parametrize(
    "settings",
    [Settings(style="round"), Settings(features="chroma"), Settings(val=0.6, test=0.5), Settings(per_shard=0)],
)
def test_settings_out_of_range(videos: Path, tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(InputError):
        prepare.prepare([videos], tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_used(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        prepare.prepare([videos], tmp_path / "file")
    (tmp_path / "index.csv").touch()
    with pytest.raises(InputError, match="older version"):
        prepare.prepare([videos], tmp_path)
    with pytest.raises(InputError, match="cannot write"):
        prepare.prepare([videos], "/proc/here")


# Other styles and sources


@pytest.mark.slow
def test_boxes_that_follow_the_face(film: Film, portrait: np.ndarray, tmp_path: Path) -> None:
    film(tmp_path / "walk.mp4", pictures=[np.roll(portrait, t - 30, 1) for t in range(60)])
    prepare.prepare([tmp_path / "walk.mp4"], tmp_path / "fixed", processes=1)
    prepare.prepare([tmp_path / "walk.mp4"], tmp_path / "centred", Settings(style="centred"), processes=1)
    (fixed,), (centred,) = (read_clips(tmp_path / style, "train") for style in ("fixed", "centred"))
    assert (fixed.entry.stabilised, centred.entry.stabilised) == (False, True)
    nose = [clip.landmarks[15:45, 1, 0] for clip in (fixed, centred)]
    assert np.ptp(nose[0]) > 0.2 > 0.05 > np.ptp(nose[1])
    (face,) = FaceMesh()(centred.frame(40))
    np.testing.assert_allclose(face.landmarks[:, :2] / 128 - 1, centred.marks(40), atol=0.03)


@pytest.mark.slow
def test_hdtf_is_cut_and_cropped(film: Film, portrait: np.ndarray, tmp_path: Path) -> None:
    """Ten seconds of two faces, of which the lists want the left one of seconds 4 to 7."""
    pictures = [np.concatenate([np.roll(portrait, t // 5, 1), portrait[:, ::-1]], 1) for t in range(250)]
    film(tmp_path / "Radio1.mp4", pictures=pictures)
    (tmp_path / "RD_annotion_time.txt").write_text("Radio1.mp4 00:04-00:07\n")
    (tmp_path / "RD_crop_wh.txt").write_text("Radio1_0.mp4 0 640 0 640\n")
    (tmp_path / "RD_resolution.txt").write_text("Radio1.mp4 640\n")  # of a video twice as high
    prepare.prepare([tmp_path], tmp_path / "out", processes=1)
    (clip,) = read_clips(tmp_path / "out", "train")
    assert (len(clip), clip.entry.name, clip.entry.corpus) == (75, "RD_Radio1_0", "HDTF")
    assert len(clip.waveform) == 75 * 640
    prepare.prepare([tmp_path / "Radio1.mp4"], tmp_path / "whole", Settings(limits=Limits(single=False)), processes=1)
    whole = read_clips(tmp_path / "whole", "train")
    moving = max(whole, key=lambda c: np.ptp(c.landmarks[:, 1, 0]))
    boxes = [c.arrays["boxes"] for c in (clip, moving)]
    in_source = [
        (c.landmarks[:, 1, :2] + 1) / 2 * box[:, 2:] + box[:, :2] for c, box in zip((clip, moving), boxes, strict=True)
    ]
    np.testing.assert_allclose(in_source[0], in_source[1][100:175], atol=2)
    np.testing.assert_allclose(clip.waveform, moving.waveform[100 * 640 : 175 * 640], atol=1e-3)


@pytest.mark.slow
def test_motion_beside_or_inside_the_shards(videos: Path, prepared: Path, tmp_path: Path, monkeypatch: Any) -> None:
    class Listening(FakeReenactor):
        """Its first keypoint is the first landmark that it is given."""

        def keypoints(self, image: torch.Tensor, landmarks: torch.Tensor | None = None) -> torch.Tensor:
            motion = super().keypoints(image)
            assert landmarks is not None
            motion[:, 0, :2] = landmarks[:, 33, :2]
            return motion

        def named_parameters(self) -> list[tuple[str, torch.Tensor]]:
            return [("detector.a", torch.ones(1))]

        def named_buffers(self) -> list[tuple[str, torch.Tensor]]:
            return []

    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    with pytest.raises(InputError, match="mssync extract"):
        read_sequences(folder, "train", 20)
    extract(folder, Listening(), "mfcc")
    clip = read_clips(folder, "train")[0]
    made = read_motion(clip)
    np.testing.assert_allclose(made["motion"][:, 0, :2], clip.landmarks[:, 33, :2], atol=1e-6)
    np.testing.assert_allclose(made["mirrored"][:, 0, :2], clip.landmarks[:, 263, :2] * [-1, 1], atol=1e-6)
    assert made["audio"].shape == (4 * len(clip), 26)
    assert {s.name for s in read_sequences(folder, "train", 20)} == {"one", "two", "cut", "cut+1"}
    assert set(os.listdir(folder / "motion")) == {"train-000000.tar", "train-000001.tar"}
    before = {p: p.stat().st_mtime_ns for p in (folder / "motion").iterdir()}
    extract(folder, Listening(), "mfcc")
    assert {p: p.stat().st_mtime_ns for p in (folder / "motion").iterdir()} == before
    extract(folder, Listening(), "logfbank")
    assert all(p.stat().st_mtime_ns > before[p] for p in (folder / "motion").iterdir())

    class Talker:
        reenactor = Listening()

    monkeypatch.setattr("mssync.animate.load", lambda name: Talker)
    serial(monkeypatch)
    parts._tools.cache_clear()
    prepare.prepare([videos], tmp_path / "inside", Settings(per_shard=3, model="any"))
    parts._tools.cache_clear()
    assert (tmp_path / "inside" / "offsets.json").is_file()
    for one, two in zip(read_clips(folder, "train"), read_clips(tmp_path / "inside", "train"), strict=True):
        for name, value in read_motion(one).items():
            other = read_motion(two)[name]
            if value.dtype.kind == "f":  # the last digit depends on the number of threads
                np.testing.assert_allclose(value, other, atol=1e-6)
            else:
                assert value == other


def test_mirrored_landmarks_are_those_of_the_mirrored_picture(portrait: np.ndarray) -> None:
    mesh = FaceMesh()
    (face,), (flipped,) = mesh(portrait), mesh(np.ascontiguousarray(portrait[:, ::-1]))
    one, two = (f.landmarks / 160 - np.array([1, 1, 0]) for f in (face, flipped))
    assert np.abs(mirrored_landmarks(one) - two)[:, :2].mean() < 0.012
    np.testing.assert_allclose(mirrored_landmarks(mirrored_landmarks(one)), one)


# Killed runs


def serial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let jobs be done by this process."""

    def in_processes(task: Any, items: list[Any], count: int) -> Iterator[tuple[Any, None]]:
        for item in items:
            task(item)
            yield item, None

    monkeypatch.setattr(workers, "in_processes", in_processes)


class Killed(BaseException):
    pass


def small_clips(job: Job, settings: Settings, tools: Any, scratch: Path, shard: str) -> tuple[list[Any], list[Any]]:
    """In the place of parts._clips_of: as many clips as the last digit of the key says, 3 meaning none."""
    count = int(job.key[-1]) % 3
    names = [f"{job.key}+{n}" for n in range(count)]
    entries = [Entry(name, job.split or "", job.identity, "c", 5, False, str(job.path), shard) for name in names]
    found = [parts._Clip(entry, {"json": b"{}", "jpgs": entry.name.encode() * 300}) for entry in entries]
    kept = [parts.Row(str(job.path), True, "", name=name) for name in names]
    return found, kept or [parts.dropped(job, "no face", "")]


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_step_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every renaming and every removal is a step; the run is killed before and after each, then started again."""
    serial(monkeypatch)
    monkeypatch.setattr(parts, "_clips_of", small_clips)
    source = tmp_path / "videos"
    source.mkdir()
    for number in range(7):
        (source / f"v{number}.mp4").touch()
    settings = Settings(per_shard=2, val=0.3)
    replace, rmtree = os.replace, shutil.rmtree
    left = [10**6]

    def step(action: Callable[..., Any], *words: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        action(*words, **options)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def removed(path: Path, **options: Any) -> None:
        for file in sorted(Path(path).rglob("*"))[::2]:  # half-way
            if file.is_file():
                step(os.unlink, file)
        step(rmtree, path, **options)

    def run(out: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda *words: step(replace, *words))
            patch.setattr(prepare.shutil, "rmtree", removed)
            prepare.prepare([source], out, settings)

    run(tmp_path / "whole")
    wanted, steps = content(tmp_path / "whole"), 10**6 - left[0]
    assert steps > 60
    assert sum(name.endswith(".tar") for name in wanted) >= 4
    for kill in range(1, steps + 1):
        out = tmp_path / f"killed{kill}"
        left[0] = kill
        with pytest.raises(Killed):
            run(out)
        left[0] = 10**6
        run(out)
        assert content(out) == wanted, kill
        rmtree(out)


def killed_and_resumed(command: list[str], kills: int, longest: float, seed: int) -> int:
    """Start a command again and again, killing all its processes after a random time; then let it finish.

    Returns how often it was killed while at work.
    """
    moments, done = random.Random(seed), 0
    environment = {**os.environ, "PYTHONPATH": str(Path(prepare.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    for _ in range(kills):
        process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
        try:
            process.wait(moments.uniform(0, longest))
        except subprocess.TimeoutExpired:
            done += 1
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return done


@pytest.mark.slow
def test_killed_at_random_and_resumed(videos: Path, prepared: Path, data_dir: Path, tmp_path: Path) -> None:
    """With MSSYNC_SLOW: twelve real clips, killed ten times. Without: the made-up ones, three times."""
    sources, kills, wanted = [videos], 3, prepared
    if SLOW:
        sources = sorted(data_dir.glob("clips/grid_s1_*.mp4"))[:12]
        kills, wanted = 10, tmp_path / "whole"
        prepare.prepare(sources, wanted, Settings(per_shard=3), processes=2)
    out = tmp_path / "killed"
    words = ["preprocess", *map(str, sources), "-o", str(out), "--per-shard", "3", "--workers", "2"]
    start = time.monotonic()
    done = killed_and_resumed([sys.executable, "-m", "mssync.cli", *words], kills, longest=4.0, seed=1)
    print(f"killed {done} times in {time.monotonic() - start:.0f} s")
    assert done >= kills - 2
    assert content(out) == content(wanted)


@pytest.mark.slow
def test_interrupted_and_resumed(videos: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serial(monkeypatch)

    def interrupted(*_: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        patch.setattr(workers, "in_processes", interrupted)
        with pytest.warns(UserWarning, match="goes on where this one stopped"), pytest.raises(KeyboardInterrupt):
            prepare.prepare([videos], tmp_path / "data", Settings(per_shard=3))
    prepare.prepare([videos], tmp_path / "data", Settings(per_shard=3))
    assert content(tmp_path / "data") == content(prepared)


@pytest.mark.slow
def test_people_in_several_splits_are_told(film: Film, tmp_path: Path) -> None:
    for name in "ab":
        film(tmp_path / f"{name}.mp4", 1.0)
    (tmp_path / "manifest.csv").write_text("file,split,identity\na.mp4,train,ann\nb.mp4,test,ann\n")
    limits = Limits(min_seconds=0.5)
    with pytest.warns(UserWarning, match="1 identities were in several splits .*: ann"):
        totals = prepare.prepare([tmp_path], tmp_path / "out", Settings(limits=limits), processes=1)
    assert totals["moved_identities"] == ["ann"]
    assert {entry.split for entry in read_index(tmp_path / "out")} == {"test"}


def test_two_runs_do_not_share_a_folder(videos: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "parts").mkdir()
    with (tmp_path / "parts" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run is at work"):
            prepare.prepare([videos], tmp_path)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(
    videos: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serial(monkeypatch)
    clips_of = parts._clips_of

    def full(job: Job, *words: Any) -> Any:
        if job.key == "two":
            raise OSError(28, "No space left on device")
        return clips_of(job, *words)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "_clips_of", full)
        with pytest.raises(OSError, match="No space left"):
            prepare.prepare([videos], tmp_path / "data", Settings(per_shard=3))
    prepare.prepare([videos], tmp_path / "data", Settings(per_shard=3))
    assert content(tmp_path / "data") == content(prepared)


# Broken files


def broken(folder: Path, good: Path, tone: Callable[..., np.ndarray], make_sound: Any, make_video: Any) -> int:
    """Twenty files that are called like videos and cannot be used; returns their number."""
    whole = good.read_bytes()
    contents: dict[str, bytes] = {
        "empty.mp4": b"",
        "text.mp4": b"not a video\n" * 100,
        "noise.mp4": random.Random(0).randbytes(50_000),
        "zeros.mkv": bytes(20_000),
        "truncated.mp4": whole[: len(whole) // 2],
        "head.mp4": whole[:40],
        "no_head.mp4": whole[1000:],
        "page.webm": b"<html><body>404 Not Found</body></html>",
        "playlist.mp4": b"#EXTM3U\nhttp://example.invalid/a.ts\n",
        "table.avi": b"RIFF\x00\x00\x00\x00AVI LIST",
        "holes.mp4": whole[:200] + bytes(len(whole) - 200),
        "scrambled.mp4": whole[:100] + random.Random(1).randbytes(len(whole) - 100),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    sound = make_sound("tone.wav", tone(3, 16000), 16000)
    shutil.copy(sound, folder / "sound_only.mp4")
    from PIL import Image

    Image.new("RGB", (300, 300)).save(folder / "picture.png")
    (folder / "picture.png").rename(folder / "picture.mp4")
    Image.new("RGB", (300, 300)).save(folder / "photo.jpg")
    (folder / "photo.jpg").rename(folder / "photo.mov")
    (folder / "folder.mp4").mkdir()
    (folder / "broken_link.mp4").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.mp4")
    times = [t / 25 for t in range(75)]
    shutil.move(make_video("mute.mp4", [90] * 75, times), folder / "mute.mp4")
    shutil.move(make_video("grey.mp4", [90] * 75, times, sound=tone(3, 48000)), folder / "grey.mp4")
    return len(contents) + 8


@pytest.mark.slow
def test_broken_files_are_reported_and_skipped(
    film: Film, tone: Any, make_sound: Any, make_video: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    film(folder / "good.mp4")
    count = broken(folder, folder / "good.mp4", tone, make_sound, make_video)
    assert count == 20
    totals = prepare.prepare([folder], tmp_path / "out", processes=2)
    assert (totals["kept"], totals["sources"]) == (1, 21)
    found = {Path(row["source"]).name: row for row in rows(tmp_path / "out")}
    assert len(found) == 21
    assert found.pop("good.mp4")["kept"] == "True"
    reasons = {name: row["reason"] for name, row in found.items()}
    assert reasons.pop("mute.mp4") == "no sound"
    assert reasons.pop("grey.mp4") == "no face"
    assert set(reasons.values()) == {"unreadable"}
    assert all(row["detail"] for name, row in found.items() if row["reason"] == "unreadable"), found
    assert not any(str(folder) in row["detail"] for row in found.values())


@pytest.mark.slow
def test_damaged_videos_come_out_the_same_every_time(film: Film, tmp_path: Path) -> None:
    data = bytearray(film(tmp_path / "a.mp4", 6.0).read_bytes())
    moments = random.Random(3)
    for _ in range(40):
        data[moments.randrange(2000, len(data) - 8000)] = moments.randrange(256)
    (tmp_path / "a.mp4").write_bytes(data)
    seen = parts._Seen(Job(tmp_path / "a.mp4", "a", "train", "a", "c"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len({hashlib.sha256(b"".join(frame.tobytes() for frame in seen)).digest() for _ in range(6)}) == 1


def test_files_without_permission_are_reported(unprivileged: Path) -> None:
    job = Job(unprivileged / "file.wav", "file", "train", "a", "c")
    with pytest.raises(InputError) as raised:
        parts._Seen(job)
    assert parts._told(raised.value, job.path) == ("unreadable", "cannot be read: permission denied")


@pytest.mark.slow
def test_nothing_that_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("text")
    totals = prepare.prepare([tmp_path], tmp_path / "out", processes=1)
    assert (totals["kept"], totals["dropped"]) == (0, {"unreadable": 1})
    with pytest.raises(InputError, match="no clips of the split 'train'"):
        read_clips(tmp_path / "out", "train")


def test_damaged_shards_are_told(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "data")
    entry = read_index(tmp_path / "data")[0]
    (tmp_path / "data" / entry.shard).write_bytes(b"no tar" * 100)
    with pytest.raises(InputError, match="damaged"):
        Clip(tmp_path / "data", entry).frame(0)
    (tmp_path / "data" / entry.shard).unlink()
    with pytest.raises(InputError, match="missing"):
        Clip(tmp_path / "data", entry).frame(0)
    (tmp_path / "data" / "index.csv").write_text("name,split\na,train\n")
    with pytest.raises(InputError, match="damaged"):
        read_clips(tmp_path / "data", "train")


def test_reports_are_for_machines_too(prepared: Path) -> None:
    totals = json.loads((prepared / "report.json").read_text(encoding="utf-8"))
    assert totals["splits"]["train"] == {"clips": 4, "seconds": 9.0, "identities": 3}
    assert shards.members(prepared / "train-000000.tar")
