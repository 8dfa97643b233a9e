from __future__ import annotations

import os
import warnings
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mssync.audio import load_audio
from mssync.errors import InputError
from mssync.provenance import GENERATED_NOTE
from mssync.video import VideoReader, on_grid, orient, probe, rotation_matrix, write_video

# The 25 fps grid


def sampled(starts: list[Fraction], last: Fraction) -> list[int]:
    """on_grid over frames that are known by their index and last until the next one starts."""
    ends = [*starts[1:], starts[-1] + last]
    return list(on_grid((start, end - start, k) for k, (start, end) in enumerate(zip(starts, ends, strict=True))))


@settings(deadline=None)
@given(gaps=st.lists(st.integers(1, 400), max_size=30), last=st.integers(1, 200))
def test_grid_takes_the_nearest_frame_that_is_not_early(gaps, last):
    starts = [Fraction(int(ms), 1000) for ms in np.cumsum([0, *gaps])]
    end = starts[-1] + Fraction(last, 1000)
    indices = sampled(starts, Fraction(last, 1000))
    assert abs(len(indices) - float(25 * end)) <= 1
    for k, index in enumerate(indices):
        time = Fraction(k, 25)
        allowed = [n for n, start in enumerate(starts) if start - time < Fraction(1, 50)]
        assert index == min(allowed, key=lambda n: (abs(starts[n] - time), n))


@pytest.mark.parametrize(("rate", "expected"), [(25, 1), (50, 2), (100, 4), (5, Fraction(1, 5))])
def test_grid_of_multiples_of_25(rate, expected):
    indices = sampled([Fraction(k, rate) for k in range(2 * rate)], Fraction(1, rate))
    if rate >= 25:
        assert indices == [k * expected for k in range(50)]
    else:
        assert len(indices) == 50
        assert sorted(set(indices)) == list(range(10))


def test_a_long_frame_is_held():
    indices = sampled([Fraction(0), Fraction(1), Fraction(1) + Fraction(1, 25)], Fraction(1, 25))
    assert indices == [0] * 25 + [1, 2]


def test_two_frames_at_one_time():
    assert sampled([Fraction(0), Fraction(1, 5), Fraction(1, 5), Fraction(2, 5)], Fraction(1, 25)) == [
        *[0] * 5, 1, *[2] * 4, 3
    ]  # fmt: skip


def test_grid_is_lazy():
    def endless():
        for k in range(10**9):
            yield Fraction(k, 30), Fraction(1, 30), k

    frames = on_grid(endless())
    assert [next(frames) for _ in range(5)] == [0, 1, 2, 4, 5]
    assert list(on_grid([])) == []


# Reading videos

LEVELS = [20 + 4 * k for k in range(55)]  # grey levels that tell the frames of a test video apart


def indices_of(reader: VideoReader) -> list[int]:
    """Which frames of a video of LEVELS a reader gives."""
    return [round((float(frame.mean()) - 20) / 4) for frame in reader]


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.mov", "mpeg4")])
def test_25_fps_gives_exactly_the_frames_of_the_file(make_video, name, codec):
    rng = np.random.RandomState(0)
    pictures = [np.kron(rng.randint(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(30)]
    path = make_video(name, pictures, [Fraction(k, 25) for k in range(30)], codec=codec)
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    reader = VideoReader(path)
    np.testing.assert_array_equal(list(reader), expected)
    np.testing.assert_array_equal(list(reader), expected)  # once more
    assert (reader.width, reader.height, reader.has_audio) == (64, 48, False)
    assert reader.duration == pytest.approx(30 / 25, abs=0.01)
    assert len(expected) == 30


@pytest.mark.parametrize("rate", [25, 30, Fraction(24000, 1001)])
@pytest.mark.parametrize(("start", "stop"), [(0, 0.4), (0.4, 1.2), (1.24, 1.52), (0.6, None), (1, 99), (0.01, 0.5)])
def test_a_part_of_a_video_is_that_part_of_its_frames(make_video, rate, start, stop):
    times = [Fraction(k) / Fraction(rate) for k in range(55)]
    path = make_video("a.mp4", LEVELS, times, rate=rate)
    whole = [int(frame.mean()) for frame in VideoReader(path)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a part is no damaged file
        part = [int(frame.mean()) for frame in VideoReader(path, start, stop)]
    first = round(start * 25)
    wanted = whole[first : None if stop is None else round(stop * 25)]
    assert abs(len(part) - len(wanted)) <= (start == 0.01 or stop is None or stop == 99)
    # at starts between two frames the nearest one may be another
    assert all(abs(one - two) <= (4 if start == 0.01 else 1) for one, two in zip(part, wanted, strict=False))


def test_a_part_behind_the_end(make_video):
    path = make_video("a.mp4", LEVELS, [k / 25 for k in range(55)])
    assert len(list(VideoReader(path, 50, 60))) <= 1


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), 30, 50, 60, 15, Fraction(24000, 1001)])
def test_other_frame_rates(make_video, rate):
    times = [k / Fraction(rate) for k in range(54)]
    path = make_video("a.mp4", LEVELS[:54], times, rate=rate)
    reader = VideoReader(path)
    indices = indices_of(reader)
    assert reader.duration == pytest.approx(float(54 / rate), abs=1e-3)
    assert abs(len(indices) - 25 * reader.duration) <= 1
    for k, index in enumerate(indices[:-1]):  # the nearest frame, or the last one that is shown
        assert abs(float(times[index] - Fraction(k, 25))) <= max(0.02, float(1 / rate)) + 1e-3


def test_variable_frame_rate(make_video):
    times = [0, 0.033, 0.080, 0.5, 0.52, 0.9]  # seconds
    reader = VideoReader(make_video("a.mp4", LEVELS[:6], times))
    assert indices_of(reader) == [0, 1, *[2] * 11, *[4] * 10, 5]
    assert reader.duration == pytest.approx(0.94, abs=0.001)


def test_time_starts_at_the_first_frame(make_video):
    path = make_video("a.mkv", LEVELS[:10], [3 + k / 25 for k in range(10)])
    assert indices_of(VideoReader(path)) == list(range(10))
    assert VideoReader(path).duration == pytest.approx(0.4, abs=0.041)


QUARTERS = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
MIRRORED = [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]


def displayed(picture: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """Move every pixel (x, y) to (a x + c y, b x + d y), shifted so that the result starts at 0."""
    height, width = picture.shape[:2]
    points = {(x, y): (a * x + c * y, b * x + d * y) for y in range(height) for x in range(width)}
    left, top = (min(p[axis] for p in points.values()) for axis in (0, 1))
    out = np.zeros((width, height, 3) if a == 0 else (height, width, 3), np.uint8)
    for (x, y), (to_x, to_y) in points.items():
        out[to_y - top, to_x - left] = picture[y, x]
    return out


@pytest.mark.parametrize("turn", QUARTERS + MIRRORED)
def test_orient(picture, turn):
    a, b, c, d = turn
    matrix = np.array([[a << 16, b << 16, 0], [c << 16, d << 16, 0], [0, 0, 1 << 30]], np.int32)
    np.testing.assert_array_equal(orient(picture, matrix), displayed(picture, *turn))


@pytest.mark.parametrize("turn", QUARTERS + MIRRORED[:1])
def test_rotated_phone_video(make_video, picture, turn):
    path = make_video("a.mp4", [picture] * 3, [k / 25 for k in range(3)])
    upright = next(iter(VideoReader(path)))
    content = bytearray(path.read_bytes())
    position = content.index(b"tkhd") + 44  # where the display matrix of the track is
    a, b, c, d = turn
    for k, value in enumerate([a << 16, b << 16, 0, c << 16, d << 16, 0]):
        content[position + 4 * k : position + 4 * k + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    reader = VideoReader(path)
    frames = list(reader)
    assert len(frames) == 3
    np.testing.assert_array_equal(frames[0], displayed(upright, *turn))
    assert (reader.height, reader.width) == frames[0].shape[:2]
    assert (probe(path).height, probe(path).width) == frames[0].shape[:2]
    if turn in QUARTERS:  # which PyAV tells as an angle, too
        with av.open(str(path)) as container:
            angle = next(container.decode(video=0)).rotation
        np.testing.assert_array_equal(orient(upright, rotation_matrix(angle)), frames[0])


def test_pixels_that_are_not_square(tmp_path, picture):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 40, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert next(iter(VideoReader(tmp_path / "a.mp4"))).shape == (40, 96, 3)


def test_sound_with_cover_art_is_no_video(tmp_path, picture, tone):
    with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 40, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
        container.mux(cover.encode(frame))
        container.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(tone(0.5, 16000)[None], format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    with pytest.raises(InputError, match="holds only sound"):
        VideoReader(tmp_path / "a.m4a")
    assert probe(tmp_path / "a.m4a").kind == "audio"
    assert len(load_audio(tmp_path / "a.m4a")) >= 8000


def test_bad_videos(tmp_path, make_video, make_sound, picture, tone):
    whole = make_video("whole.mp4", LEVELS, [k / 25 for k in range(55)]).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write_video(tmp_path / "fast.mp4", [picture] * 9, None)
    fast = (tmp_path / "fast.mp4").read_bytes()
    (tmp_path / "cut_fast.mp4").write_bytes(fast[:-100])
    (tmp_path / "no_index.mp4").write_bytes(whole[: whole.index(b"moov") - 4])
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile whole.mp4\n")
    (tmp_path / "empty.mp4").touch()
    Image.fromarray(picture).save(tmp_path / "picture.jpg")
    make_sound("sound.wav", tone(0.1, 16000), 16000)
    for name, words in [
        ("missing.mp4", "does not exist"),
        ("", "is a directory"),
        ("cut.mp4", "is truncated"),
        ("cut_fast.mp4", "is truncated"),
        ("no_index.mp4", "is truncated"),
        ("text.mp4", "not a video or sound file"),
        ("list.mp4", "not a video or sound file"),
        ("empty.mp4", "is empty"),
        ("picture.jpg", "not a video or sound file"),
        ("sound.wav", "holds only sound"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            VideoReader(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_damaged_video_warns_and_gives_what_is_there(make_video):
    rng = np.random.RandomState(0)
    pictures = [rng.randint(0, 255, (48, 64, 3)).astype(np.uint8) for _ in range(30)]
    path = make_video("a.mkv", pictures, [k / 25 for k in range(30)], codec="mpeg4")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        count = len(list(VideoReader(path)))
    assert 5 < count < 30


def test_a_long_last_frame_is_no_damage(make_video):
    path = make_video("a.mp4", LEVELS[:3], [0, 1, 2], codec="mpeg4", rate=Fraction(1, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(VideoReader(path))) == 25 * 6
    assert VideoReader(path).duration == 6


def test_nothing_that_decodes(make_video):
    path = make_video("a.mp4", LEVELS[:5], [k / 25 for k in range(5)])
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    end = content.index(b"moov") - 4
    path.write_bytes(content[:start] + b"\xff" * (end - start) + content[end:])
    with pytest.raises(InputError, match="cannot be decoded"):
        VideoReader(path)


def test_real_clips(data_dir):
    for path in sorted((data_dir / "clips").glob("*.mp4"))[::300]:
        reader = VideoReader(path)
        with av.open(str(path)) as container:
            has_audio = bool(container.streams.audio)  # not all clips have one
            expected = sum(1 for _ in container.decode(video=0))
        assert sum(frame.shape == (reader.height, reader.width, 3) for frame in reader) == expected
        assert reader.has_audio == has_audio


# Writing videos


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (48000, 1), (44100, 2), (11025, 1), (8000, 2)])
@pytest.mark.parametrize(("frames", "seconds"), [(33, 1.32), (50, 0.7), (20, 3), (1, 0.01)])
def test_sound_and_picture_are_equally_long(tmp_path, picture, rate, channels, frames, seconds):
    sound = 0.3 * np.random.RandomState(0).standard_normal((round(seconds * rate), channels)).astype(np.float32)
    path = tmp_path / "a.mp4"
    assert write_video(path, iter([picture] * frames), sound[:, 0] if channels == 1 else sound, rate) == frames
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (audio.codec_context.name, audio.channels) == ("aac", channels)
        assert video.average_rate == 25
        assert video.duration * video.time_base == Fraction(frames, 25)
        assert float(audio.duration * audio.time_base) == pytest.approx(frames / 25, abs=0.001)
        decoded = sum(frame.samples for frame in container.decode(audio)) / rate
        assert decoded == pytest.approx(frames / 25, abs=1024 / rate)
    assert len(list(VideoReader(path))) == frames
    assert len(load_audio(path)) == pytest.approx(640 * frames, abs=16)
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_sound_comes_out_in_its_place(tmp_path, picture, tone):
    write_video(tmp_path / "a.mp4", [picture] * 50, tone(2, 16000, silence=1))
    sound = load_audio(tmp_path / "a.mp4")
    assert np.argmax(np.abs(sound) > 0.1) == pytest.approx(16000, abs=32)
    assert np.corrcoef(sound[17000:31000], tone(2, 16000, silence=1)[17000:31000])[0, 1] > 0.99


def test_pictures_come_out_as_they_went_in(tmp_path):
    levels = [(200, 60, 30), (20, 180, 90), (128, 128, 128), (255, 255, 255), (0, 0, 0)]
    write_video(tmp_path / "a.mp4", [np.full((64, 64, 3), level, np.uint8) for level in levels], None)
    reader = VideoReader(tmp_path / "a.mp4")
    assert not reader.has_audio
    for frame, level in zip(reader, levels, strict=True):
        assert np.abs(frame.astype(int) - level).max() <= 4


@pytest.mark.parametrize("shape", [(33, 47, 3), (32, 47, 3), (33, 48, 3)])
def test_odd_sizes_become_even(tmp_path, shape):
    write_video(tmp_path / "a.mp4", [np.full(shape, 99, np.uint8)] * 2, None)
    frame = next(iter(VideoReader(tmp_path / "a.mp4")))
    assert frame.shape == (shape[0] + shape[0] % 2, shape[1] + shape[1] % 2, 3)
    assert np.abs(frame.astype(int) - 99).max() <= 3


def test_the_file_says_that_it_is_generated(tmp_path, picture, make_video):
    write_video(tmp_path / "a.mp4", [picture] * 2, None)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.metadata["comment"].startswith(GENERATED_NOTE)
        assert container.metadata["description"].startswith(GENERATED_NOTE)
    write_video(tmp_path / "b.mp4", [picture] * 2, None, comment="seed 3")
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.metadata["comment"] == "seed 3"
    assert probe(tmp_path / "a.mp4").generated
    assert probe(tmp_path / "b.mp4").generated
    assert not probe(make_video("c.mp4", [10, 20], [0, 0.04])).generated


def test_fast_start(tmp_path, picture, tone):
    write_video(tmp_path / "a.mp4", [picture] * 5, tone(0.2, 16000))
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_frames_are_not_kept(tmp_path):
    alive: list[weakref.ref] = []

    def frames():
        for k in range(64):
            frame = np.full((32, 32, 3), k, np.uint8)
            alive.append(weakref.ref(frame))
            assert sum(ref() is not None for ref in alive) <= 4
            yield frame
            del frame

    assert write_video(tmp_path / "a.mp4", frames(), None) == 64


def test_existing_file_is_replaced_only_by_a_whole_one(tmp_path, picture):
    path = tmp_path / "a.mp4"
    write_video(path, [picture] * 2, None)
    before = path.read_bytes()

    def failing(error):
        yield picture
        yield picture
        raise error

    for error in (RuntimeError("no more"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write_video(path, failing(error), None)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["a.mp4"]
    write_video(path, [picture] * 4, None)
    assert probe(path).frames == 4


def never():
    pytest.fail("a frame was asked for")
    yield


def test_unwritable_output(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    for name, words in [
        ("missing/a.mp4", "there is no folder"),
        ("file/a.mp4", "there is no folder"),
        ("folder.mp4", "is a directory"),
        ("a.avi", "must end in .mp4"),
        ("a", "must end in .mp4"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            write_video(tmp_path / name, never(), None)
        assert str(tmp_path / name) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.mp4"]


def test_output_without_permission(unprivileged):
    with pytest.raises(InputError, match="permission denied"):
        write_video(unprivileged / "a.mp4", never(), None)


def test_no_frames(tmp_path):
    with pytest.raises(InputError, match="no frames"):
        write_video(tmp_path / "a.mp4", [], None)
    assert os.listdir(tmp_path) == []


def test_wrong_frames_and_sound(tmp_path, picture):
    for frames, sound in [
        ([picture, picture[:32]], None),
        ([picture / 255], None),
        ([picture], np.zeros((100, 3), np.float32)),
    ]:
        with pytest.raises(ValueError, match=r"expected|channels"):
            write_video(tmp_path / "a.mp4", frames, sound)
    assert os.listdir(tmp_path) == []


# Looking at files


def test_probe(tmp_path, make_sound, tone, picture):
    info = probe(make_sound("a.wav", np.zeros((4410, 2), np.float32), 44100))
    assert (info.kind, info.sample_rate, info.channels, info.width) == ("audio", 44100, 2, None)
    assert info.seconds == pytest.approx(0.1)
    write_video(tmp_path / "a.mp4", [picture] * 10, tone(0.4, 16000))
    info = probe(tmp_path / "a.mp4")
    assert (info.kind, info.width, info.height, info.fps, info.frames) == ("video", 64, 40, 25, 10)
    assert (info.sample_rate, info.channels) == (16000, 1)
    assert info.seconds == pytest.approx(0.4)


def test_probe_counts_what_the_file_does_not_declare(make_video):
    info = probe(make_video("a.mkv", LEVELS[:20], [k / 25 for k in range(20)]))
    assert info.frames == 20
    assert info.seconds == pytest.approx(0.8, abs=0.041)


def test_probe_of_text(tmp_path):
    (tmp_path / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    (tmp_path / "a.txt").write_text("hello\n")
    for name, words in [("a.srt", "neither pictures nor sound"), ("a.txt", "not a video or sound file")]:
        with pytest.raises(InputError, match=words):
            probe(tmp_path / name)
