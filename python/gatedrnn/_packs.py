"""When the weights of a module are packed: before they are used, and again after they changed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from gatedrnn import _core, _locks

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gatedrnn._parameters import Loan, ParameterStore

    Array = npt.NDArray[np.floating[Any]]


class Recipe(NamedTuple):
    """What a pack is made by, besides the parameters."""

    network: Any  # the class, of `_core` or `_device`
    cell: str  # the engine's name
    options: dict[str, Any]
    suffix: str = ""  # what names have there and not in the store


class PackCache:
    """The pack of a module's parameters.

    The pack, an engine `Network` made from the parameters, is immutable and replaced as a whole, so that a
    call in another thread finishes with the one it took. While nobody outside holds the parameters' arrays,
    only this class can change them, and `network` is the pack, ready to use without a question. To lend them
    sets it to None, and while the loan lives every call compares fingerprints (see `get`).
    """

    __slots__ = ("__weakref__", "_pack", "_recipe", "lock", "network", "store")

    lock: threading.Lock

    def __init__(self, store: ParameterStore, recipe: Recipe) -> None:
        self.store = store
        self._recipe = recipe
        self.network: Any = None
        self._pack: tuple[int, Any] | None = None  # the fingerprint of the parameters, and the network
        _locks.give_lock(self)

    def get(self, for_backward: bool = False) -> Any:
        """Return the pack of the parameters as they are now, packing them first where they changed."""
        network, pack = self.network, self._pack
        if network is None and pack is not None and self.store.is_lent:
            network = pack[1] if pack[0] == _core.fingerprint([self.store.flat]) else None
        if network is not None and (network.packed_for_backward or not for_backward):
            return network
        with self.lock:  # nobody writes meanwhile: both packs are of the same parameters
            lent = self.store.is_lent  # asked before the comparison: whoever lets go may have written
            fingerprint = _core.fingerprint([self.store.flat])
            if self._pack is None or self._pack[0] != fingerprint:
                self._pack = fingerprint, self._new_network()
            if not lent:
                self.network = self._pack[1]
            if for_backward:
                self._pack[1].pack_for_backward()
            return self._pack[1]

    def get_for_streams(self) -> Any:
        """Return the pack with what pickles of its streams are made of: copies of its parameters."""
        while (network := self.get()).recipe is None:
            with self.lock:
                if self._pack != (_core.fingerprint([self.store.flat]), network):
                    continue  # written meanwhile: that was the pack of others
                recipe = self._recipe
                network.recipe = recipe.network, recipe.cell, self._copies(), recipe.options
        return network

    def get_any(self) -> Any:
        """Return the last pack, of whatever parameters, or a first one."""
        pack = self._pack
        return self.get() if pack is None else pack[1]

    def use(self, recipe: Recipe) -> None:
        """Make packs by another recipe from now on."""
        with self.lock:
            self._recipe = recipe
            self.network = self._pack = None

    def copies(self) -> dict[str, Array]:
        """Copy the parameters."""
        with self.lock:
            return self._copies()

    def write(self, values: Mapping[str, object]) -> None:
        """Check values, then write them into the parameters; errors are those of `ParameterStore.accept`."""
        accepted = self.store.accept(values)
        with self.lock:
            self.network = None
            self.store.write(accepted)

    def lend(self) -> Loan:
        """Take note that somebody may write into the parameters, from now on until the loan is gone."""
        with self.lock:
            self.network = None
            return self.store.loan()

    def _new_network(self) -> Any:
        recipe = self._recipe
        parameters = {name + recipe.suffix: view for name, view in self.store.views.items()}
        if self._pack is not None:
            return self._pack[1].renewed(parameters)
        return recipe.network(recipe.cell, parameters, **recipe.options)

    def _copies(self) -> dict[str, Array]:
        return {name: view.copy() for name, view in self.store.views.items()}
