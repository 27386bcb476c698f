"""Where somebody speaks, with Silero VAD: convolutions, and an LSTM over the frames of 32 ms.

pip install ".[models]" && python examples/models/voice_activity.py [RECORDING.wav]

Without a recording, eSpeak NG speaks a sentence.
"""

import ctypes
import importlib.resources
import sys
import wave

import espeakng_loader
import numpy as np
from beside import beside
from silero_vad.sequence_vad import SileroVADSequence, get_speech_timestamps_sequence

import gatedrnn.onnx

RATE = 16000
SENTENCE = "Gates let a network keep what matters in a sequence, and forget the rest."


def spoken(text):
    """Let eSpeak NG speak, with half a second of silence around it."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path().encode()
    rate = library.espeak_Initialize(2, 0, data, 0)  # 2: synchronous, to a callback
    parts = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def keep(samples, count, _events):
        parts.append(np.ctypeslib.as_array(samples, (count,)).copy() if count else np.zeros(0, np.int16))
        return 0

    library.espeak_SetSynthCallback(keep)
    encoded = text.encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, 1, None, None)  # 1: by characters, in UTF-8
    library.espeak_Synchronize()
    return at_rate(np.pad(np.concatenate(parts) / 32768, rate // 2), rate)


def recorded(path):
    """Read the first channel of a WAV file of 16 bits."""
    with wave.open(path) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)[:: file.getnchannels()]
        return at_rate(samples / 32768, file.getframerate())


def at_rate(samples, rate):
    times = np.arange(int(len(samples) * RATE / rate)) / RATE
    return np.interp(times, np.arange(len(samples)) / rate, samples).astype(np.float32)


def main(audio):
    model = str(importlib.resources.files("silero_vad") / "data" / "silero_vad_16k_sequence.onnx")
    before = SileroVADSequence(model)

    now = SileroVADSequence(model)
    now.session = gatedrnn.onnx.InferenceSession(model)

    ways = (lambda: before.audio_forward(audio)), (lambda: now.audio_forward(audio))
    theirs, ours = beside(f"{len(audio) / RATE:.1f} s of sound", *ways)
    print(f"largest difference of a probability: {np.abs(theirs - ours).max():.1e}")
    spans = [get_speech_timestamps_sequence(audio, vad, return_seconds=True) for vad in (before, now)]
    for span in spans[1]:
        print(f"speech from {span['start']} s to {span['end']} s")
    print("the same spans:", spans[0] == spans[1])
    return spans


if __name__ == "__main__":
    main(recorded(sys.argv[1]) if sys.argv[1:] else spoken(SENTENCE))
