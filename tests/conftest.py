"""Set-up shared by all tests."""

from __future__ import annotations

import pytest

import gatedrnn as gr
from helpers import BORROWED

if BORROWED:
    import gatedrnn.torch


def pytest_addoption(parser):
    parser.addoption(
        "--every", type=int, default=1, metavar="N", help="run every Nth test only (emulators are slow)"
    )


def pytest_collection_modifyitems(config, items):
    items[:] = items[:: config.getoption("--every")]


@pytest.fixture(autouse=True)
def _thread_count_restored():
    """A test may set the number of threads; the next one starts from what there was."""
    before = gr.get_num_threads()
    yield
    if gr.get_num_threads() != before:
        gr.set_num_threads(before)


@pytest.fixture
def one_torch_thread():
    """PyTorch computes on one thread, so that its sums have one order."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def compiled():
    """torch.compile, without breaks in the graph."""
    torch = pytest.importorskip("torch")
    torch._dynamo.reset()
    yield lambda function, **options: torch.compile(function, fullgraph=True, backend="aot_eager", **options)
    torch._dynamo.reset()
