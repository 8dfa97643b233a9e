"""`mssync score` and `mssync resync`: words, reports, and files whose sound is moved."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from mssync import cli
from mssync import meter as m
from mssync.audio import load_audio
from mssync.errors import InputError
from mssync.metrics import recovery
from mssync.sync import score
from mssync.sync.resync import resync, shift_sound
from mssync.sync.score import Score, in_words
from mssync.video import VideoReader


def reading(milliseconds: float, probability: float = 0.95) -> m.Reading:
    offsets = np.arange(-60, 61) * 10
    return m.Reading(milliseconds, 3.0, probability, offsets, -np.abs(offsets - milliseconds))


def a_score(path: str = "a.mp4", milliseconds: float = 80, probability: float = 0.95, drift: float = 0) -> Score:
    offsets = np.arange(-15, 16)
    curve = 1.3 - 0.2 * (offsets == 2)
    levels = [m.LevelScore(n, 100 * 2**n, offsets, curve, 2, 0.2) for n in (1, 2)]
    times = [(3.0 + t, reading(milliseconds + drift * t, probability)) for t in range(5)]
    return Score(path, 10.0, reading(milliseconds, probability), levels, levels[:1], times)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command with a meter that reads offsets off the files' names: "lead80.mp4"."""
    monkeypatch.chdir(tmp_path)

    def fake(path, meter, max_offset=15):
        if "fault" in path.name:
            raise AttributeError("nothing of this name")
        if "bad" in path.name:
            raise InputError(f"{path} shows no face that can be followed")
        return a_score(str(path), float(path.stem.split("_")[1]), 0.3 if "unsure" in path.name else 0.95)

    monkeypatch.setattr(score, "score", fake)
    monkeypatch.setattr("mssync.sync.resync.score", fake)
    monkeypatch.setattr(m.SyncMeter, "load", classmethod(lambda cls, path=None: None))
    return lambda *words: CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [(80, "sound leads by 80 ms"), (-40.4, "sound is late by 40 ms"), (-20, "in sync (within 20 ms)"), (0, "in sync")],
)
def test_words(milliseconds, words):
    assert in_words(milliseconds).startswith(words)


def test_verdicts():
    assert a_score(probability=0.3).says.startswith("cannot tell (probability 0.30)")
    assert a_score().drift_in_words == "over time: steady"
    assert a_score(drift=-30).drift_in_words == "over time: the offset drifts by -120 ms"
    unsteady = replace(a_score(drift=-30), reading=reading(0, 0.3))
    assert unsteady.says == "no one offset fits (probability 0.30); over time: the offset drifts by -120 ms"
    assert "too few" in a_score(probability=0.3).drift_in_words


def test_reports(tmp_path):
    told = json.loads(json.dumps(score.as_json(a_score())))
    assert (told["offset_ms"], told["says"], told["can_tell"]) == (80, "sound leads by 80 ms", True)
    assert told["lips"][1] | {"curve": 0, "offsets_frames": 0} == {
        "window_ms": 400, "frame_ms": 80, "offset_frames": 2, "offset_ms": 160, "confidence": 0.2,
        "curve": 0, "offsets_frames": 0,
    }  # fmt: skip
    assert len(told["over_time"]) == 5
    row = score.as_row(a_score())
    assert row["lips_400ms_offset_ms"] == 160
    assert "head_200ms_confidence" in row
    score.plot([a_score(), a_score(probability=0.3)], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="too many"):
        score.plot([a_score()] * 13, tmp_path / "b.png")


def test_score_command(run, tmp_path):
    for name in ("x_80.mp4", "y_-40.mp4", "bad_1.mp4", "notes.txt"):
        (tmp_path / name).touch()
    done = run("score", tmp_path, "--json", "a.json", "--csv", "a.csv", "--plot", "a.png")
    assert done.exit_code == 2  # one of them is of no use
    assert "x_80.mp4: sound leads by 80 ms (probability 0.95); over time: steady" in done.output
    assert "y_-40.mp4: sound is late by 40 ms" in done.output
    assert "error:" in done.output
    assert "bad_1.mp4 shows no face" in done.output
    told = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert [len(told[key]) for key in ("videos", "failed")] == [2, 1]
    table = rows(tmp_path / "a.csv")
    assert [(Path(row["file"]).name, row["says"][:5]) for row in table] == [
        ("bad_1.mp4", ""), ("x_80.mp4", "sound"), ("y_-40.mp4", "sound"),
    ]  # fmt: skip
    assert "shows no face" in table[0]["error"] == told["failed"][0]["error"]
    assert table[1]["error"] == table[2]["error"] == ""
    assert (tmp_path / "a.png").exists()
    one = run("score", "x_80.mp4")
    assert one.exit_code == 0
    assert "+2 of 80 ms" in one.output
    alone = run("score", "bad_1.mp4")
    assert (alone.exit_code, alone.output.count("\n")) == (2, 1)
    (tmp_path / "empty").mkdir()
    assert "no videos" in run("score", "empty").output


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_short_and_long_videos_share_a_table(run, tmp_path, monkeypatch):
    """A short video has fewer time scales than the next one."""
    short = replace(a_score("a_1.mp4"), lips=a_score().lips[:1], head=[])
    scores = {"a_1.mp4": short, "b_1.mp4": a_score("b_1.mp4")}
    monkeypatch.setattr(score, "score", lambda path, meter, max_offset=15: scores[path.name])
    for name in scores:
        (tmp_path / name).touch()
    assert run("score", *scores, "--csv", "a.csv").exit_code == 0
    table = rows(tmp_path / "a.csv")
    assert [row["lips_400ms_offset_ms"] for row in table] == ["", "160"]


def test_a_folder_of_one_bad_video_has_a_row(run, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "bad_1.mp4").touch()
    assert run("score", "videos", "--csv", "a.csv").exit_code == 2
    assert "shows no face" in rows(tmp_path / "a.csv")[0]["error"]


@pytest.mark.parametrize("command", [["score"], ["resync", "-o", "out"]])
def test_a_fault_of_ours_does_not_keep_the_others_back(run, clicks, tmp_path, command):
    (tmp_path / "videos").mkdir()
    for name in ("a_fault_1.mp4", "b_80.mp4"):
        clicks(name).rename(tmp_path / "videos" / name)
    done = run(*command, "videos", "--csv", "a.csv")
    assert done.exit_code == 2
    table = rows(tmp_path / "a.csv")
    assert table[0]["error"].endswith("a_fault_1.mp4: AttributeError: nothing of this name")
    assert "sound leads by 80 ms" in table[1]["says"]


def test_resync_refuses(run, tmp_path):
    (tmp_path / "unsure_80.mp4").write_bytes(b"x")
    done = run("resync", "unsure_80.mp4", "-o", "out.mp4")
    assert done.exit_code == 2
    assert "cannot tell (probability 0.30)" in done.output
    assert not (tmp_path / "out.mp4").exists()
    assert "also an input" in run("resync", "unsure_80.mp4", "-o", "unsure_80.mp4").output
    assert "must end in one of" in run("resync", "unsure_80.mp4", "-o", "out.avi").output
    assert "give the output, -o OUT.mp4" in run("resync", "unsure_80.mp4").output
    for words in (["--offset", "nan"], ["--offset", "60001"]):
        assert "between -60000 and 60000 ms" in run("resync", "unsure_80.mp4", "-o", "out.mp4", *words).output
    both = run("resync", "unsure_80.mp4", "-o", "out.mp4", "--offset", "80", "--max-offset", "20")
    assert "not measured" in both.output
    assert "one video has none" in run("resync", "unsure_80.mp4", "-o", "out.mp4", "--csv", "a.csv").output
    with pytest.raises(InputError, match="also an input"):
        resync(tmp_path / "unsure_80.mp4", tmp_path / "unsure_80.mp4", None)
    with pytest.raises(InputError, match="not as bytes"):
        resync(b"video", tmp_path / "out.mp4", None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["unsure_80.mp4"]


# Moving sound


@pytest.fixture
def clicks(make_video):
    """clicks(name, start=0, ...): a second of speech-like noise bursts at 1 s in a video of 3 s."""

    def make(name: str, **options) -> Path:
        sound = np.zeros(3 * 48000, np.float32)
        sound[48000:60000] = 0.3 * np.random.default_rng(0).standard_normal(12000)
        return make_video(name, list(range(10, 235, 3)), [t / 25 for t in range(75)], sound, **options)

    return make


def onset(path: Path) -> float:
    """Seconds from the first picture to the burst."""
    loud = np.abs(load_audio(path)) > 0.05
    return float(np.flatnonzero(loud)[0]) / 16000


def pictures(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]


@pytest.mark.parametrize("milliseconds", [-600, -130, 0, 45, 400])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_sound_moves_and_pictures_stay(clicks, tmp_path, name, milliseconds):
    source = clicks(name)
    assert shift_sound(source, tmp_path / "out.mp4", milliseconds) == "copied"
    assert onset(tmp_path / "out.mp4") - onset(source) == pytest.approx(milliseconds / 1000, abs=0.002)
    assert sum(1 for _ in VideoReader(tmp_path / "out.mp4")) == 75
    if name == "a.mp4":
        assert pictures(tmp_path / "out.mp4") == pictures(source)


@pytest.mark.parametrize("start", [-0.5, 0.3])
def test_sound_that_does_not_start_with_the_picture(clicks, tmp_path, start):
    source = clicks("a.mkv", sound_start=max(start, 0))
    shift_sound(source, tmp_path / "once.mkv", 1000 * start)
    shift_sound(tmp_path / "once.mkv", tmp_path / "twice.mp4", -250)
    assert onset(tmp_path / "twice.mp4") - onset(source) == pytest.approx(start - 0.25, abs=0.003)


def test_sound_that_the_container_cannot_hold(clicks, tmp_path):
    source = clicks("a.mkv", sound_codec="pcm_s16le")
    assert shift_sound(source, tmp_path / "out.mp4", 200) == "encoded"
    assert onset(tmp_path / "out.mp4") - onset(source) == pytest.approx(0.2, abs=0.005)
    with pytest.raises(InputError, match="cannot hold its picture"):
        shift_sound(clicks("b.mp4"), tmp_path / "out.webm", 200)


def test_rotation_and_metadata_stay(clicks, tmp_path):
    source = clicks("a.mp4")
    with av.open(str(source)) as old, av.open(str(tmp_path / "turned.mp4"), "w") as new:
        new.metadata["title"] = "a title"
        tracks = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = tracks[packet.stream.index]
                new.mux(packet)
    raw = (tmp_path / "turned.mp4").read_bytes()
    at = raw.index(b"tkhd")  # of the picture, the first track: the matrix lies 44 bytes behind
    turn = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    (tmp_path / "turned.mp4").write_bytes(raw[: at + 44] + turn + raw[at + 80 :])
    before = VideoReader(tmp_path / "turned.mp4")
    assert (before.width, before.height) == (48, 64)
    shift_sound(tmp_path / "turned.mp4", tmp_path / "out.mp4", 80)
    after = VideoReader(tmp_path / "out.mp4")
    assert (after.width, after.height) == (48, 64)
    np.testing.assert_array_equal(next(iter(after)), next(iter(before)))
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.metadata["title"] == "a title"


def test_videos_that_cannot_be_mended(make_video, make_sound, tone, tmp_path):
    mute = make_video("mute.mp4", [1, 2, 3], [0, 0.04, 0.08])
    with pytest.raises(InputError, match="no sound"):
        shift_sound(mute, tmp_path / "out.mp4", 80)
    with pytest.raises(InputError, match="no picture"):
        shift_sound(make_sound("a.wav", tone(1, 16000), 16000), tmp_path / "out.mp4", 80)
    assert not (tmp_path / "out.mp4").exists()


# By hand, and whole folders


def test_resync_by_hand(clicks, tmp_path, monkeypatch):
    monkeypatch.setattr("mssync.sync.resync.score", lambda *_: pytest.fail("measured"))
    source = clicks("a.mp4")
    done = CliRunner().invoke(cli.app, ["resync", str(source), "-o", str(tmp_path / "out.mp4"), "--offset", "-15"])
    assert done.exit_code == 0, done.output
    assert done.output.strip().endswith("offset given as -15 ms: moved, picture and sound copied")
    assert onset(tmp_path / "out.mp4") - onset(source) == pytest.approx(-0.015, abs=0.002)
    assert resync(source, tmp_path / "again.mp4", offset=80).probability is None
    assert onset(tmp_path / "again.mp4") - onset(source) == pytest.approx(0.08, abs=0.002)


def test_dry_run_writes_nothing(run, clicks, tmp_path):
    for name in ("a_80.mp4", "b_-10.mp4", "c_90.mp4"):
        clicks(name)
    assert "its sound would be moved by +80 ms" in run("resync", "a_80.mp4", "--dry-run").output
    assert "its sound would be moved by -33 ms" in run("resync", "a_80.mp4", "--dry-run", "--offset", "-33").output
    assert "would be copied as it is" in run("resync", "b_-10.mp4", "--dry-run", "-o", "out.mp4").output
    whole = run("resync", tmp_path, "--dry-run", "-o", "out")
    assert (whole.exit_code, whole.output.count("would be")) == (0, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_80.mp4", "b_-10.mp4", "c_90.mp4"]


def test_resync_of_a_folder(run, clicks, make_video, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("lead_80.mp4", "unsure_40.mkv", "fine_10.mp4"):
        clicks(name).rename(tmp_path / "in" / name)
    make_video("mute_80.mp4", [1, 2, 3], [0, 0.04, 0.08]).rename(tmp_path / "in" / "mute_80.mp4")
    (tmp_path / "in" / "bad_1.mp4").write_bytes(b"x")
    done = run("resync", "in", "-o", "deep/out", "--csv", "a.csv")
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 5
    assert sorted(p.name for p in (tmp_path / "deep" / "out").iterdir()) == ["fine_10.mp4", "lead_80.mp4"]
    moved = onset(tmp_path / "deep" / "out" / "lead_80.mp4") - onset(tmp_path / "in" / "lead_80.mp4")
    assert moved == pytest.approx(0.08, abs=0.002)
    table = {Path(row["file"]).name: row for row in rows(tmp_path / "a.csv")}
    assert table["lead_80.mp4"]["offset_ms"] == "80.0"
    assert table["fine_10.mp4"]["says"].endswith("copied as it was")
    assert "no sound" in table["mute_80.mp4"]["error"]
    assert "cannot tell" in table["unsure_40.mkv"]["error"]
    for output, words in (("in", "also the input"), ("a.csv", "is a file"), ("a.csv/x", "cannot be made")):
        refused = run("resync", "in", "-o", output)
        assert (refused.exit_code, words in refused.output) == (2, True), refused.output


def test_videos_that_would_get_one_name(run, clicks, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a_80.avi", "a_80.mkv"):
        clicks("a.mkv").rename(tmp_path / "in" / name)
    done = run("resync", "in", "-o", "out")
    assert done.exit_code == 2
    assert "another video of this name" in done.output
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a_80.mkv"]


# Known offsets


def test_shifted_clips():
    marks, sound = np.arange(50)[:, None, None] * np.ones((1, 478, 3)), np.repeat(np.arange(50), 640)
    for shift in (-8, 0, 3):  # a positive shift: at every frame one hears what is seen so many frames later
        seen, heard = recovery.shifted(marks, sound, shift)
        np.testing.assert_array_equal(heard[::640] - seen[:, 0, 0], shift)


def test_summary_counts_clips():
    def trial(name: str, shift: int, measured: float, own: float = 0.0, sure: bool = True, seconds: float = 5.0):
        return recovery.Trial(name, "", "shifted", seconds, shift, measured, own, 0.9, sure)

    trials = [trial("a", 2, 2.4), trial("a", -3, 7, sure=False), trial("b", 1, 4.2, own=3.0, seconds=2)]
    table = recovery.summary(trials)
    assert table["all"]["within 1"].value == pytest.approx((0.5 + 0) / 2)
    assert table["all"]["within 1 of own"].value == pytest.approx((0.5 + 1) / 2)
    assert table["4 s or more"]["within 1"].clips == 1
    assert table["all"]["right where sure"].value == 1


def test_conditions_keep_time(clicks, tmp_path):
    """The burst stays where it is among the pictures, whatever the frame rate."""
    source = clicks("a.mp4")
    for name in ("29.97 fps", "50 fps", "variable"):
        recovery.encode_again(source, tmp_path / "out.mp4", recovery.CONDITIONS[name])
        assert onset(tmp_path / "out.mp4") == pytest.approx(onset(source), abs=0.01)
        levels = np.array([frame.mean() for frame in VideoReader(tmp_path / "out.mp4")])[:75]
        assert abs(len(levels) - 75) <= 1
        shown = (levels - 10) / 3  # three grey levels more a frame
        behind = np.arange(len(shown)) - shown
        assert abs(behind.mean()) < (0.7 if name == "variable" else 0.4)
        assert np.abs(behind).max() < (4 if name == "variable" else 1.4)  # runs of frames are missing there


def test_real_offset_is_mended(data_dir, tmp_path):
    """A real clip: shifted, mended, and then measured in sync."""
    source = data_dir / "clips" / "lrs3_003.mp4"
    shift_sound(source, tmp_path / "late.mp4", 240)
    meter = m.SyncMeter.load()
    assert "sound is late" in resync(tmp_path / "late.mp4", tmp_path / "out.mp4", meter).says
    seen = m.watch(tmp_path / "out.mp4", m.POINTS)
    assert meter.offset(seen.landmarks, seen.waveform).milliseconds == pytest.approx(0, abs=40)
