"""The demo that trains: it learns, and a model saved and loaded goes on with the same bits."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gatedrnn import demo, train
from gatedrnn._optional import installed
from gatedrnn.demo import language_model
from gatedrnn.demo.language_model import UNKNOWN, Budget, CharacterModel, Writer
from helpers import assert_same_bits

TEXT = language_model.documentation_text()[:20_000]
cells = pytest.mark.parametrize("cell", language_model.CELLS)


def build(cell="lstm", *, seed=0, hidden_size=24, text=TEXT):
    return CharacterModel(cell, hidden_size, language_model.vocabulary_of(text), seed=seed)


def states(writer):
    state = writer.stream.state
    return state if isinstance(state, tuple) else (state,)


# ---- text ----


def test_documentation_is_prose():
    text = language_model.documentation_text()
    assert len(text) > 100_000
    assert all(re.fullmatch(r"[A-Z].*[.:]", line) for line in text.splitlines())
    assert "Assert statements are a convenient way to insert debugging assertions into a program:" in text
    assert "***" not in text
    assert "  " not in text


def test_vocabulary_is_sorted_and_bounded():
    assert language_model.vocabulary_of("banana" + UNKNOWN) == UNKNOWN + "abn"
    many = "".join(chr(0x4E00 + k) * (300 - k) for k in range(300))
    assert language_model.vocabulary_of(many) == UNKNOWN + "".join(chr(0x4E00 + k) for k in range(255))


def test_encode_maps_what_it_does_not_know_to_0():
    model = CharacterModel("gru", 3, UNKNOWN + "ab")
    assert model.encode("abéa").tolist() == [1, 2, 0, 1]
    assert model.encode("").shape == (0,)


def test_text_files_are_read_whatever_they_hold(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xff" + "é\r\n".encode() * 1000)
    assert language_model.read_text(path) == UNKNOWN + "é\n" * 1000
    path.write_text("short", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^text: expected at least 2000 characters, got 5 in .*text$"):
        language_model.read_text(path)


# ---- training ----


@cells
def test_it_learns_more_than_how_frequent_characters_are(cell):
    """No model that ignores what came before can be better than the entropy of the characters themselves."""
    model = build(cell)
    tokens = model.encode(TEXT)
    held_out = tokens[-len(tokens) // 20 :]
    before = model.loss(held_out)
    curve = language_model.fit(model, tokens, Budget(1.0, epochs=12))
    shares = np.bincount(tokens) / len(tokens)
    entropy = -np.sum(shares * np.log(shares, where=shares > 0, out=np.zeros_like(shares)))
    updates, losses = zip(*curve.held_out, strict=True)
    assert updates[-1] == len(curve.loss)
    assert losses[-1] < entropy < before
    assert losses[-1] == model.loss(held_out)


def test_the_same_epochs_give_the_same_bits():
    model, other = build(), build()
    tokens = model.encode(TEXT)
    curve = language_model.fit(model, tokens, Budget(1.0, epochs=2))
    assert language_model.fit(other, tokens, Budget(9.0, epochs=2)).loss == curve.loss
    for name, array in model.net.state_dict().items():
        assert_same_bits(other.net.state_dict()[name], array)
    rows = (len(tokens) - len(tokens) // 20 - 1) // 32
    assert curve.characters == 2 * 32 * rows
    assert len(curve.loss) == 2 * -(-rows // 64)


def test_seconds_are_kept_and_reported():
    model, shares = build(), []
    budget = Budget(0.3)
    curve = language_model.fit(model, model.encode(TEXT), budget, lambda curve, share: shares.append(share))
    assert curve.seconds >= budget.seconds > 0
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(shares) == len(curve.held_out) <= 11


def test_the_state_goes_from_chunk_to_chunk():
    """The loss of a chunk depends on the state that the one before ended in."""
    model = build()
    (first, second, *_) = train.token_chunks(model.encode(TEXT), 8, 2)
    _, _, state = model.loss_and_gradients(*first, None)
    both = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    whole = model.loss_and_gradients(*both, None)[0]
    parts = [model.loss_and_gradients(*first, None)[0], model.loss_and_gradients(*second, state)[0]]
    other = model.loss_and_gradients(*second, None)[0]
    # float32 logits, whose products may be summed in another order, of 24 + 1 terms
    tolerance = 25 * np.finfo(np.float32).eps * whole
    assert abs(np.mean(parts) - whole) <= tolerance
    assert abs(np.mean([parts[0], other]) - whole) > tolerance


# ---- writing, saving, loading ----


@cells
def test_a_loaded_model_goes_on_with_the_same_bits(cell, tmp_path):
    model = build(cell)
    language_model.fit(model, model.encode(TEXT), Budget(1.0, epochs=1))
    rng = np.random.default_rng(3)
    writer = Writer(model, "The ", rng)
    writer.write(60)
    model.save(tmp_path / "model")
    same_rng = np.random.default_rng()
    same_rng.bit_generator.state = rng.bit_generator.state
    loaded = Writer(CharacterModel.load(tmp_path / "model"), writer.text, same_rng)
    for ours, theirs in zip(states(loaded), states(writer), strict=True):
        assert_same_bits(ours, theirs)
    assert loaded.write(60) == writer.write(60)
    assert loaded.text == writer.text
    assert len(writer.text) == 124
    for ours, theirs in zip(states(loaded), states(writer), strict=True):
        assert_same_bits(ours, theirs)
    stranger = Writer(build(cell, seed=1), writer.text, np.random.default_rng(3))
    assert stranger.stream.state[0].tobytes() != loaded.stream.state[0].tobytes()


@cells
def test_a_file_has_everything(cell, tmp_path):
    model = build(cell, hidden_size=5, text="abc" * 9)
    path = tmp_path / "model"
    model.save(path)
    loaded = CharacterModel.load(path)
    assert (loaded.cell, loaded.vocabulary) == (cell, UNKNOWN + "abc")
    assert repr(loaded.net) == repr(model.net)
    for name, array in model.net.state_dict().items():
        assert_same_bits(loaded.net.state_dict()[name], array)
        assert_same_bits(load_file(path)[name], array)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(FileNotFoundError):
        CharacterModel.load(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="model: expected a language model of this demo"):
        CharacterModel.load(path)
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"metadata format is None, not 'gatedrnn\.demo\.language_model'"):
        CharacterModel.load(path)
    build().net.rnn.save(path)
    with pytest.raises(ValueError, match="metadata format is 'gatedrnn'"):
        CharacterModel.load(path)


def test_the_mark_for_unknown_characters_is_never_written():
    model = CharacterModel("gru", 3, UNKNOWN + "ab")
    model.net.head.bias[0] = 50
    written = Writer(model, "a", np.random.default_rng(0)).write(50)
    assert set(written) == {"a", "b"}


def test_a_low_temperature_takes_the_likeliest():
    model = CharacterModel("gru", 3, UNKNOWN + "ab")
    model.net.head.bias[2] = 1.0
    model.net.head.weight[...] = 0
    assert Writer(model, "a", np.random.default_rng(0), temperature=1e-3).write(20) == "b" * 20
    assert set(Writer(model, "a", np.random.default_rng(0), temperature=1e3).write(50)) == {"a", "b"}


# ---- the command ----


def run(capsys, tmp_path, *arguments):
    """Train for an epoch on a short text; return the status, what was printed, and the names of the files."""
    text, out = tmp_path / "text", tmp_path / "new" / "folder"
    text.write_text(TEXT, encoding="utf-8")
    given = ["--train", "--text", str(text), "--out", str(out), "--epochs", "1", "--hidden", "16", *arguments]
    status = demo.main(given)
    return status, capsys.readouterr().out, {path.name for path in out.iterdir()}


@cells
def test_main_trains_saves_and_goes_on(cell, capsys, tmp_path):
    status, printed, files = run(capsys, tmp_path, "--cell", cell, "--threads", "1")
    assert status == 0
    assert (
        f"{cell.upper()} of 16 units, on 20,000 characters of {tmp_path / 'text'}\nwith 1 thread;" in printed
    )
    lines = re.findall(
        r"% .* loss (\d\.\d+)  perplexity +(\d+\.\d+)  held out +\d+\.\d+ +[\d,]+ tokens/s", printed
    )
    assert len(lines) > 5
    # both numbers are rounded when they are printed
    assert all(abs(np.exp(float(a)) / float(b) - 1) < 0.5e-3 + 0.5e-2 / float(b) for a, b in lines[1:])
    assert "a state of the same bits" in printed
    assert files == {"language_model.safetensors", "sample.txt"} | ({"loss.png"} & {_png()})
    sample = (tmp_path / "new" / "folder" / "sample.txt").read_text(encoding="utf-8")
    assert sample.startswith("The ")
    assert len(sample) == 4 + 2 * 300
    assert sample[:304] in printed
    assert sample[304:] in printed


def _png():
    return "loss.png" if installed("matplotlib") else ""


def test_the_curve_is_a_picture(capsys, tmp_path):
    run(capsys, tmp_path, "--quiet")
    path = tmp_path / "new" / "folder" / "loss.png"
    assert path.exists() == installed("matplotlib")
    assert not path.exists() or path.read_bytes().startswith(b"\x89PNG")


def test_main_without_optional_packages(capsys, tmp_path, monkeypatch):
    for module in ("matplotlib", "threadpoolctl", "g2p_en", "torch", "tqdm"):
        monkeypatch.setitem(sys.modules, module, None)
    status, printed, files = run(capsys, tmp_path, "--quiet")
    assert status == 0
    assert files == {"language_model.safetensors", "sample.txt"}
    assert "tokens/s" not in printed


def test_main_notices_a_model_that_goes_on_otherwise(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(CharacterModel, "load", lambda path: build(hidden_size=16, seed=5))
    with pytest.raises(RuntimeError, match="went on otherwise"):
        run(capsys, tmp_path, "--quiet")


def test_any_text_will_do(capsys, tmp_path):
    text = tmp_path / "digits"
    text.write_text("3141592653" * 200, encoding="utf-8")
    arguments = ["--train", "--text", str(text), "--out", str(tmp_path), "--seconds", "0.1", "--hidden", "8"]
    assert demo.main(arguments) == 0
    sample = (tmp_path / "sample.txt").read_text(encoding="utf-8")
    assert set(sample) <= set("3141592653")
    assert "on 2,000 characters" in capsys.readouterr().out


def test_main_says_what_is_wrong_with_text_or_folder(capsys, tmp_path):
    short = tmp_path / "short"
    short.write_text("short", encoding="utf-8")
    assert demo.main(["--train", "--text", str(short)]) == 1
    assert "gatedrnn demo: text: expected at least 2000 characters, got 5" in capsys.readouterr().err
    assert demo.main(["--train", "--text", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert demo.main(["--train", "--out", str(short)]) == 1
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "argument --seconds: expected a number of seconds above 0, got '0'"),
        (["--seconds", "nan"], "argument --seconds: expected a number of seconds above 0, got 'nan'"),
        (["--seconds", "soon"], "argument --seconds: expected a number of seconds above 0, got 'soon'"),
        (["--epochs", "0"], "argument --epochs: expected an integer of at least 1, got '0'"),
        (["--hidden", "9999"], "argument --hidden: expected an integer in 1..4096, got '9999'"),
        (["--cell", "transformer"], "argument --cell: invalid choice: 'transformer'"),
    ],
)
def test_bad_arguments_are_argparse_errors(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        demo.main(["--train", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
