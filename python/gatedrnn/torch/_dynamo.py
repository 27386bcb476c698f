"""Dynamo, which compiles for ``torch.compile``, takes our modules into its graphs.

It leaves every ``torch.nn.LSTM``, ``GRU`` and ``RNN`` out of them, because it would unroll their steps. Ours
are of these types, but a single operator. Whether one is left out is a setting for the whole process, which
would be wrong for torch.nn's own. So it is set where Dynamo looks at one of ours, and nowhere else.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from gatedrnn.torch._recurrent import _Recurrent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_BUILDER = "torch._dynamo.variables.builder"


def let_dynamo_in() -> None:
    """Change how Dynamo looks at modules, once it is imported, which takes a second that few want to pay."""
    if _BUILDER in sys.modules:
        _change(sys.modules[_BUILDER])
    else:
        sys.meta_path.insert(0, _OnImport())


class _OnImport(importlib.abc.MetaPathFinder):
    """Finds the module as others do, and has it changed after it was executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _BUILDER or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_change(module: ModuleType) -> None:
                execute(module)
                _change(module)

            loader.exec_module = execute_and_change
        return spec


def _change(builder: ModuleType) -> None:
    """Allow recurrent modules for the time of a look at one of ours. Where names are others, graphs break."""
    cls: Any = getattr(builder, "VariableBuilder", None)
    config: Any = getattr(builder, "config", None)
    if not hasattr(cls, "wrap_module") or not hasattr(config, "allow_rnn"):
        return
    look = cls.wrap_module

    def wrap_module(self: Any, value: Any) -> Any:
        if not isinstance(value, _Recurrent):
            return look(self, value)
        with config.patch(allow_rnn=True):
            return look(self, value)

    cls.wrap_module = wrap_module
