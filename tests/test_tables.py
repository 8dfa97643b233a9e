"""Tables 1 to 3: the protocol on small videos, and the tables as text."""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeClip, FakeGenerator, FakeMesh, FakeReenactor, speech
from torch import nn
from typer.testing import CliRunner, Result

from mssync import cli
from mssync.animate import Pipeline
from mssync.errors import InputError
from mssync.meter import SyncMeter, Watched
from mssync.metrics import outputs, protocol
from mssync.metrics.protocol import (
    GROUND_TRUTH,
    RANDOM,
    STILL,
    Take,
    head_table,
    held_still,
    matched,
    picture_table,
    read_takes,
    sign_flip_p,
    sync_table,
    with_other_sound,
)
from mssync.metrics.syncnet import SyncNet
from mssync.metrics.tables import (
    COLUMNS,
    PAPER_FILE,
    Cell,
    Row,
    Table,
    as_csv,
    cell,
    latex,
    markdown,
    paper_rows,
    write,
)
from mssync.video import VideoReader, probe, write_video

ROOT = Path(__file__).resolve().parents[1]
PAPER = Path(os.environ.get("MSSYNC_SPEC", ROOT.parent / "shared" / "spec")) / "paper.txt"


# Text


def example() -> Table:
    rows = [
        Row(GROUND_TRUTH, {"av_off": cell([0, 1, 2, 1]), "av_conf": cell([6.0, 7, 8, 7]), "lmd": Cell(0.0)}),
        Row("A_1", {"av_off": Cell(2.5, 0.25, 2, 3, 4), "av_conf": Cell(5.0, 1, 4, 6, 4)}, ranked=True),
        Row("B", {"av_off": Cell(1.25, 0.5, 1, 2, 4), "av_conf": Cell(math.nan)}, ranked=True),
        Row("C", {"av_off": Cell(4.0, 0.5, 3, 5, 4), "av_conf": Cell(4.0, 1, 3, 5, 4)}, ranked=True),
    ]
    return Table("Example", rows, p={"av_off": 0.0123}, notes=["Four clips."])


def test_markdown_prints_mean_and_deviation_as_the_paper() -> None:
    lines = markdown(example()).splitlines()
    assert lines[2] == r"| Method | \|AV-Off\| ↓ | AV-Conf ↑ | LMD ↓ |"
    assert lines[4] == "| Ground truth | 1.00 ± 0.71 | 7.00 ± 0.71 | 0.00 |"
    assert lines[5] == "| A_1 | <u>2.50 ± 0.25</u> | **5.00 ± 1.00** | – |"
    assert lines[6] == "| B | **1.25 ± 0.50** | – | – |"
    assert lines[8] == "| p, ground truth against random | 0.012 | – | – |"
    assert lines[-1] == "Four clips."


def test_latex_has_as_many_cells_in_every_line() -> None:
    text = latex(example())
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert all(line.count("&") == 3 for line in lines)
    assert r"A\_1 & \underline{2.50$\pm$0.25} & \textbf{5.00$\pm$1.00} & --" in text
    assert r"\begin{tabular}{lccc}" in text


def test_csv_holds_unrounded_numbers_and_clips() -> None:
    rows = list(csv.DictReader(as_csv(example()).splitlines()))
    assert rows[0]["mean"] == "1"
    assert rows[0]["std"] == "0.707107"
    assert rows[0]["clips"] == "4"
    assert float(rows[0]["low"]) < 1 < float(rows[0]["high"])
    assert rows[-1] == dict(
        zip(rows[0], ("p, ground truth against random", "av_off", "0.0123", "", "", "", ""), strict=True)
    )


def test_formats_follow_the_files_name(tmp_path: Path) -> None:
    for suffix, start in ((".md", "**Example**"), (".csv", "method,figure"), (".tex", "% Four clips.")):
        write(example(), tmp_path / f"table{suffix}")
        assert (tmp_path / f"table{suffix}").read_text(encoding="utf-8").startswith(start)
    with pytest.raises(InputError, match=r"must end in \.md, \.csv, \.tex"):
        write(example(), tmp_path / "table.txt")


def test_the_papers_numbers_are_the_papers() -> None:
    """Every number stands in the paper's text, in its own table, in the line of its method and at its place there."""
    if not PAPER.is_file():
        pytest.skip(f"no paper at {PAPER}; set MSSYNC_SPEC to its folder")
    text = PAPER.read_text(encoding="utf-8")
    plain = re.sub(r"\\(mathbf|textbf|underline)|[${}]|\\begin array.*?\\\\hline", "", text).replace("\\pm", "±")
    plain = re.sub(r"\s*±\s*", "±", plain)
    with PAPER_FILE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 * 6 + 10 * 6 + 6
    assert {row["figure"] for row in rows} <= set(COLUMNS)
    for table in ("table1", "table2", "table3"):
        begin = plain.index(f"Table {table[-1]}. ")
        part = plain[begin : begin + 2500]
        for row in (row for row in rows if row["table"] == table):
            number = row["mean"] + (f"±{row['std']}" if row["std"] else "")
            assert number in part, row
    for table in (1, 2):  # whole lines, where the text keeps them in one
        begin = plain.index(f"Table {table}. ")
        for method in ("Wav2Lip", "EAMM", "IP_LAP", "SadTalker") if table == 1 else ():
            line = next(line for line in plain[begin:].splitlines() if line.startswith(method))
            found = re.findall(r"(\d+\.\d+)±(\d+\.\d+)", line)
            own = [(r["mean"], r["std"]) for r in rows if r["table"] == f"table{table}" and r["method"] == method]
            assert found == own


def test_paper_rows_are_named_by_method_and_dataset() -> None:
    found = {row.name: row for row in paper_rows("table1")}
    assert len(found) == 20
    assert found["MS-Sync (paper, VoxCeleb2 (I))"].cells["av_off"] == Cell(1.0, 1.64)
    assert not any(row.ranked for row in found.values())


# Takes


def take(clip: int, frames: int = 40, sound: int | None = None) -> Take:
    r = np.random.default_rng(clip)
    marks = (100 + 50 * r.standard_normal((frames, 478, 3))).astype(np.float32)
    waveform = np.full((sound or frames) * 640, clip, np.float32)
    return Take(Path(f"{clip}.mp4"), 0, marks, np.ones(frames, bool), waveform, (256, 256))


def test_random_pairs_are_of_different_clips_and_long_enough() -> None:
    takes = {str(i): [take(i, sound=40 if i % 2 else 30)] for i in range(6)} | {"long": [take(9), take(10)]}
    shuffled = with_other_sound(takes)
    assert list(shuffled) == list(takes)
    for clip, found in shuffled.items():
        for own, other in zip(takes[clip], found, strict=True):
            assert other.waveform[0] not in {float(t.waveform[0]) for t in takes[clip]}
            assert len(other.waveform) == len(own.waveform)
            np.testing.assert_array_equal(other.landmarks, own.landmarks)
    assert with_other_sound({"only": [take(1), take(2)]}) == {}


def test_still_takes_repeat_the_first_frame() -> None:
    (found,) = held_still({"a": [take(1)]})["a"]
    assert (found.landmarks == found.landmarks[0]).all()
    assert len(found) == 40


def test_p_of_paired_differences_against_all_sign_flips() -> None:
    differences = np.array([-1.0, -2, -2, -3, -1, 0, -4, 1])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T
    exact = (np.abs((signs * differences).mean(1)) >= abs(differences.mean())).mean()
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p(np.tile([1.0, -1], 10)) == 1
    assert sign_flip_p(np.full(20, -1.0)) < 0.001


# Folders


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory, film: Callable[..., Path]) -> Path:
    """A folder with the clips a, b and c of 3.4 s, small, of squares that wander."""
    folder = tmp_path_factory.mktemp("films")
    for clip in "abc":
        r = np.random.default_rng(ord(clip))
        scene = r.integers(0, 255, (8, 8, 3), np.uint8).repeat(12, 0).repeat(12, 1)
        film(folder / f"{clip}.mp4", pictures=[np.roll(scene, t % 24, 1) for t in range(85)])
    return folder


@pytest.fixture
def folders(tmp_path: Path, films: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Real clips a, b, c, and a system with the same pictures; faces are made up, different for every file."""
    for part in ("real", "ours"):
        shutil.copytree(films, tmp_path / part)
    monkeypatch.setattr(protocol, "SIZE", 48)

    def watch(path: Path) -> Watched:
        frames = round(25 * VideoReader(path).duration)
        r = np.random.default_rng(sum(f"{path.parent.name}/{path.name}".encode()))
        marks = 48 + 20 * np.random.default_rng(0).uniform(-1, 1, (1, 478, 3))
        marks = marks + r.standard_normal((frames, 1, 3)).cumsum(0) + 0.5 * r.standard_normal((frames, 478, 3))
        waveform = r.standard_normal(640 * frames).astype(np.float32) * 0.1
        return Watched(path, marks.astype(np.float32), np.ones(frames, bool), waveform)

    monkeypatch.setattr(protocol, "watch", watch)
    return {"real": tmp_path / "real", "ours": tmp_path / "ours"}


def test_videos_are_matched_by_name(folders: dict[str, Path]) -> None:
    (folders["ours"] / "a.mp4").rename(folders["ours"] / "odd.mp4")
    with pytest.warns(UserWarning, match="no real video for odd"), pytest.warns(UserWarning, match="no video for a"):
        found, real = matched({"ours": folders["ours"]}, folders["real"])
    assert set(found["ours"]) == {"b", "c"}
    assert set(real) == {"a", "b", "c"}
    other = folders["real"] / "other"
    other.mkdir()
    shutil.copy(folders["real"] / "a.mp4", other / "x.mp4")
    with pytest.raises(InputError, match="no file names in common"):
        matched({"ours": folders["ours"]}, other)
    with pytest.raises(InputError, match="holds no videos"):
        matched({"ours": folders["real"].parent}, None)
    with pytest.raises(InputError, match="cannot be called 'Random'"):
        matched({RANDOM: folders["ours"]}, folders["real"])


def test_stretches_of_a_video(folders: dict[str, Path]) -> None:
    videos = {"a": folders["real"] / "a.mp4"}
    first = read_takes(videos, 40, "x")["a"]
    assert [len(t) for t in first] == [40]
    both = read_takes(videos, 40, "x", every=True)["a"]
    assert [(t.start, len(t), len(t.waveform)) for t in both] == [(0, 40, 25600), (40, 40, 25600)]
    assert len(list(both[1].frames())) == 40
    np.testing.assert_array_equal(next(both[1].frames()), list(VideoReader(videos["a"]))[40])
    assert [len(t) for t in read_takes(videos, 120, "x")["a"]] == [85]
    with pytest.warns(UserWarning, match="85 frames, 120 are needed"), pytest.raises(InputError, match="none of"):
        read_takes(videos, 120, "x", whole=True)


def test_table1_by_the_meter(folders: dict[str, Path]) -> None:
    table = sync_table({"ours": folders["ours"]}, folders["real"], meter=SyncMeter().eval())
    assert [row.name for row in table.rows] == [GROUND_TRUTH, RANDOM, STILL, "ours"]
    assert table.columns == ["lips_off", "lips_conf", "lmd", "lmd_eyes", "mouth_r"]
    assert table.rows[0].cells["lmd"].mean == 0
    assert table.rows[3].cells["lmd"].mean > 0
    assert table.rows[3].cells["lips_off"].clips == 3
    assert "not SyncNet" in table.notes[0]


def test_table1_by_syncnet_of_any_folder(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SYNC_FRAMES", 12)
    for clip in "bc":
        (folders["ours"] / f"{clip}.mp4").unlink()
    table = sync_table({"ours": folders["ours"]}, syncnet=SyncNet())
    assert [row.name for row in table.rows] == ["ours"]
    assert table.columns == ["av_off", "av_conf", "lse_d"]


def test_table2_compares_with_random(folders: dict[str, Path]) -> None:
    table = head_table({"ours": folders["ours"]}, folders["real"], SyncMeter().eval())
    assert [row.name for row in table.rows] == [RANDOM, GROUND_TRUTH, "ours"]
    assert table.columns == ["head_1", "head_2", "head_3"]
    assert set(table.p) == set(table.columns)
    assert all(0 <= row.cells["head_2"].mean <= 15 for row in table.rows)


class MeanColours(nn.Module):
    num_features = 3

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.float().mean((2, 3))


def test_table3_of_videos_like_the_real_ones(folders: dict[str, Path]) -> None:
    table = picture_table({"ours": folders["ours"]}, folders["real"], {"fd_efficientnet": MeanColours()})
    truth, still, ours = table.rows
    assert (truth.name, still.name, ours.name) == (GROUND_TRUTH, STILL, "ours")
    assert ours.cells["ssim"].mean == pytest.approx(1)  # the same pictures as the real ones
    assert ours.cells["fd_efficientnet"].mean == pytest.approx(0, abs=1e-3)
    assert "fd_efficientnet" not in truth.cells
    assert truth.cells["pose_distance"].mean == pytest.approx(0, abs=1e-6)
    assert 0 < still.cells["ssim"].mean < 1
    assert still.cells["yaw"].mean == 0
    assert still.cells["pose_distance"].mean > 1
    with pytest.raises(InputError, match="--reference"):
        picture_table({"ours": folders["ours"]}, None, {})


# The command line


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.app, ["eval", *map(str, words)])


def test_table_commands_write_files_and_print_markdown(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SyncMeter, "load", classmethod(lambda cls: cls().eval()))
    words = ["--videos", f"Mine={folders['ours']}", "--reference", folders["real"], "--paper"]
    found = run("table2", *words, "-o", tmp_path / "t.csv", "-o", tmp_path / "t.tex")
    assert found.exit_code == 0, found.output
    assert "| Mine |" in found.stdout
    assert "| Random (paper, HDTF) | 12.14 ± 4.01 |" in found.stdout
    assert "Mine,head_1," in (tmp_path / "t.csv").read_text(encoding="utf-8")
    assert r"\toprule" in (tmp_path / "t.tex").read_text(encoding="utf-8")


def test_mistakes_are_told_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    ours = folders["ours"]
    (tmp_path / "text.model").write_text("no weights")
    mistakes = {
        "is no folder": ["table3", "--videos", tmp_path / "absent", "--reference", folders["real"]],
        "two systems are called 'ours'": ["table2", "--videos", ours, "--videos", f"ours={tmp_path}"],
        "must end in .md, .csv, .tex": ["table3", "--videos", ours, "-o", tmp_path / "table.pdf"],
        "syncnet_v2.model": ["table1", "--videos", ours, "--syncnet", tmp_path / "text.model"],
        "does not exist": ["table1", "--videos", ours, "--syncnet", tmp_path / "none.model"],
        "--reference": ["table3", "--videos", ours],
        "pt_inception": ["table3", "--videos", ours, "--inception", tmp_path / "text.model"],
        "no index.csv": ["outputs", "--data", ours, "-o", tmp_path / "o"],
    }
    for words, arguments in mistakes.items():
        found = run(*arguments)
        assert found.exit_code == 2
        assert words in found.stderr, arguments
        assert found.stderr.startswith("error: ")
        assert len(found.stderr.strip().splitlines()) == 1


# Our own outputs


def test_outputs_are_the_clip_and_its_animation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = FakeClip(frames=20)
    monkeypatch.setattr(FakeClip, "waveform", property(lambda _: speech(0.8)), raising=False)
    pipeline = Pipeline(FakeReenactor(), FakeGenerator(), face_mesh=FakeMesh())  # type: ignore[arg-type]
    outputs.write_outputs(pipeline, [clip], tmp_path, "ours")  # type: ignore[list-item]
    real, made = (tmp_path / part / "clip.mp4" for part in ("reference", "ours"))
    frames = list(VideoReader(real))
    assert len(frames) == len(list(VideoReader(made))) == 20
    assert np.abs(frames[7].astype(int) - clip.frame(7)).mean() < 10  # noise does not survive a codec
    assert probe(made).generated
    assert not probe(real).generated
    outputs.write_outputs(pipeline, [clip], tmp_path, "short", frames=12)  # type: ignore[list-item]
    assert len(list(VideoReader(tmp_path / "short" / "clip.mp4"))) == 12


def test_a_copy_of_a_recording_is_not_marked_as_generated(tmp_path: Path) -> None:
    frames = [np.full((64, 64, 3), 90, np.uint8)] * 5
    write_video(tmp_path / "copy.mp4", frames, None, generated=False)
    write_video(tmp_path / "made.mp4", frames, None)
    assert not probe(tmp_path / "copy.mp4").generated
    assert probe(tmp_path / "made.mp4").generated
