"""End a network's work between two of its layers.

A large model takes many seconds over one tile on a processor; who presses Ctrl-C or cancels
a job does not want to wait for it. So a thread can ask for a look before every layer that it
runs, through torch's hook on all modules.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

_this_thread = threading.local()


@cache
def watch_layers() -> RemovableHandle:
    """Let work inside :func:`interruptible` end before any layer of any network of torch."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    return register_module_forward_pre_hook(_before_layer)


@contextmanager
def interruptible(check: Callable[[], None]) -> Iterator[None]:
    """Call ``check`` before every layer that this thread runs meanwhile; it may raise."""
    before = getattr(_this_thread, "check", None)
    _this_thread.check = check
    try:
        yield
    finally:
        _this_thread.check = before


def _before_layer(module: object, inputs: object) -> None:
    check = getattr(_this_thread, "check", None)
    if check is not None:
        check()
