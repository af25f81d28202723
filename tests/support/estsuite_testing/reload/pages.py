"""What the pages of docs/onboarding say: files, and commands by section."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PAGES = Path(__file__).parents[4] / "docs" / "onboarding"
HOME = "/srv/reload"
"""The folder of the pages."""
_FILE = re.compile(
    rf"^[^\n]*`{HOME}/(?P<path>[^`\s]+)`[^`\n]*:\n\n```\w*\n(?P<body>.*?)^```$", re.M | re.S
)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Page:
    """One page, with the paths, ports and names of a test in place of its own."""

    text: str

    @classmethod
    def read(cls, name: str, values: Mapping[str, str]) -> Page:
        """Read a page and replace each key of ``values``; longer ones first."""
        text = (PAGES / name).read_text(encoding="utf-8")
        for old in sorted(values, key=len, reverse=True):
            text = text.replace(old, values[old])
        return cls(text)

    def write(self, home: Path) -> list[Path]:
        """Write the files of the page below ``home``, which its text names already.

        Raises:
            ValueError: a block is neither a file nor commands.
        """
        pattern = re.compile(_FILE.pattern.replace(HOME, re.escape(str(home))), re.M | re.S)
        written = []
        for match in pattern.finditer(self.text):
            file = home / match["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(match["body"], encoding="utf-8")
            if match["body"].startswith("#!"):
                file.chmod(0o755)
            written.append(file)
        blocks = sum(bool(language) for language, _ in _BLOCK.findall(self.text))
        if len(written) != blocks:
            raise ValueError(f"{blocks} blocks, and files are {written}")
        return written

    def preparation(self) -> list[str]:
        """Return the blocks without a language above the first section: what the agent needs."""
        return _commands(self.text.partition("\n## ")[0])

    def commands(self, heading: str) -> list[str]:
        """Return the blocks without a language of a section.

        Raises:
            KeyError: the page has no such section, or it has no command.
        """
        _, found, section = self.text.partition(f"\n## {heading}\n")
        section = section.partition("\n## ")[0]
        blocks = _commands(section)
        if not found or not blocks:
            raise KeyError(f"there is no command below {heading!r}")
        return blocks

    def yaml(self) -> list[str]:
        """Return the YAML blocks."""
        return [body for language, body in _BLOCK.findall(self.text) if language == "yaml"]


def _commands(text: str) -> list[str]:
    return [body for language, body in _BLOCK.findall(text) if not language]
