"""Digests of container images: the lock file, and what a registry says (OCI distribution API)."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from estcore.errors import ConfigurationError

UNKNOWN = "unknown"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REFERENCE = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9._/:-]*?):(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]*)(?:@(?P<digest>.+))?"
)
_DIGEST_ALONE = re.compile(r"(?:[a-z0-9.-]+(?::[0-9]+)?/)?[a-z0-9._/-]+@sha256:[0-9a-f]{64}")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_INDEXES = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_TIMEOUT_S = 20
_UNAUTHORIZED = 401
_MAX_TOKEN = 65_536


@dataclass(frozen=True)
class Reference:
    """An image by name and tag, perhaps with its digest."""

    name: str
    tag: str
    digest: str | None = None

    @property
    def tagged(self) -> str:
        """Name and tag."""
        return f"{self.name}:{self.tag}"

    @property
    def registry(self) -> tuple[str, str]:
        """Host of the registry, and the repository there; Docker Hub when no host is named."""
        host, slash, rest = self.name.partition("/")
        if slash and ("." in host or ":" in host or host == "localhost"):
            return host, rest
        return "registry-1.docker.io", self.name if slash else f"library/{self.name}"


def parse(text: str) -> Reference:
    """Return a reference.

    Raises:
        ConfigurationError: no tag, the tag "latest", or a digest that is none.
    """
    found = _REFERENCE.fullmatch(text)
    if found is None or found["tag"] == "latest":
        raise ConfigurationError(f"image {text} has no tag of its own")
    if found["digest"] is not None and not DIGEST.fullmatch(found["digest"]):
        raise ConfigurationError(
            f"image {text}: the digest is not sha256 and 64 hexadecimal digits"
        )
    return Reference(found["name"], found["tag"], found["digest"])


def read_lock(text: str) -> dict[str, str]:
    """Return digest, or "unknown", by name and tag.

    Raises:
        ConfigurationError: a line that is not an image and its digest, or an image twice.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        if len(words) != 2 or not (words[1] == UNKNOWN or DIGEST.fullmatch(words[1])):  # noqa: PLR2004
            raise ConfigurationError(f"images.lock: not an image and a digest: {line}")
        tagged = parse(words[0]).tagged
        if tagged in found or tagged != words[0]:
            raise ConfigurationError(f"images.lock: {words[0]} is there twice, or with a digest")
        found[tagged] = words[1]
    return found


def findings(references: Iterable[tuple[str, str]], lock: Mapping[str, str]) -> list[str]:
    """Return what is wrong with images, given as where they are named and their reference.

    A digest without a tag names one image whatever the lock has.
    """
    out = []
    for where, text in references:
        if _DIGEST_ALONE.fullmatch(text):
            continue
        try:
            reference = parse(text)
        except ConfigurationError as exc:
            out.append(f"{where}: {exc.reason}")
            continue
        locked = lock.get(reference.tagged)
        if locked is None:
            out.append(f"{where}: image {reference.tagged} is not in deploy/images.lock")
        elif locked != UNKNOWN and reference.digest is None:
            out.append(f"{where}: image {reference.tagged} has no digest; it is {locked}")
        elif reference.digest is not None and reference.digest != locked:
            out.append(f"{where}: the digest of {reference.tagged} is not that of images.lock")
    return out


def with_digest(text: str, tagged: str, digest: str) -> str:
    """Return a file's text in which an image has its digest, whether or not it had one."""
    pattern = rf"(?<![\w./-]){re.escape(tagged)}(?:@sha256:[0-9a-f]{{64}})?(?![\w.@-])"
    return re.sub(pattern, f"{tagged}@{digest}", text)


def ask(reference: Reference, *, scheme: str = "https") -> str:
    """Return the digest of an image's index, as its registry says it now.

    Reads with the anonymous token that the registry's challenge names.

    Raises:
        ConfigurationError: the registry cannot be reached, or gives no digest.
    """
    host, repository = reference.registry
    url = f"{scheme}://{host}/v2/{repository}/manifests/{reference.tag}"
    try:
        try:
            answer = _head(url, None)
        except urllib.error.HTTPError as exc:
            if exc.code != _UNAUTHORIZED:
                raise
            answer = _head(url, _token(exc.headers.get("WWW-Authenticate", ""), scheme))
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"{reference.tagged}: {host} gives no digest ({exc})") from exc
    if answer is None or not DIGEST.fullmatch(answer):
        raise ConfigurationError(f"{reference.tagged}: {host} gives no digest")
    return answer


def _head(url: str, token: str | None) -> str | None:
    request = urllib.request.Request(url, method="HEAD", headers={"Accept": _INDEXES})  # noqa: S310
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - https
        digest: str | None = answer.headers.get("Docker-Content-Digest")
        return digest


def _token(challenge: str, scheme: str) -> str:
    fields = dict(_CHALLENGE.findall(challenge))
    realm = fields.pop("realm", "")
    if not challenge.startswith("Bearer ") or not realm.startswith(f"{scheme}://"):
        raise ValueError("its challenge is not understood")
    query = urllib.parse.urlencode({k: v for k, v in fields.items() if k in {"service", "scope"}})
    with urllib.request.urlopen(f"{realm}?{query}", timeout=_TIMEOUT_S) as answer:  # noqa: S310 - checked
        document = json.loads(answer.read(_MAX_TOKEN))
    return str(document.get("token") or document.get("access_token") or "")


def fill(lock: Path, files: Iterable[Path], *, scheme: str = "https") -> list[str]:
    """Read every digest, write the lock and the files; returns a line for each that is not known.

    What a registry does not say stays as it is.
    """
    text, missing = lock.read_text(encoding="utf-8"), []
    for tagged in read_lock(text):
        try:
            digest = ask(parse(tagged), scheme=scheme)
        except ConfigurationError as exc:
            missing.append(exc.reason)
            continue
        text = re.sub(rf"^{re.escape(tagged)} .*$", f"{tagged} {digest}", text, flags=re.MULTILINE)
        for file in files:
            old = file.read_text(encoding="utf-8")
            file.write_text(with_digest(old, tagged, digest), encoding="utf-8")
    lock.write_text(text, encoding="utf-8")
    return missing
