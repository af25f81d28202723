"""Credentials in a folder: every generation in a place of its own, one symlink says which counts.

    <folder>/current -> generations/0002-1f3a…
    <folder>/generations/0002-1f3a…/{cert.pem,key.pem,ca.pem,bundle.json}
    <folder>/pending/{key.pem,csr.der,bundle.json}
    <folder>/server-roots.pem

``cert.pem`` holds the certificate, its intermediates and, during a rollover, what links its root
to another one; ``ca.pem`` every CA certificate. They change without a new generation when those do.
A generation is written beside, verified, flushed to disk, and only then does ``current`` move,
atomically; a reader sees the old or the new bundle, never half of one. ``pending`` keeps the
key of a request under way, so that a repeated request is the same request.

When the current generation is damaged, the newest one that is not takes its place.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from cryptography import x509

from estclient.agent.bundle import Bundle, Pending, served, verify_bundle
from estclient.agent.generation_files import (
    GenerationDamaged,
    facts_json,
    flush,
    read_certificates,
    read_generation,
    read_pending,
    to_pem,
    write_file,
    write_generation,
)
from estclient.errors import BundleInvalid
from estclient.est.keys import key_pem, load_any_key
from estclient.est.token_key import TokenKey
from estclient.est.trust_anchors import UNREADABLE

_KEEP = 3
"""Generations kept on disk; older ones are removed."""
_NAME = re.compile(r"([0-9]{1,9})-[0-9a-f]+", re.ASCII)


class CredentialStore:
    """The credentials of one service in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._generations = folder / "generations"
        self._pending = folder / "pending"
        self._server_roots = folder / "server-roots.pem"
        self.current = folder / "current"
        self.damage: dict[Path, str] = {}
        """What is damaged, by file, as found when it was read last."""

    def is_new(self) -> bool:
        """Return whether the store never held a generation, damaged ones included."""
        return not self._stored() and not self.current.is_symlink()

    def load(self, *, refused: Collection[str] = ()) -> Bundle | None:
        """Return the current bundle, or the newest one that is not damaged; None without any.

        ``refused`` are fingerprints of certificates that are not to be used. What is damaged is
        noted in ``damage``.

        Raises:
            OSError: a file cannot be read at the moment.
        """
        self._forget_damage(self._generations, self.current)
        current = self._current_folder()
        stored = self._stored()
        newest_first = [p for p in reversed(stored) if p != current]
        first = [current] if current is not None and current.is_dir() else []
        if current is not None and not first:
            self.damage[self.current] = f"there is no generation {current.name}"
        for folder in first + newest_first:
            try:
                bundle = read_generation(folder, self.damage.__setitem__)
            except GenerationDamaged as exc:
                self.damage[exc.file] = exc.what
                continue
            if bundle.fingerprint not in refused:
                return replace(bundle, is_fallback=folder not in stored[-1:])
        return None

    def previous(self, bundle: Bundle, *, now: dt.datetime) -> Bundle | None:
        """Return the newest good generation before this one, if it is still valid.

        Raises:
            OSError: a file cannot be read at the moment.
        """
        older = [p for p in self._stored() if bundle.folder and _number(p) < _number(bundle.folder)]
        for folder in reversed(older):
            try:
                found = read_generation(folder, lambda _file, _what: None)
            except GenerationDamaged:
                continue
            return found if found.certificate.not_valid_after_utc > now else None
        return None

    def token_key_ids(self) -> set[bytes]:
        """Return the ids of keys in a token that a generation or the request under way refers to.

        Raises:
            OSError: a file cannot be read at the moment.
        """
        ids = set()
        for folder in (*self._stored(), self._pending):
            try:
                key = load_any_key((folder / "key.pem").read_bytes())
            except (FileNotFoundError, NotADirectoryError, BundleInvalid):
                continue
            if isinstance(key, TokenKey):
                ids.add(key.key_id)
        return ids

    def make_current(self, bundle: Bundle) -> Bundle:
        """Let ``current`` show this stored bundle; returns it, not in use if the link moved.

        Raises:
            BundleInvalid: the bundle is not stored.
            OSError: the store cannot be written.
        """
        if bundle.folder is None:
            raise BundleInvalid("the bundle is not stored")
        if self._current_folder() == bundle.folder:
            return bundle
        moved = replace(bundle, in_use=False)
        # First what makes the service reload: a crash in between may only reload in vain.
        self.note(moved)
        self._point_to(bundle.folder)
        return moved

    def save(self, bundle: Bundle, *, now: dt.datetime) -> Bundle:
        """Verify the bundle, write it beside the others, make it current; returns it stored.

        Raises:
            BundleInvalid: it does not fit together; nothing changed.
            OSError: it cannot be written; nothing changed.
        """
        chain = verify_bundle(bundle, now=now)
        name = f"{self._next_number():04}-{bundle.fingerprint[:16]}"
        target = self._generations / name
        made = self._generations / f".{name}"
        shutil.rmtree(made, ignore_errors=True)
        try:
            made.mkdir(mode=0o700, parents=True)
            write_generation(made, bundle, served(chain, bundle))
            made.replace(target)
        except OSError:
            shutil.rmtree(made, ignore_errors=True)  # room for others on a full disk
            raise
        self._point_to(target)
        shutil.rmtree(self._pending, ignore_errors=True)
        self._clean_up(target)
        stored = self.load()
        assert stored is not None  # noqa: S101 - just written
        return stored

    def replace_authorities(
        self, bundle: Bundle, authorities: Sequence[x509.Certificate], *, now: dt.datetime
    ) -> Bundle:
        """Put other CA certificates beside a stored certificate; returns the bundle, not in use.

        Raises:
            BundleInvalid: the certificate does not chain to them; nothing changed.
            OSError: they cannot be written.
        """
        changed = replace(bundle, authorities=tuple(authorities), in_use=False)
        chain = verify_bundle(changed, now=now)
        # First what makes the service reload: a crash in between may only reload in vain.
        self.note(changed)
        folder = changed.folder or self.current
        for name, certificates in (("cert", served(chain, changed)), ("ca", authorities)):
            write_file(folder / f".{name}.pem", to_pem(certificates), 0o644)
            (folder / f".{name}.pem").replace(folder / f"{name}.pem")
        flush(folder)
        return changed

    def server_roots(self) -> tuple[x509.Certificate, ...]:
        """Return roots that lead on from those given for the server; none from a damaged file.

        Raises:
            OSError: the file cannot be read at the moment.
        """
        self._forget_damage(self._server_roots)
        try:
            return tuple(read_certificates(self._server_roots.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except UNREADABLE as exc:
            self.damage[self._server_roots] = " ".join(str(exc).split())[:200]
            return ()

    def keep_server_roots(self, roots: Sequence[x509.Certificate]) -> None:
        """Keep these roots, and no others.

        Raises:
            OSError: they cannot be written.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = self._server_roots.with_name(".server-roots.pem")
        write_file(made, to_pem(roots), 0o644)
        made.replace(self._server_roots)
        flush(self._folder)

    def note(self, bundle: Bundle) -> None:
        """Write down how far the bundle's rotation has come.

        Raises:
            BundleInvalid: the bundle is not stored.
            OSError: it cannot be written.
        """
        if bundle.folder is None:
            raise BundleInvalid("the bundle is not stored")
        made = bundle.folder / ".bundle.json"
        write_file(made, facts_json(bundle), 0o600)
        made.replace(bundle.folder / "bundle.json")
        flush(bundle.folder)

    def pending(self, predecessor: str) -> Pending | None:
        """Return the request under way for the certificate with this fingerprint, if any.

        One that is damaged is none: the next request has a new key.

        Raises:
            OSError: a file cannot be read at the moment.
        """
        self._forget_damage(self._pending)
        try:
            pending = read_pending(self._pending)
        except GenerationDamaged as exc:
            if self._pending.exists():
                self.damage[exc.file] = exc.what
            return None
        return pending if pending.predecessor == predecessor else None

    def begin(self, pending: Pending) -> None:
        """Keep a request before it is sent.

        Raises:
            OSError: it cannot be written.
        """
        self.forget()
        self._pending.mkdir(mode=0o700, parents=True)
        write_file(self._pending / "key.pem", key_pem(pending.key), 0o600)
        write_file(self._pending / "csr.der", pending.csr, 0o600)
        facts = json.dumps({"predecessor": pending.predecessor}).encode()
        write_file(self._pending / "bundle.json", facts, 0o600)
        flush(self._pending)

    def forget(self) -> None:
        """Drop the request under way; the next one has a new key."""
        shutil.rmtree(self._pending, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._pending.unlink(missing_ok=True)  # a file in its place

    def _forget_damage(self, *places: Path) -> None:
        kept = {f: w for f, w in self.damage.items() if not {f, *f.parents} & {*places}}
        self.damage = kept

    def _current_folder(self) -> Path | None:
        """Return what the link shows, whether or not it is there; None without a link.

        After a copy that follows links it is a folder itself.
        """
        try:
            target = self.current.readlink()
        except OSError:
            return self.current if self.current.is_dir() else None
        return self._generations / target.name

    def _next_number(self) -> int:
        self._generations.mkdir(mode=0o700, parents=True, exist_ok=True)
        return max((_number(p) for p in self._stored()), default=0) + 1

    def _stored(self) -> list[Path]:
        """Return the folders of the generations, oldest first."""
        try:
            found = [p for p in self._generations.iterdir() if _NAME.fullmatch(p.name)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(found, key=_number)

    def _point_to(self, target: Path) -> None:
        link = self._folder / ".current"
        link.unlink(missing_ok=True)
        link.symlink_to(target.relative_to(self._folder))
        link.replace(self.current)
        flush(self._folder)

    def _clean_up(self, current: Path) -> None:
        for old in self._stored()[:-_KEEP]:
            if old != current:
                shutil.rmtree(old, ignore_errors=True)


def _number(folder: Path) -> int:
    return int(folder.name.partition("-")[0])
