"""Remove debug information and symbol tables from the shared libraries of an environment.

    python strip_symbols.py /opt/estsuite/lib

Wheels of some packages have them, and no service reads them. What the loader maps stays octet for
octet. A file of which this cannot be said (another format, or symbols between what is mapped) is
left as it is. RECORD of each changed distribution gets the new hash and size. Needs the standard
library only: images run it, and the base image has no ``strip``.
"""

from __future__ import annotations

import csv
import io
import struct
import sys
from base64 import urlsafe_b64encode
from dataclasses import astuple, dataclass
from hashlib import sha256
from pathlib import Path

_MAGIC = b"\x7fELF"
_CLASS_64 = 2
_ORDERS = {1: "<", 2: ">"}
_HEADER, _SECTION, _SEGMENT = "16sHHIQQQIHHHHHH", "IIQQQQIIQQ", "IIQQQQQQ"
_LOAD, _NOBITS, _STRTAB = 1, 8, 3
_ALLOC = 0x2
_EXTENDED = 0xFF00
"""From here on the header does not have the number of sections."""


@dataclass(frozen=True)
class _Section:
    """An entry of the section header table."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int

    @property
    def mapped(self) -> bool:
        """Whether the loader maps it."""
        return bool(self.flags & _ALLOC)

    @property
    def end(self) -> int:
        """Where it ends in the file."""
        return self.offset + (0 if self.kind == _NOBITS else self.size)


def stripped(octets: bytes) -> bytes | None:
    """Return a library without what is not mapped; None: nothing to remove, or it cannot be."""
    try:
        return _stripped(octets)
    except (struct.error, IndexError, KeyError, ValueError):  # cut short, or no library
        return None


def _stripped(octets: bytes) -> bytes | None:
    if octets[:4] != _MAGIC or octets[4] != _CLASS_64:
        return None
    order = _ORDERS[octets[5]]
    header = list(struct.unpack_from(order + _HEADER, octets))
    if not 0 < header[12] < _EXTENDED:
        return None
    sections = [
        _Section(*struct.unpack_from(order + _SECTION, octets, header[6] + i * header[11]))
        for i in range(header[12])
    ]
    kept = [s for s in sections[1:] if s.mapped]
    # Mapped sections come first, so those that stay keep their numbers, which symbols contain.
    if kept != sections[1 : len(kept) + 1] or any(s.link > len(kept) for s in kept):
        return None
    ends = [s.end for s in kept]
    for i in range(header[10]):
        kind, _, offset, _, _, size, *_ = struct.unpack_from(
            order + _SEGMENT, octets, header[5] + i * header[9]
        )
        if kind == _LOAD:
            ends.append(offset + size)
    end = max(ends)
    if all(s.offset < end for s in sections[len(kept) + 1 :]):
        return None
    names, table = b"\0", bytes(struct.calcsize(order + _SECTION))
    for section in kept:
        start = sections[header[13]].offset + section.name
        table += struct.pack(order + _SECTION, len(names), *astuple(section)[1:])
        names += octets[start : octets.index(b"\0", start) + 1]
    own = len(names)
    names += b".shstrtab\0"
    table += struct.pack(order + _SECTION, own, _STRTAB, 0, 0, end, len(names), 0, 0, 1, 0)
    names += bytes(-(end + len(names)) % 8)
    header[6], header[12], header[13] = end + len(names), len(kept) + 2, len(kept) + 1
    head = struct.pack(order + _HEADER, *header)
    new = head + octets[len(head) : end] + names + table
    return new if len(new) < len(octets) else None


def strip_all(folder: Path) -> tuple[int, int]:
    """Strip each library in a folder; returns how many were changed, and the octets saved."""
    changed, saved = {}, 0
    for path in sorted(folder.rglob("*.so*")):
        if path.is_symlink() or not path.is_file():
            continue
        octets = path.read_bytes()
        new = stripped(octets)
        if new is not None:
            _replace(path, new)
            changed[path.resolve()] = new
            saved += len(octets) - len(new)
    for record in folder.rglob("*.dist-info/RECORD"):
        _correct(record, changed)
    return len(changed), saved


def _correct(record: Path, changed: dict[Path, bytes]) -> None:
    """Write the hash and size of changed files into the RECORD of their distribution."""
    above = record.parent.parent
    rows = list(csv.reader(io.StringIO(record.read_text(encoding="utf-8"))))
    found = False
    for row in rows:
        octets = changed.get((above / row[0]).resolve()) if len(row) == 3 else None  # noqa: PLR2004
        if octets is not None:
            digest = urlsafe_b64encode(sha256(octets).digest()).rstrip(b"=").decode()
            row[1:] = [f"sha256={digest}", str(len(octets))]
            found = True
    if found:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        _replace(record, text.getvalue().encode())


def _replace(path: Path, octets: bytes) -> None:
    """Give a path a file of its own: the present one may be uv's cache too, or be in use."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(octets)
    new.chmod(path.stat().st_mode)
    new.replace(path)


def main() -> int:
    """Strip the folder that the command line names."""
    changed, saved = strip_all(Path(sys.argv[1]))
    sys.stdout.write(f"stripped {changed} libraries, {round(saved / 1_000_000)} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
