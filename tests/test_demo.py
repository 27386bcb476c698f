"""The demo: words, command line, and the pretrained model against the code it comes with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gatedrnn import demo
from gatedrnn.demo import _compare, baseline, g2p, words

EXAMPLE = Path(__file__).parents[1] / "examples" / "pronounce.py"
ACTIVATIONIST = "AE2 K T IH0 V EY1 SH AH0 N IH0 S T"


@pytest.fixture(scope="module")
def package():
    try:
        return g2p.find_package()
    except g2p.ModelNotInstalledError:
        pytest.skip("g2p_en, which carries the pretrained weights, is not installed (extra: demo)")


@pytest.fixture(scope="module")
def weights(package):
    return g2p.load_weights(package)


@pytest.fixture(scope="module")
def pronounce(weights):
    return g2p.Pronouncer(weights)


@pytest.fixture(scope="module")
def reference(package):
    return baseline.load_reference(package)


def hide(monkeypatch, module):
    """Make a module look as if it were not installed."""
    monkeypatch.setitem(sys.modules, module, None)


# ---- without the pretrained model ----


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch, capsys):
    hide(monkeypatch, "g2p_en")
    assert demo.main([]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert 'pip install ".[demo]"' in captured.err


def test_a_package_without_the_weights_counts_as_missing(monkeypatch, tmp_path):
    (tmp_path / "g2p_en").mkdir()
    (tmp_path / "g2p_en" / "__init__.py").write_text("raise AssertionError('must not be imported')")
    monkeypatch.delitem(sys.modules, "g2p_en", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(g2p.ModelNotInstalledError):
        g2p.find_package()


@pytest.mark.parametrize(
    "word", ["", " ", "naïve!", "naïve", "two words", "it's", "a1", "-", "word\n", "日本", "İ"]
)
def test_words_outside_a_to_z_are_refused_by_name(word):
    with pytest.raises(ValueError, match="^word: expected letters a-z, got " + re.escape(repr(word)) + "$"):
        words.check_word(word)


def test_words_are_lower_cased_and_bounded():
    assert words.check_word("GatedRNN") == "gatedrnn"
    assert words.check_word("a" * words.MAX_LETTERS) == "a" * words.MAX_LETTERS
    with pytest.raises(ValueError, match="word: expected at most 100 letters, got 101"):
        words.check_word("a" * (words.MAX_LETTERS + 1))


def test_documentation_words_are_distinct_and_valid():
    found = words.documentation_words(10**9)
    assert len(found) > 2000
    assert len(set(found)) == len(found)
    assert [words.check_word(word) for word in found] == found
    assert words.documentation_words(7) == found[:7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["naïve!"], "word: expected letters a-z, got 'naïve!'"),
        (["fine", ""], "word: expected letters a-z, got ''"),
        (["--count", "0"], "argument --count: expected an integer of at least 1, got '0'"),
        (["--count", "many"], "argument --count: expected an integer of at least 1, got 'many'"),
        (["--batch-size", "-1"], "argument --batch-size: expected an integer in 1..4096, got '-1'"),
        (["--batch-size", "1e9"], "argument --batch-size: expected an integer in 1..4096, got '1e9'"),
        (["--threads", "0"], "argument --threads: expected an integer in 1.."),
        (["--threads", "99999999"], "argument --threads: expected an integer in 1.."),
        (["--train", "word"], "words: expected none with --train, got word"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_bad_arguments_are_argparse_errors(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        demo.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_encode_letters_pads_with_zeros():
    letters, lengths = g2p.encode_letters(["ab", "z"])
    assert lengths.tolist() == [3, 2]
    assert letters.T.tolist() == [[3, 4, g2p.LETTERS_END], [28, g2p.LETTERS_END, 0]]


def test_decode_phonemes_stops_at_the_end_mark():
    end = g2p.PHONEMES_END
    first = g2p.PHONEMES.index("AA0")
    assert g2p.decode_phonemes([[first, end, first], [end, first, first], [first] * 3]) == [
        ["AA0"],
        [],
        ["AA0"] * 3,
    ]


def test_a_slow_engine_gets_evenly_spaced_words():
    def spell(some):
        return [list(word) for word in some]

    many = [f"{i:04}" for i in range(1000)]
    engine = _compare.Engine("slow", spell, 1, seconds_at_most=1e-12)
    run = _compare.run(engine, many, show_progress=False)
    assert 1 <= len(run.phonemes) < len(many)
    everything = _compare.run(_compare.Engine("all", spell, 7), many, show_progress=True)
    assert list(everything.phonemes) == many
    assert _compare.differences(everything, run) == []
    everything.phonemes["0000"] = ["?"]
    assert _compare.differences(everything, run) == ["0000"]


# ---- with it ----


@pytest.mark.demo
def test_known_word(pronounce):
    assert pronounce(["activationist"]) == [ACTIVATIONIST.split()]


@pytest.mark.demo
def test_no_words(pronounce):
    assert pronounce([]) == []


@pytest.mark.demo
def test_symbols_are_those_of_the_package(reference):
    assert list(g2p.PHONEMES) == reference.phonemes
    assert list(g2p.GRAPHEMES) == reference.graphemes


@pytest.mark.demo
def test_weights_are_real_and_fit(weights):
    assert set(weights) == {
        *(f"{part}_{name}" for part in ("enc", "dec") for name in ("emb", "w_ih", "w_hh", "b_ih", "b_hh")),
        "fc_w",
        "fc_b",
    }
    assert weights["enc_w_ih"].shape == (3 * 256, 256)
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in weights.values())


@pytest.mark.demo
def test_phonemes_equal_the_package_s_own_code(pronounce, reference):
    some = [
        *words.documentation_words(10**9)[::10],
        "a",
        "q",
        "z" * 100,
        "supercalifragilisticexpialidocious",
    ]
    assert pronounce(some) == [reference.predict(word) for word in some]


@pytest.mark.demo
def test_batches_do_not_matter(pronounce):
    some = [*words.documentation_words(70), "a", "representationalternativelyversion"]
    together = pronounce(some)
    assert together == [pronounce([word])[0] for word in some]
    assert together[::-1] == pronounce(some[::-1])
    assert max(map(len, together)) == g2p.MAX_PHONEMES


@pytest.mark.demo
def test_phonemes_equal_pytorch(pronounce, weights):
    pytest.importorskip("torch", reason="PyTorch is not installed (extra: peers)")
    some = words.documentation_words(100)
    assert baseline.torch_pronouncer(weights)(some) == pronounce(some)


@pytest.mark.demo
@pytest.mark.usefixtures("package")
def test_main_prints_words_times_and_comparison(capsys):
    assert demo.main(["Activationist", "gated", "gated", "--quiet", "--batch-size", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"activationist  {ACTIVATIONIST}\n" in printed
    assert "2 distinct words, batches of 1" in printed
    assert re.search(r"phonemes equal to g2p_en .*: 2 of 2 words", printed)
    assert "compiled from the installed g2p.py" in printed


@pytest.mark.demo
@pytest.mark.usefixtures("package")
def test_main_by_default_takes_documentation_words(capsys, monkeypatch):
    hide(monkeypatch, "torch")
    hide(monkeypatch, "threadpoolctl")
    hide(monkeypatch, "tqdm")
    assert demo.main(["--count", "30", "--no-train"]) == 0
    printed = capsys.readouterr().out
    assert "30 distinct words of Python's own documentation (pydoc_data.topics), batches of 256" in printed
    assert "PyTorch" not in printed
    assert "threadpoolctl" in printed


@pytest.mark.demo
@pytest.mark.usefixtures("package")
def test_main_without_words_trains_too(capsys, monkeypatch):
    trained = []
    monkeypatch.setattr(demo.language_model, "run", trained.append)
    assert demo.main(["--count", "1", "--quiet"]) == 0
    assert [task.text for task in trained] == [None]
    assert "phonemes equal to g2p_en" in capsys.readouterr().out
    assert demo.main(["gated", "--quiet"]) == 0
    assert demo.main(["--count", "1", "--quiet", "--no-train"]) == 0
    assert len(trained) == 1


@pytest.mark.demo
@pytest.mark.usefixtures("package")
def test_main_lists_differences_and_fails(capsys, monkeypatch):
    monkeypatch.setattr(baseline, "load_reference", lambda package: _Deaf())
    assert demo.main(["gated", "--quiet"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"own NumPy code: 0 of 1 words\n  gated: G EY1 T IH0 D \| theirs: W AH1 T\n", printed)


class _Deaf:
    def predict(self, word):
        return ["W", "AH1", "T"]


@pytest.mark.demo
def test_another_release_s_source_is_refused(tmp_path):
    (tmp_path / "g2p.py").write_text("class G2p:\n    def predict(self, word): ...\n")
    with pytest.raises(RuntimeError, match=r"g2p\.py: expected class G2p with .*grucell"):
        baseline.load_reference(tmp_path)


@pytest.mark.demo
@pytest.mark.usefixtures("package")
def test_example_runs_alone():
    command = [sys.executable, str(EXAMPLE), "Activationist", "gated"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == [f"activationist {ACTIVATIONIST}", "gated G EY1 T IH0 D"]
