"""Readers: which videos each layout holds, who speaks in them, and splits without a shared identity."""

from __future__ import annotations

from pathlib import Path

import pytest

from mssync.data.readers import LONGEST_KEY, Job, drawn_split, read_jobs
from mssync.errors import InputError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def jobs_of(*sources: Path, layout: str | None = None, val: float = 0, test: float = 0) -> dict[str, Job]:
    jobs, _ = read_jobs(sources, layout, val, test)
    assert len({job.key for job in jobs}) == len(jobs)
    return {job.key: job for job in jobs}


def test_folder(tmp_path: Path) -> None:
    touch(tmp_path, "videos/a.mp4", "videos/b/c.d.MOV", "videos/notes.txt", "videos/._a.mp4")
    (tmp_path / "videos" / "folder.mp4").mkdir()
    found = jobs_of(tmp_path / "videos")
    assert set(found) == {"a", "b_c-d", "folder"}
    assert found["a"] == Job(tmp_path / "videos" / "a.mp4", "a", "train", "a", "videos")
    assert jobs_of(tmp_path / "videos" / "a.mp4")["a"].corpus == "videos"


def test_keys_are_unique_and_short(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.mp4", "b/1.mp4", "a/x.y.mp4", "a/x-y.mp4", f"a/{'long' * 40}.mp4", "a/Ä.mp4", "a/Ö.mp4")
    found = jobs_of(tmp_path / "a", tmp_path / "b")
    assert len(found) == 7
    assert max(map(len, found)) <= LONGEST_KEY
    assert not any("." in key for key in found)


def test_manifest(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.mp4", "y/1.mp4", "z.mp4")
    table = tmp_path / "manifest.csv"
    table.write_text("file,split,identity,corpus\nx/1.mp4,val,ann,ViCo\ny/1.mp4,,ann,GRID\nz.mp4,,,\n")
    found = jobs_of(tmp_path)
    assert [(j.split, j.identity, j.corpus, j.stabilised) for j in found.values()] == [
        ("val", "ann", "ViCo", True),
        ("val", "ann", "GRID", False),  # as the rest of Ann
        ("train", "z", tmp_path.name, False),
    ]
    assert list(found) == ["x_1", "y_1", "z"]
    assert jobs_of(table) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column file"),
        ("name\na.mp4\n", "no column file"),
        ("file,split\na.mp4,dev\n", "line 2 has the split 'dev'"),
        ("file,split\na.mp4,val\n,val\n", "line 3 names no file"),
    ],
)
def test_broken_manifests(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_jobs([tmp_path], None, 0, 0)


def test_an_identity_is_in_one_split(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(
        "file,split,identity\n1.mp4,train,ann\n2.mp4,test,ann\n3.mp4,val,bob\n4.mp4,train,bob\n5.mp4,train,cem\n"
    )
    jobs, moved = read_jobs([tmp_path], None, 0, 0)
    assert moved == ["ann", "bob"]
    assert [job.split for job in jobs] == ["test", "test", "val", "val", "train"]


def test_shares_of_identities_are_drawn_by_name() -> None:
    names = [f"id{number:05d}" for number in range(4000)]
    drawn = [drawn_split(name, 0.1, 0.05) for name in names]
    assert drawn.count("val") / 4000 == pytest.approx(0.1, abs=0.02)
    assert drawn.count("test") / 4000 == pytest.approx(0.05, abs=0.02)
    assert {drawn_split(name, 0, 0) for name in names} == {"train"}
    # more people to validate on are those from before and others
    more = [drawn_split(name, 0.2, 0.05) for name in names]
    assert all(after == before for before, after in zip(drawn, more, strict=True) if before != "train")


def test_voxceleb2(tmp_path: Path) -> None:
    touch(tmp_path, "dev/mp4/id00012/21Uxsk56VDQ/00001.mp4", "dev/mp4/id00012/21Uxsk56VDQ/00002.mp4")
    touch(tmp_path, "dev/mp4/id00015/0fijmz4vTVU/00001.mp4", "test/mp4/id00017/01dfn2spqyE/00001.mp4")
    found = jobs_of(tmp_path)
    assert len(found) == 4
    job = found["id00017_01dfn2spqyE_00001"]
    assert (job.split, job.identity, job.corpus, job.stabilised) == ("test", "id00017", "VoxCeleb2", True)
    assert found["id00012_21Uxsk56VDQ_00002"].split == "train"
    assert jobs_of(tmp_path / "test" / "mp4")["id00017_01dfn2spqyE_00001"].split == "test"
    drawn = jobs_of(tmp_path, val=0.999)
    assert {drawn[key].split for key in found} == {"val", "test"}


def lrs2(folder: Path) -> None:
    clips = ["main/111/00001.mp4", "main/111/00002.mp4", "main/222/00001.mp4", "main/333/00009.mp4"]
    touch(folder / "mvlrs_v1", *clips, "pretrain/444/00001.mp4", "pretrain/222/00007.mp4")
    (folder / "train.txt").write_text("111/00001\n111/00002\n")
    (folder / "val.txt").write_text("222/00001\n")
    (folder / "test.txt").write_text("333/00009 NF\n")
    (folder / "pretrain.txt").write_text("444/00001\n222/00007\n")


def test_lrs2(tmp_path: Path) -> None:
    lrs2(tmp_path)
    found = jobs_of(tmp_path)
    assert {key: job.split for key, job in found.items()} == {
        "main_111_00001": "train", "main_111_00002": "train", "main_222_00001": "val", "main_333_00009": "test",
        "pretrain_444_00001": "train", "pretrain_222_00007": "val",  # 222 is one of val's
    }  # fmt: skip
    assert all(job.path.is_file() for job in found.values())
    (tmp_path / "train.txt").rename(tmp_path / "mvlrs_v1" / "train.txt")  # lists beside or inside
    assert jobs_of(tmp_path / "mvlrs_v1") == found


def hdtf(folder: Path) -> None:
    touch(folder, "videos/Radio11.mp4", "videos/BobCasey0.mp4", "videos/WDA_BobCasey1.mp4", "videos/KarenBass_1.mp4")
    (folder / "HDTF_dataset").mkdir()
    lists = {
        "RD_annotion_time.txt": "Radio11.mp4 00:30-01:00 01:30-02:30\nRadio99.mp4 00:01-00:20\n",
        "RD_crop_wh.txt": "Radio11_0.mp4 412 599 0 599\n",
        "RD_resolution.txt": "Radio11.mp4 720\n",
        "WDA_annotion_time.txt": "BobCasey0.mp4 1:00:05-1:00:52 \nBobCasey1.mp4 00:05-00:55\n"
        "KarenBass.mp4 00:01-00:10 00:20-00:30\n",
        "WDA_crop_wh.txt": "BobCasey0_0.mp4 599 723 0 723\nKarenBass_1.mp4 1 2 3 4\n",
        "WDA_video_url.txt": "BobCasey0 https://www.youtube.com/watch?v=x\n",
    }
    for name, text in lists.items():
        (folder / "HDTF_dataset" / name).write_text(text)


def test_hdtf(tmp_path: Path) -> None:
    hdtf(tmp_path)
    found = jobs_of(tmp_path)
    assert set(found) == {"RD_Radio11_0", "RD_Radio11_1", "WDA_BobCasey0_0", "WDA_BobCasey1_0", "WDA_KarenBass_1"}
    first, second = found["RD_Radio11_0"], found["RD_Radio11_1"]
    assert (first.start, first.stop, first.region, first.region_height) == (30, 60, (412, 0, 599, 599), 720)
    assert (second.start, second.stop, second.region, first.identity) == (90, 150, None, "Radio11")
    assert found["WDA_BobCasey0_0"].start == 3605
    assert found["WDA_BobCasey0_0"].identity == found["WDA_BobCasey1_0"].identity == "BobCasey"
    cut = found["WDA_KarenBass_1"]  # a clip that was cut and cropped already
    assert (cut.start, cut.stop, cut.region) == (0, None, None)


def test_hdtf_with_a_broken_list(tmp_path: Path) -> None:
    hdtf(tmp_path)
    (tmp_path / "HDTF_dataset" / "RD_annotion_time.txt").write_text("Radio11.mp4 0030\n")
    with pytest.raises(InputError, match="is no interval"):
        read_jobs([tmp_path], None, 0, 0)


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    touch(tmp_path, "text.txt", "empty/a.txt", "videos/a.mp4")
    for source, layout, message in (
        ("nowhere", None, "does not exist"),
        ("text.txt", None, "no folder, no manifest"),
        ("empty", None, "no videos in this folder"),
        ("videos", "lrs2", "not of the layout lrs2"),
        ("videos", "lrs3", "unknown layout 'lrs3'"),
    ):
        with pytest.raises(InputError, match=message):
            read_jobs([tmp_path / source], layout, 0, 0)
