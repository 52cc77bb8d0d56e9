"""What POSIX has and Windows has otherwise: locks on open files, reads at a place, files in memory, flags, signals.

Windows' ways are checked by their types alone: nothing was run there.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

if sys.platform == "win32":
    import errno
    import mmap
    import msvcrt
    import threading

    NO_LINKS = os.O_BINARY
    OF_SLURM: tuple[signal.Signals, ...] = ()
    _seeking = threading.Lock()

    def lock_file(fd: int, *, wait: bool = False, shared: bool = False) -> None:
        """As below, of the first byte; nobody shares such a lock."""
        while True:
            try:
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
                return
            except PermissionError:  # held by another
                if not wait:
                    raise BlockingIOError from None
            time.sleep(0.05)

    def pread(fd: int, count: int, offset: int) -> bytes:
        """As below."""
        with _seeking:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, count)

    class MappedFile:
        """As below."""

        def __init__(self, path: Path) -> None:
            try:
                with path.open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise OSError(errno.EINVAL, "it is empty") from None
            self.__array_interface__ = {"version": 3, "shape": (len(mapped),), "typestr": "|u1", "data": mapped}

else:
    import ctypes
    import fcntl
    import mmap
    import weakref

    NO_LINKS = os.O_NOFOLLOW
    """A flag of `os.open`: the last part of a path is no link. Where Windows has links, few may make them."""
    OF_SLURM: tuple[signal.Signals, ...] = (signal.SIGUSR1,)
    """The signals that Slurm sends to be heeded."""
    pread = os.pread
    """At most so many bytes of an open file from an offset on, from any thread."""

    def lock_file(fd: int, *, wait: bool = False, shared: bool = False) -> None:
        """Lock an open file until it is closed.

        Args:
            fd: Its descriptor.
            wait: Whether to wait for whoever holds it.
            shared: Whether others may hold it so, too.

        Raises:
            BlockingIOError: If another holds it.
            OSError: Where the file system has no locks.
        """
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))

    # mmap.mmap keeps a file descriptor for every mapping (until Python 3.13's `trackfd`); the system call needs none.
    _libc: Any = ctypes.CDLL(None, use_errno=True)
    _libc.mmap.restype = ctypes.c_void_p
    _libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_int64)
    _libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    _MAP_FAILED = ctypes.c_void_p(-1).value

    class MappedFile:
        """A file's bytes in memory, read-only; `numpy.asarray` gives the view that keeps them there. Raises OSError."""

        def __init__(self, path: Path) -> None:
            fd = os.open(path, os.O_RDONLY)
            try:
                size = os.fstat(fd).st_size
                address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
                if address == _MAP_FAILED:  # an empty file is EINVAL, a folder ENODEV
                    raise OSError(ctypes.get_errno(), "it is empty" if size == 0 else os.strerror(ctypes.get_errno()))
            finally:
                os.close(fd)
            weakref.finalize(self, _libc.munmap, address, size).atexit = False
            self.__array_interface__ = {"version": 3, "shape": (size,), "typestr": "|u1", "data": (address, True)}
