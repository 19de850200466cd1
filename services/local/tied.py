"""Become another program that the kernel kills when its parent dies: `python tied.py PARENT_PID PROGRAM ARGUMENT...`.

A program of its own, not a preexec_fn: that would run Python between fork and exec of a process with threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent_pid: int, command: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent_pid:  # else it died before the kernel knew our wish
        os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
