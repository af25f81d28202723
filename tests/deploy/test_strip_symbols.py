"""Debug information leaves the libraries of an image, and they work as before."""

from __future__ import annotations

import csv
import os
import shutil
import struct
import subprocess
import sys
from base64 import urlsafe_b64encode
from hashlib import sha256
from importlib.metadata import distribution
from pathlib import Path

import pytest
from estsupply import strip_symbols

USES = {
    "uvloop": "import asyncio, uvloop; print(uvloop.run(asyncio.sleep(0, 'works')))",
    "asyncpg": "import asyncpg.protocol.protocol as p; print(p.__file__)",
    "pynacl": "import nacl.utils; print(len(nacl.utils.random(8)))",
    "cryptography": "from cryptography.hazmat.primitives.asymmetric import ec; "
    "print(ec.generate_private_key(ec.SECP256R1()).curve.name)",
}
"""What uses libraries of a distribution that have symbols."""


def libraries(name: str) -> list[Path]:
    found = distribution(name)
    return [Path(str(found.locate_file(f))) for f in found.files or () if ".so" in f.name]


def sections(octets: bytes) -> set[str]:
    """The names of the sections, as a debugger finds them."""
    start, size, count, names = struct.unpack_from("<40xQ10xHHH", octets)
    entries = [struct.unpack_from("<IIQQQQ", octets, start + i * size) for i in range(count)]
    place = entries[names][4]
    ends = [octets.index(b"\0", place + entry[0]) for entry in entries]
    return {
        octets[place + entry[0] : end].decode() for entry, end in zip(entries, ends, strict=True)
    }


@pytest.mark.parametrize("name", USES)
def test_a_stripped_distribution_works(tmp_path: Path, name: str) -> None:
    """Copied with its metadata and stripped; RECORD agrees with every file."""
    found = distribution(name)
    files = [f for f in found.files or () if not f.is_absolute() and ".." not in f.parts]
    for file in files:
        source = Path(str(found.locate_file(file)))
        if source.is_file():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, tmp_path / file)
    changed, saved = strip_symbols.strip_all(tmp_path)
    assert changed > 0
    assert saved > 100_000

    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    program = f"{USES[name]}; import {name.replace('pynacl', 'nacl')} as m; print(m.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout.splitlines()[-1]

    (record,) = tmp_path.glob("*.dist-info/RECORD")
    with record.open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.reader(lines) if (tmp_path / row[0]).is_file() and row[1]]
    for path, digest, size in rows:
        octets = (tmp_path / path).read_bytes()
        assert int(size) == len(octets)
        hashed = urlsafe_b64encode(sha256(octets).digest()).rstrip(b"=").decode()
        assert digest == f"sha256={hashed}"
    assert strip_symbols.strip_all(tmp_path) == (0, 0)


def test_what_the_loader_maps_stays_octet_for_octet() -> None:
    for library in [path for name in USES for path in libraries(name)]:
        octets = library.read_bytes()
        new = strip_symbols.stripped(octets)
        if new is None:
            continue
        before, after = sections(octets), sections(new)
        assert not [name for name in after if name.startswith((".debug", ".symtab"))]
        assert {".dynsym", ".dynstr", ".text", ".rodata"} <= after <= before
        (segments_at,) = struct.unpack_from("<32xQ", octets)
        size, count = struct.unpack_from("<54xHH", octets)
        for i in range(count):
            kind, _, offset, _, _, length = struct.unpack_from(
                "<IIQQQQ", octets, segments_at + i * size
            )
            if kind == 1 and offset:
                assert new[offset : offset + length] == octets[offset : offset + length]


def test_what_is_not_understood_is_left_as_it_is(tmp_path: Path) -> None:
    octets = max(libraries("uvloop"), key=lambda path: path.stat().st_size).read_bytes()
    for length in (0, 3, 4, 5, 17, 63, 64, 4096, len(octets) // 2):
        assert strip_symbols.stripped(octets[:length]) is None
    assert strip_symbols.stripped(octets[:4] + b"\x01" + octets[5:]) is None  # of 32 bits
    assert strip_symbols.stripped(octets[:5] + b"\x07" + octets[6:]) is None  # of no octet order
    (tmp_path / "text.so").write_text("GROUP ( libc.so.6 )")  # a script of the linker
    (tmp_path / "link.so").symlink_to("/nowhere.so")
    assert strip_symbols.strip_all(tmp_path) == (0, 0)


def test_a_second_name_of_a_file_keeps_its_content(tmp_path: Path) -> None:
    """uv links the files of an environment to its cache, and other environments have the same."""
    source = max(libraries("uvloop"), key=lambda path: path.stat().st_size)
    (tmp_path / "environment").mkdir()
    shutil.copy2(source, tmp_path / "cached.so")
    (tmp_path / "environment" / "loop.so").hardlink_to(tmp_path / "cached.so")
    changed, _ = strip_symbols.strip_all(tmp_path / "environment")
    assert changed == 1
    assert (tmp_path / "cached.so").read_bytes() == source.read_bytes()
    assert (tmp_path / "environment" / "loop.so").stat().st_mode == source.stat().st_mode
