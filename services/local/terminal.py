"""The terminal's Ctrl-C goes to `splitmesh up` alone, also when `make` started it.

A terminal interrupts its whole foreground process group. Were `make` in it, it would report an error and fail although
the mesh has drained and ended as it should.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_foreground() -> Iterator[None]:
    """Be the terminal's foreground group for a while; nothing happens without a terminal, or when we are it already."""
    if not sys.stdin.isatty():
        yield
        return
    terminal, starters_group = sys.stdin.fileno(), os.getpgrp()
    if starters_group == os.getpid() or os.tcgetpgrp(terminal) != starters_group:
        yield
        return
    # Changing the foreground from outside it would stop us; alone in it, nobody could continue us after Ctrl-Z.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.tcsetpgrp(terminal, os.getpid())
    try:
        yield
    finally:
        os.tcsetpgrp(terminal, starters_group)
