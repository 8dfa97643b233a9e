"""SyncNet: the public network by its golden outputs, its protocol by direct formulas and by hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import golden_rule

from mssync.errors import InputError
from mssync.metrics.syncnet import (
    SIZE,
    SyncNet,
    SyncNetMetric,
    face_crops,
    load_syncnet,
    score,
    score_clip,
    sound_windows,
)

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(os.environ.get("MSSYNC_GOLDEN", ROOT.parent / "shared" / "golden")) / "syncnet_v2.npz"


@pytest.fixture(scope="module")
def model() -> SyncNet:
    network = SyncNet()
    network.load_state_dict({name: golden_rule(name, like) for name, like in network.state_dict().items()})
    return network


@pytest.fixture(scope="module")
def weights(model: SyncNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    state = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    torch.save(state, path)  # as early PyTorch wrote it
    return path


def test_golden_outputs(weights: Path) -> None:
    if not GOLDEN.is_file():
        pytest.skip(f"no golden numbers at {GOLDEN}; set MSSYNC_GOLDEN to their folder")
    golden, model = np.load(GOLDEN), load_syncnet(weights)
    assert list(model.state_dict()) == golden["keys"].tolist()
    r = np.random.RandomState(3)
    sound = torch.from_numpy(r.standard_normal((2, 1, 13, 20)).astype(np.float32))
    video = torch.from_numpy((255 * r.random_sample((2, 3, 5, SIZE, SIZE))).astype(np.float32))
    for have, want in ((model.embed_sound(sound), "audio"), (model.embed_lips(video)[:, 0], "video")):
        error = np.abs(have.numpy() - golden[want]).max() / np.abs(golden[want]).max()
        assert error < 1e-5, want


def test_windows_share_layers_without_changing(model: SyncNet) -> None:
    video = torch.rand(1, 3, 7, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 255
    apart = torch.cat([model.embed_lips(video[:, :, i : i + 5])[:, 0] for i in range(3)])
    torch.testing.assert_close(model.embed_lips(video)[0], apart, rtol=1e-4, atol=1e-3)


def test_sound_windows_are_python_speech_features_of_16_bit_samples() -> None:
    reference = pytest.importorskip("python_speech_features")
    samples = np.random.default_rng(0).integers(-20000, 20000, 16000).astype(np.int16)
    windows = sound_windows((samples / 32768).astype(np.float32))
    rows = reference.mfcc(samples, 16000)
    assert windows.shape == (20, 1, 13, 20)
    for i in (0, 7, 19):
        np.testing.assert_allclose(windows[i, 0], rows[4 * i : 4 * i + 20].T, rtol=1e-5, atol=1e-4)


def test_offset_and_confidence_worked_by_hand() -> None:
    """Four windows, one number each, ±1 frame. The sound has every event one frame before the picture.

    picture  3 5 9 1     sound  5 9 1 7
    sound 1 later in the file    (j = 2)  |3-9| |5-1| |9-7| |1-0|  mean (6 + 4 + 2 + 1) / 4 = 3.25
    sound at the same time       (j = 1)  |3-5| |5-9| |9-1| |1-7|  mean (2 + 4 + 8 + 6) / 4 = 5
    sound 1 earlier in the file  (j = 0)  |3-0| |5-5| |9-9| |1-1|  mean (3 + 0 + 0 + 0) / 4 = 0.75
    """
    picture, sound = (torch.tensor(v)[:, None] for v in ([3.0, 5, 9, 1], [5.0, 9, 1, 7]))
    found = score(picture, sound, vshift=1)
    np.testing.assert_allclose(found.curve, [0.75, 5, 3.25], atol=1e-5)
    assert found.offset == 1  # the sound leads
    assert found.confidence == pytest.approx(3.25 - 0.75, abs=1e-5)  # the median of 0.75, 3.25, 5 less the least
    assert found.distance == pytest.approx(0.75, abs=1e-5)


@pytest.mark.parametrize("lead", [-3, 0, 4])
def test_offset_is_positive_where_the_sound_leads(lead: int) -> None:
    events = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    picture, sound = events[10:40], events[10 + lead : 40 + lead]
    assert score(picture, sound, vshift=5).offset == lead


def test_clip_is_scored_as_the_public_code_does(model: SyncNet) -> None:
    """Windows one by one, without the last; the same through a metric."""
    r = np.random.default_rng(4)
    crops = r.integers(0, 255, (9, SIZE, SIZE, 3)).astype(np.uint8)
    waveform = (0.1 * r.standard_normal(9 * 640 + 300)).astype(np.float32)
    sounds, video = sound_windows(waveform), torch.from_numpy(crops[..., ::-1].copy()).permute(3, 0, 1, 2).float()
    lips = torch.cat([model.embed_lips(video[None, :, i : i + 5])[0] for i in range(4)])
    wanted = score(lips, model.embed_sound(sounds[:4]), vshift=2)
    found = score_clip(model, iter(crops), waveform, vshift=2)
    np.testing.assert_allclose(found.curve, wanted.curve, rtol=1e-4)
    metric = SyncNetMetric(model, vshift=2)
    metric.update(crops, waveform)
    assert float(metric.compute()["lse_d"]) == pytest.approx(found.distance)
    assert float(metric.compute()["av_off"]) == abs(found.offset)


def test_too_short_a_clip_is_told(model: SyncNet) -> None:
    with pytest.raises(InputError, match="longer clip"):
        score_clip(model, np.zeros((5, SIZE, SIZE, 3), np.uint8), np.zeros(8000, np.float32))
    with pytest.raises(InputError, match="longer clip"):
        score_clip(model, np.zeros((9, SIZE, SIZE, 3), np.uint8), np.zeros(100, np.float32))


def test_crops_follow_the_public_rule() -> None:
    """A face of 40 × 60 pixels around (100, 80): s = 30, x from 58 to 142, y from 50 to 134."""
    landmarks = np.zeros((20, 478, 3), np.float32)
    landmarks[:, 0], landmarks[:, 1:] = (80, 50, 0), (120, 110, 0)
    frame = np.zeros((200, 200, 3), np.uint8)
    frame[50:134, 58:142] = (200, 100, 50)
    crops = list(face_crops([frame] * 20, landmarks))
    assert len(crops) == 20
    assert (crops[10] == (200, 100, 50)).all()
    landmarks[:, :, 0] -= 100  # half of the face is outside
    assert (list(face_crops([frame] * 20, landmarks))[10][100, 0] == 110).all()


def test_what_is_not_syncnet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"syncnet_v2\.model .* --syncnet FILE"):
        load_syncnet(None)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match=r"not a PyTorch checkpoint.*syncnet_v2\.model"):
        load_syncnet(tmp_path / "text")
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "other")
    with pytest.raises(InputError, match="not SyncNet's weights"):
        load_syncnet(tmp_path / "other")
