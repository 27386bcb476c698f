"""The bits that every build has, whatever its compiler, processor and instruction set: those of a table."""

from __future__ import annotations

import json

import pytest

import digests
from gatedrnn import _core
from helpers import FMA_ISAS, run_python

EXPECTED = json.loads(digests.TABLE.read_text())
CODE = "import digests, json; print(json.dumps(digests.digests()))"
LONG = 600  # a second or two, but where the processor is emulated
# Zen 4's instruction sums bfloat16 in an order of its own (docs/precision.md).
OF_ITS_OWN = {"avx512_bf16": ("bfloat16 ",)}


def test_the_table_is_of_these_cases():
    assert [description for description, *_ in digests.cases()] == list(EXPECTED)
    values = [value for of_case in EXPECTED.values() for value in of_case.split()]
    assert len(set(values)) == len(values), "two cases have the same digest, so one says nothing"


@pytest.mark.skipif(not FMA_ISAS, reason="without fused multiply-add only run-to-run equality is promised")
@pytest.mark.parametrize("isa", FMA_ISAS)
def test_bits_are_those_of_the_table(isa):
    """That these are the bits of plain scalar loops is what tests/cpp compares."""
    found, of_its_own = run_python(CODE, isa=isa, timeout=LONG), OF_ITS_OWN.get(isa, ())
    compared = [name for name in found if not name.startswith(of_its_own)]
    assert len(compared) >= len(EXPECTED) * 3 // 4
    wrong = [name for name in compared if found[name] != EXPECTED[name]]
    assert not wrong, f"{len(wrong)} of {len(compared)}: {', '.join(wrong[:20])}"


@pytest.mark.parametrize("isa", sorted({"baseline", *OF_ITS_OWN} & set(_core.machine()["available"])))
def test_bits_of_its_own_are_the_same_in_the_next_run(isa):
    assert run_python(CODE, isa=isa) == run_python(CODE, isa=isa)
