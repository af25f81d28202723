"""Docker's build context: the files that a ``.dockerignore`` lets through to the builder.

Follows the strictest builders in use: the legacy builder and BuildKit of Docker 20.10
(moby ``builder/dockerignore``, ``pkg/fileutils``, ``pkg/archive``; tonistiigi/fsutil ``walker.go``).
- The last pattern that matches a path, or one of its parent folders, decides.
- An excluded folder is entered only if the text of an exception begins with the folder's path.
  Stars in the exception are not expanded for this.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pattern:
    """One line of a ``.dockerignore``, cleaned."""

    text: str
    exception: bool

    def matches(self, path: str) -> bool:
        """Match the path, or its parent folder of the pattern's depth."""
        expression = _expression(self.text)
        if expression.fullmatch(path):
            return True
        parents = path.split("/")[:-1]
        depth = self.text.count("/") + 1
        return depth <= len(parents) and bool(expression.fullmatch("/".join(parents[:depth])))


def read_patterns(text: str) -> list[Pattern]:
    """Return the patterns of a ``.dockerignore``, as moby's ``dockerignore.ReadAll`` does."""
    patterns = []
    for line in text.removeprefix("\ufeff").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        pattern = line.strip()
        exception = pattern.startswith("!")
        pattern = posixpath.normpath(pattern.removeprefix("!").strip())
        patterns.append(Pattern(pattern.lstrip("/") or ".", exception))
    return patterns


def build_context(folder: Path, ignore: str) -> list[str]:
    """Return the paths of the files that are sent, relative to ``folder``."""
    return sorted(_walk(folder, "", read_patterns(ignore)))


def _walk(folder: Path, above: str, patterns: list[Pattern]) -> list[str]:
    sent = []
    for child in folder.iterdir():
        path = f"{above}{child.name}"
        excluded = _excluded(path, patterns)
        if not child.is_dir() or child.is_symlink():
            if not excluded:
                sent.append(path)
        elif not excluded or _leads_to_an_exception(path, patterns):
            sent += _walk(child, f"{path}/", patterns)
    return sent


def _excluded(path: str, patterns: list[Pattern]) -> bool:
    excluded = False
    for pattern in patterns:
        if pattern.matches(path):
            excluded = not pattern.exception
    return excluded


def _leads_to_an_exception(path: str, patterns: list[Pattern]) -> bool:
    return any(p.exception and f"{p.text}/".startswith(f"{path}/") for p in patterns)


def _expression(pattern: str) -> re.Pattern[str]:
    """Translate as moby's ``Pattern.compile``: ``**`` crosses folders, ``*`` and ``?`` do not."""
    parts = re.findall(r"\*\*/?|\*|\?|\\.|\[[^\]]*\]|.", pattern)
    out = ""
    for position, part in enumerate(parts):
        if part.startswith("**"):
            out += ".*" if position == len(parts) - 1 else "(.*/)?"
        elif part == "*":
            out += "[^/]*"
        elif part == "?":
            out += "[^/]"
        elif part.startswith("["):
            out += part
        else:
            out += re.escape(part.removeprefix("\\") or "\\")
    return re.compile(out)
