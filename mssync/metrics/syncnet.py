"""SyncNet (Chung and Zisserman 2016): the public network and its protocol, and Wav2Lip's LSE-D and LSE-C.

The network's weights, `syncnet_v2.model`, are no part of this package; `load_syncnet` reads that file. Names of
parameters, input and order of operations are those of the public code, so that scores can be compared with
published ones, except for the face detector: see `face_crops`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from mssync.audio import AUDIO_PER_VIDEO, SAMPLES_PER_VIDEO, mfcc
from mssync.errors import InputError, PathLike, input_file
from mssync.pixels import Places, resampled
from mssync.reenact.convert import shape_of, shortened

SIZE = 224  # side of a face crop, in pixels
WINDOW = 5  # frames of picture that are compared with the same time of sound: 200 ms
SOUND_WINDOW = AUDIO_PER_VIDEO * WINDOW  # frames of sound
COEFFICIENTS = 13  # of the MFCC
EMBEDDING = 1024
VSHIFT = 15  # frames that the sound is shifted by, at most, either way: Wav2Lip's evaluation, and the paper's
PUBLIC_VSHIFT = 10  # of SyncNet's own code
BATCH = 16  # windows embedded at once: about 300 MB
INT16 = 32768

CROP_SCALE = 0.4  # room around a face, in halves of its larger side
MEDIAN = 13  # frames of the median filter over the face's place and size
GREY = 110  # what lies outside of the picture

COUNTER = "num_batches_tracked"  # unused in eval mode; early PyTorch did not store it
WHERE = (
    "the public file syncnet_v2.model is needed (SyncNet's authors give it away at "
    "https://www.robots.ox.ac.uk/~vgg/software/lipsync/); name it with --syncnet FILE"
)


class SyncNet(nn.Module):
    """The two-stream network; in eval mode, its embeddings are not normalised. Names as in the public checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_convolved(nn.Conv2d(1, 64, 3, padding=1)),
            nn.MaxPool2d(1, 1),
            *_convolved(nn.Conv2d(64, 192, 3, padding=1)),
            nn.MaxPool2d(3, (1, 2)),
            *_convolved(nn.Conv2d(192, 384, 3, padding=1)),
            *_convolved(nn.Conv2d(384, 256, 3, padding=1)),
            *_convolved(nn.Conv2d(256, 256, 3, padding=1)),
            nn.MaxPool2d(3, 2),
            *_convolved(nn.Conv2d(256, 512, (5, 4))),
        )
        self.netfcaud = _connected()
        self.netfclip = _connected()
        self.netcnnlip = nn.Sequential(
            *_convolved(nn.Conv3d(3, 96, (WINDOW, 7, 7), (1, 2, 2))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_convolved(nn.Conv3d(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_convolved(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_convolved(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_convolved(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_convolved(nn.Conv3d(256, 512, (1, 6, 6))),
        )
        self.requires_grad_(False).eval()

    def embed_sound(self, sound: Tensor) -> Tensor:
        """MFCC windows (B, 1, 13, 20) -> (B, 1024)."""
        return self.netfcaud(self.netcnnaud(sound).flatten(1))

    def embed_lips(self, video: Tensor) -> Tensor:
        """Crops (B, 3, T, 224, 224), BGR in [0, 255], T >= 5 -> (B, T - 4, 1024), one a window of 5 frames.

        Only the first layer looks along time, so the windows share what follows it.
        """
        return self.netfclip(self.netcnnlip(video).flatten(2).transpose(1, 2).reshape(-1, 512)).reshape(
            len(video), -1, EMBEDDING
        )


def _convolved(layer: nn.Conv2d | nn.Conv3d) -> tuple[nn.Module, ...]:
    norm = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm3d
    return layer, norm(layer.out_channels), nn.ReLU()


def _connected() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, EMBEDDING))


def load_syncnet(path: PathLike | None) -> SyncNet:
    """The network with the weights of `syncnet_v2.model`, read without running any code it may carry.

    Raises InputError: no path, no such file, not a checkpoint, or one of another model.
    """
    if path is None:
        raise InputError(f"no weights of SyncNet given: {WHERE}")
    path = input_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(f"{path}: not a PyTorch checkpoint, or a damaged one; {WHERE}") from error
    model = SyncNet()
    expected = model.state_dict()
    found = state if isinstance(state, dict) else {}
    wrong = [name for name in expected if shape_of(found.get(name)) != expected[name].shape and COUNTER not in name]
    wrong += [str(name) for name in found if name not in expected]
    if wrong:
        raise InputError(f"{path}: not SyncNet's weights (see {shortened(wrong)}); {WHERE}")
    model.load_state_dict({name: found.get(name, like) for name, like in expected.items()})
    return model


# Input


def sound_windows(waveform: np.ndarray) -> Tensor:
    """Sound (n,) float32 in [-1, 1] at 16 kHz -> MFCC windows (N, 1, 13, 20); window i starts with frame i.

    The MFCC is python_speech_features' of 16-bit samples, at its defaults (13 coefficients, 10 ms steps).
    """
    samples = np.clip(np.rint(waveform.astype(np.float64) * INT16), -INT16, INT16 - 1)
    rows = mfcc(torch.from_numpy(samples))[:, :COEFFICIENTS]
    if len(rows) < SOUND_WINDOW:
        return torch.zeros(0, 1, COEFFICIENTS, SOUND_WINDOW)
    return rows.unfold(0, SOUND_WINDOW, AUDIO_PER_VIDEO)[:, None].float()


def face_crops(frames: Iterable[np.ndarray], landmarks: np.ndarray) -> Iterator[np.ndarray]:
    """The crops of a face track, (224, 224, 3) uint8 RGB each, as the public code cuts them; streams.

    A track is the face's centre (x, y) and s, half the larger side of its box, each median-filtered over 13 frames.
    A crop spans x ± 1.4 s across and y - s to y + 1.8 s down: from the top of the face to below its chin.
    What lies outside of the picture is grey (110). The public code takes the boxes of the detector S3FD; here they
    are the bounds of the face mesh, which end lower at the forehead.

    frames: (H, W, 3) uint8 at 25 fps; landmarks: (T, 478, 3) in their pixels, one a frame.
    """
    for frame, (x, y, half) in zip(frames, _track(landmarks), strict=False):
        room = int(half * (1 + 2 * CROP_SCALE))
        padded = np.pad(frame, ((room, room), (room, room), (0, 0)), constant_values=GREY)
        x, y = np.clip(x, 0, frame.shape[1]) + room, np.clip(y, 0, frame.shape[0]) + room
        top, bottom = int(y - half), int(y + half * (1 + 2 * CROP_SCALE))
        left, right = int(x - half * (1 + CROP_SCALE)), int(x + half * (1 + CROP_SCALE))
        cut = padded[top:bottom, left:right]
        down, across = (Places((length / SIZE - 1) / 2, length / SIZE, SIZE) for length in cut.shape[:2])
        yield resampled(cut, across, down)


def _track(landmarks: np.ndarray) -> np.ndarray:
    """x, y and half the larger side of the face (T, 3), median-filtered."""
    from scipy.signal import medfilt

    low, high = landmarks[..., :2].min(1), landmarks[..., :2].max(1)
    half = (high - low).max(1, keepdims=True) / 2
    track = np.concatenate([(low + high) / 2, half], 1).astype(np.float64)
    # The public filter counts zeros beyond the ends, which moves the first and last crops of a face that moves.
    return np.stack([medfilt(column, MEDIAN) for column in track.T], 1) if len(track) >= MEDIAN else track


# Scores


@dataclass(frozen=True)
class SyncNetScore:
    """Scores of one clip.

    curve: (2 vshift + 1,) mean distance between picture and sound; entry j compares each picture with the sound that
        is vshift - j frames earlier in the file.
    offset: frames; positive: the sound leads, its events come before the picture's.
    confidence: median minus minimum of the curve; also Wav2Lip's LSE-C of the clip (for vshift 15).
    distance: minimum of the curve; LSE-D of the clip.
    """

    curve: np.ndarray
    offset: int
    confidence: float
    distance: float


def score(lips: Tensor, sound: Tensor, vshift: int = VSHIFT) -> SyncNetScore:
    """Compare embeddings (N, 1024) of windows that start at the same times, N >= 1, over shifts of the sound.

    As the public code does, sound before the start and after the end counts as an embedding of zeros.
    """
    padded = F.pad(sound, (0, 0, vshift, vshift))
    count = len(lips)
    shifts = range(2 * vshift + 1)
    curve = torch.stack([F.pairwise_distance(lips, padded[j : j + count]).mean() for j in shifts])
    least = int(curve.argmin())
    minimum, median = float(curve[least]), float(curve.median())
    return SyncNetScore(curve.numpy(), vshift - least, median - minimum, minimum)


@torch.inference_mode()
def score_clip(model: SyncNet, crops: Iterable[np.ndarray], waveform: np.ndarray, vshift: int = VSHIFT) -> SyncNetScore:
    """SyncNet's scores of one clip: crops (224, 224, 3) uint8 RGB at 25 fps and their sound (n,) at 16 kHz.

    Embeds crops as they come; embeddings are kept (4 kB a frame). Raises InputError below 6 frames: the public
    code leaves out the last window.
    """
    lips = torch.cat([torch.zeros(0, EMBEDDING), *_embedded(model, crops)])
    windows = sound_windows(waveform)
    frames = min(len(lips) + WINDOW - 1, len(waveform) // SAMPLES_PER_VIDEO) if len(lips) else 0
    count = min(frames - WINDOW, len(windows))
    if count < 1:
        raise InputError(f"SyncNet needs {WINDOW + 1} frames of face and sound at least; give a longer clip")
    sound = torch.cat([model.embed_sound(part) for part in windows[:count].split(8 * BATCH)])
    return score(lips[:count], sound, vshift)


def _embedded(model: SyncNet, crops: Iterable[np.ndarray]) -> Iterator[Tensor]:
    """Embeddings (N, 1024) of the windows of a video, some at a time."""
    crops = iter(crops)
    kept = list(islice(crops, WINDOW - 1))
    while new := list(islice(crops, BATCH)):
        frames = torch.from_numpy(np.stack([*kept, *new])[..., ::-1].copy())
        yield model.embed_lips(frames.permute(3, 0, 1, 2)[None].float())[0]
        kept = [*kept, *new][-(WINDOW - 1) :]


class SyncNetMetric(Metric):
    """Means over clips of |AV-Off| (frames), AV-Conf, LSE-D and LSE-C, as a `torchmetrics.Metric`."""

    full_state_update = False
    scores: list[Tensor]

    def __init__(self, model: SyncNet, vshift: int = VSHIFT) -> None:
        super().__init__()
        self.model, self.vshift = model, vshift
        self.add_state("scores", [], dist_reduce_fx="cat")

    def update(self, crops: Iterable[np.ndarray], waveform: np.ndarray) -> None:
        """One clip, as `score_clip` takes it."""
        found = score_clip(self.model, crops, waveform, self.vshift)
        self.scores.append(torch.tensor([[abs(found.offset), found.confidence, found.distance]], device=self.device))

    def compute(self) -> dict[str, Tensor]:
        offset, confidence, distance = torch.cat([torch.as_tensor(s) for s in self.scores]).mean(0)
        return {"av_off": offset, "av_conf": confidence, "lse_d": distance, "lse_c": confidence}
