"""Set-up shared by all tests."""

from __future__ import annotations

import pytest

import gatedrnn as gr


@pytest.fixture(autouse=True)
def _thread_count_restored():
    """A test may set the number of threads; the next one starts from what there was."""
    before = gr.get_num_threads()
    yield
    if gr.get_num_threads() != before:
        gr.set_num_threads(before)
