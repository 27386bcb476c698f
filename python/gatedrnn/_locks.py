"""Locks that a forked child finds free: the threads that held them are gone, and would never release them."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class Locked(Protocol):
    """What has a lock; it can be referred to weakly."""

    lock: threading.Lock


_owners: weakref.WeakSet[Locked] = weakref.WeakSet()


def give_lock(owner: Locked) -> None:
    """Set ``owner.lock``, now and in each child that is forked while the owner lives."""
    owner.lock = threading.Lock()
    _owners.add(owner)


def _renew_all() -> None:
    for owner in _owners:
        owner.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
