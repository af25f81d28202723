"""Files for services, placed in folders that other users may own.

A file is written beside its place, given its owner and mode, flushed, and renamed: a reader sees
the old one or the new one. An agent that runs as root must not be led to another place, so

- every folder of the path is opened from the one above it (``openat``), and work is done in the
  opened folder;
- a symbolic link on the way is followed only where root or the agent's own user made it;
- a folder that everybody may write to is refused, with and without a sticky bit, and so is one
  that belongs to a user who is neither root, nor the agent's own, nor the owner of the file;
- the file itself is created anew, never through a link.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from estclient.agent.output_settings import is_account_number
from estclient.errors import OutputFailed

_LINKS = 16
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""A pipe in the place of a file must not stop the agent."""
_LONGEST = 1 << 20


@dataclass(frozen=True)
class Access:
    """Who may use a file: owner and group by name or number, None as the process has them."""

    mode: int
    owner: str | None = None
    group: str | None = None


def place_file(path: Path, octets: bytes, access: Access) -> None:
    """Write a file in one step.

    Raises:
        OutputFailed: the folder is not safe, or owner or group cannot be given.
        OSError: the file cannot be written; nothing changed.
    """
    user, group = _user(access.owner), _group(access.group)
    with opened_folder(path.parent, user) as folder:
        made = f".{path.name}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(made, dir_fd=folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(made, flags, 0o600, dir_fd=folder)
        try:
            with os.fdopen(file, "wb") as opened:
                opened.write(octets)
                opened.flush()
                _give(opened.fileno(), path, user, group)
                os.fchmod(opened.fileno(), access.mode)
                os.fsync(opened.fileno())
            os.replace(made, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:  # Cleanup, then raised again: half a file must not stay.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(made, dir_fd=folder)
            raise
        os.fsync(folder)


def read_placed(path: Path, access: Access) -> bytes | None:
    """Return the octets of a file of ours; None if it is missing or its access is another.

    Raises:
        OutputFailed: the folder is not safe.
        OSError: it cannot be read.
    """
    user, group = _user(access.owner), _group(access.group)
    with opened_folder(path.parent, user) as folder:
        try:
            file = os.open(path.name, _READ, dir_fd=folder)
        except OSError:
            return None
        with os.fdopen(file, "rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode) or stat.S_IMODE(status.st_mode) != access.mode:
                return None
            if user not in {-1, status.st_uid} or group not in {-1, status.st_gid}:
                return None
            return opened.read(_LONGEST)


def remove_placed(path: Path, owner: str | None) -> bool:
    """Remove a file; returns whether it was there.

    Raises:
        OutputFailed: the folder is not safe.
        OSError: it cannot be removed.
    """
    with opened_folder(path.parent, _user(owner)) as folder:
        try:
            os.unlink(path.name, dir_fd=folder)
        except FileNotFoundError:
            return False
        os.fsync(folder)
        return True


@contextlib.contextmanager
def opened_folder(path: Path, user: int) -> Iterator[int]:
    """Open a folder for a file of a user (-1: the agent's own); good inside the block.

    Raises:
        OutputFailed: a link of another user is on the way, or others may write to the folder.
        OSError: it does not exist or cannot be opened.
    """
    descriptors = [os.open("/", _OPEN)]
    names = list(path.parts[1:])
    links = 0
    try:
        while names:
            name = names.pop(0)
            if name == "..":
                if len(descriptors) > 1:
                    os.close(descriptors.pop())
                continue
            target = _link(descriptors[-1], name, path)
            if target is None:
                descriptors.append(_open(descriptors[-1], name, path))
                continue
            links += 1
            if links > _LINKS:
                raise OutputFailed(f"{path}: too many symbolic links", code="agent.output_path")
            if target.startswith("/"):
                while len(descriptors) > 1:
                    os.close(descriptors.pop())
            names[:0] = [part for part in target.split("/") if part not in {"", "."}]
        _check_folder(path, os.fstat(descriptors[-1]), user)
        yield descriptors[-1]
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _check_folder(path: Path, status: os.stat_result, user: int) -> None:
    if status.st_mode & stat.S_IWOTH:
        raise OutputFailed(f"{path}: everybody may write there", code="agent.output_path")
    if status.st_uid not in {0, os.geteuid(), user}:
        raise OutputFailed(
            f"{path} belongs to another user: name that user as owner", code="agent.output_path"
        )


def _open(above: int, name: str, path: Path) -> int:
    try:
        return os.open(name, _OPEN, dir_fd=above)
    except OSError as exc:
        exc.filename = str(path)
        raise


def _link(above: int, name: str, path: Path) -> str | None:
    """Return where a link of root or of our own leads; None for what is no link."""
    try:
        status = os.stat(name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError as exc:
        exc.filename = str(path)
        raise
    if not stat.S_ISLNK(status.st_mode):
        return None
    if status.st_uid not in {0, os.geteuid()}:
        raise OutputFailed(
            f"{path}: {name} is a symbolic link of another user", code="agent.output_path"
        )
    return os.readlink(name, dir_fd=above)


def _give(file: int, path: Path, user: int, group: int) -> None:
    if (user, group) == (-1, -1):
        return
    try:
        os.fchown(file, user, group)
    except PermissionError as exc:
        raise OutputFailed(
            f"{path}: this process may not set owner or group; run it as root, or leave out owner "
            "and name a group of its own user",
            code="agent.output_owner",
        ) from exc


def _user(name: str | None) -> int:
    if name is None:
        return -1
    if is_account_number(name):
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError as exc:
        raise OutputFailed(f"there is no user {name}", code="agent.output_owner") from exc


def _group(name: str | None) -> int:
    if name is None:
        return -1
    if is_account_number(name):
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as exc:
        raise OutputFailed(f"there is no group {name}", code="agent.output_owner") from exc
