"""Protection of a process's memory: keys in it reach no core file, no debugger and no swap.

- ``RLIMIT_CORE`` 0: no core file, also of children.
- ``PR_SET_DUMPABLE`` 0: no core file where ``core_pattern`` is a pipe (which ignores the limit);
  ``/proc/<pid>`` belongs to root, and other processes of the same user cannot trace this one.
- ``mlockall``: pages that have been used stay in RAM. Only where the system sets no limit
  (``RLIMIT_MEMLOCK`` unlimited, or ``CAP_IPC_LOCK``): with one, a later allocation could fail.
- ``mallopt``: what was allocated as a large block goes back to the system when it is freed.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

_PR_SET_DUMPABLE = 4
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_CAP_IPC_LOCK = 14
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def forbid_dumps() -> None:
    """See to it that the memory of this process is in no core file and in no other process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # A zero that cannot fail: prctl(2) has no error for it.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def lock_memory() -> bool:
    """Keep this process's memory out of the swap; returns whether the system allows it."""
    if sys.platform != "linux" or not (_unlimited() or _may_lock()):
        return False
    # ONFAULT: only what is used counts, not the whole of every library and thread stack.
    flags = _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT
    return bool(ctypes.CDLL(None, use_errno=True).mlockall(flags) == 0)


def return_large_blocks() -> bool:
    """Have the C library return large blocks when they are freed; False where it cannot.

    glibc learns from a large block that was freed, and takes the next ones from its heap, which
    then keeps their memory: one password hash by argon2id (19 MiB) made est-frontend so much
    larger for ever.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 22)) and bool(mallopt(_M_TRIM_THRESHOLD, 1 << 23))


def _unlimited() -> bool:
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard != resource.RLIM_INFINITY:
        return False
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    return True


def _may_lock() -> bool:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return False
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1)
    return False
