"""The examples with real models: the package's own answers, and a recurrent part as exact as NumPy's."""

from __future__ import annotations

import importlib.util
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import reference
from gatedrnn._recurrent import _Recurrent

pytestmark = pytest.mark.models
FOLDER = Path(__file__).parents[1] / "examples" / "models"
EXACTNESS = 8  # times the error of the same equations in NumPy's float32


@pytest.fixture
def example(monkeypatch):
    """Import an example, if what it needs is installed."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name, *packages):
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")
        return importlib.import_module(name)

    torch = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
    threads = torch and torch.get_num_threads()
    yield load
    if torch:
        torch.set_num_threads(threads)  # Silero VAD sets it as it is imported
    for name in [name for name, module in sys.modules.items() if str(FOLDER) in str(module)]:
        del sys.modules[name]


@pytest.fixture
def calls(monkeypatch):
    """Keep what modules are called with, and what they give."""
    kept = []
    call = _Recurrent.__call__

    def keeping(self, x, state=None, **options):
        result = call(self, x, state, **options)
        kept.append((self, np.array(x), state, options.get("lengths"), np.array(result[0])))
        return result

    monkeypatch.setattr(_Recurrent, "__call__", keeping)
    return kept


def plain(module, x, state, lengths, dtype):
    """The output of a module, by the reference, row by row in a type."""
    x = np.asarray(x, dtype)
    if x.ndim == 2:
        return plain(module, x[:, None] if not module.batch_first else x[None], state, lengths, dtype)
    rows = x if module.batch_first else x.swapaxes(0, 1)
    p = {name: value.astype(dtype) for name, value in module.state_dict().items()}
    cell, H = {"LSTM": reference.lstm, "GRU": reference.gru}[type(module).__name__], module.hidden_size
    suffixes = ("_l0", "_l0_reverse")[: 1 + module.bidirectional]
    parts = state if isinstance(state, tuple) else (state,) * (2 if cell is reference.lstm else 1)
    outputs = np.zeros((len(suffixes), *rows.shape[:2], H), dtype)
    for d, suffix in enumerate(suffixes):
        own = {name.removesuffix(suffix): value for name, value in p.items() if name.endswith(suffix)}
        for b, row in enumerate(rows):
            steps = range(len(row) if lengths is None else lengths[b])
            now = [
                np.zeros((1, H), dtype) if s is None else np.asarray(s, dtype)[d, b : b + 1] for s in parts
            ]
            for t in reversed(steps) if d else steps:
                now = cell(own, row[t : t + 1], now, reference.Options())
                outputs[d, b, t] = now[0]
    joined = outputs.sum(axis=0) if module.merge == "sum" else np.concatenate(outputs, axis=2)
    return joined if module.batch_first else joined.swapaxes(0, 1)


def check_exactness(calls, most=6):
    """On what the model really computes with, ours are as near to float64 as NumPy's float32."""
    assert calls
    calls = [kept for kept in calls if kept[0].precision is None]
    for module, x, state, lengths, output in calls[:: max(1, len(calls) // most)]:
        exact = plain(module, x, state, lengths, np.float64)
        usual = plain(module, x, state, lengths, np.float32)
        error, usual_error = (np.abs(y - exact).max() for y in (output.reshape(exact.shape), usual))
        assert error <= EXACTNESS * usual_error + 1e-7, (module, error, usual_error)


def test_attitude(example, calls):
    (before, now), (steps_before, steps_now) = example("attitude", "riann").main(200)
    np.testing.assert_allclose(now, before, atol=1e-5)
    np.testing.assert_allclose(steps_now, steps_before, atol=1e-5)
    np.testing.assert_allclose(steps_now, now[:100], atol=1e-5)
    check_exactness(calls)


def test_attitude_in_lower_precisions(example, capsys):
    """Within a degree of what the package gives."""
    example("attitude", "riann").main(200)
    lines = capsys.readouterr().out.splitlines()
    said = [float(line.split()[2]) for line in lines if line.startswith("in ")]
    assert len(said) == 2
    assert all(0 < largest < 1 for largest in said)


def test_japanese_words(example, calls):
    before, now = example("japanese_words", "nagisa").main()
    assert now == before
    assert sum(map(len, now)) > 50
    check_exactness(calls)


def test_voice_activity(example, calls):
    module = example("voice_activity", "silero_vad", "espeakng_loader")
    before, now = module.main(module.spoken(module.SENTENCE))
    assert now == before
    assert len(now) >= 1
    check_exactness(calls)


def test_voice_activity_of_a_file(example, tmp_path):
    import wave

    module = example("voice_activity", "silero_vad", "espeakng_loader")
    sound = module.spoken(module.SENTENCE)
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(module.RATE)
        file.writeframes((sound * 32767).astype(np.int16).tobytes())
    np.testing.assert_allclose(module.recorded(str(tmp_path / "speech.wav")), sound, atol=1e-4)


def test_romanize_thai(example, calls):
    before, now, together = example("romanize_thai", "pythainlp").main()
    assert now == together == before
    assert now[:3] == ["phasathai", "maeo", "krungthep"]
    check_exactness(calls)


def test_write_text(example, calls):
    before, now = example("write_text", "torch", "textgenrnn").main(2, 20)
    assert now == before
    assert all(text.isascii() for text in now)
    check_exactness(calls)


def test_hebrew_vowels(example, calls):
    """Texts are what the package itself gives, with TensorFlow 2.15."""
    answers = example("hebrew_vowels", "nakdimon").main()
    assert [unicodedata.normalize("NFC", text) for text in answers] == [
        "שָׁלוֹם עוֹלָם, זֶה מִשְׁפָּט לְדוּגְמָה בְּעִבְרִית.",
        "הַיְּלָדִים הָלְכוּ לְבֵית הַסֵּפֶר בַּבּוֹקֶר.",
        "מָה שְׁלוֹמֵךְ הַיּוֹם?",
    ]
    check_exactness(calls)


def test_read_picture(example, calls):
    module = example("read_picture", "ddddocr")
    before, now = module.main(module.TEXTS[:2])
    assert now == before == ["gated", "recurrent"]
    check_exactness(calls, most=1)
