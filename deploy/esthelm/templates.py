"""Documents with template expressions in them, written as text of a Helm template.

A node of a document may be one of the classes below; everything else is written as YAML. Braces
that belong to a document, as in alert rules, are escaped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

_TOKEN = re.compile(r"'?@@(\d+)@@'?")
_INDENT = re.compile(r"^ *(?:- )*")


@dataclass(frozen=True, eq=False)
class Inline:
    """A value: a template expression on the line of its key."""

    expression: str


@dataclass(frozen=True, eq=False)
class Block:
    """A value: a template expression that gives YAML of several lines, without indentation."""

    expression: str


@dataclass(frozen=True, eq=False)
class Guarded:
    """A list item or, with ``key``, a member of a mapping, which is there under a condition."""

    condition: str
    value: Any
    key: str | None = None


@dataclass(frozen=True, eq=False)
class Piped:
    """A member of a mapping that ``with`` writes when the value is set; ``.`` is the value."""

    value: str
    key: str
    expression: str


Node = Inline | Block | Guarded | Piped


class Writer:
    """Writes one document; the nodes go through PyYAML as numbered tokens."""

    def __init__(self, shift: int = 0) -> None:
        self._nodes: list[Node] = []
        self._shift = shift
        """Columns by which the caller indents the text."""

    def text(self, document: Any) -> str:
        """Return the document as text of a template."""
        dumped = yaml.safe_dump(
            self._tokens(document), sort_keys=False, width=10**6, allow_unicode=True
        )
        lines = dumped.replace("{{", '{{ "{{" }}').splitlines()
        return "".join(f"{line}\n" for raw in lines for line in self._line(raw))

    def _tokens(self, node: Any) -> Any:
        if isinstance(node, Node):
            self._nodes.append(node)
            return f"@@{len(self._nodes) - 1}@@"
        if isinstance(node, dict):
            return {
                self._tokens(key): None if isinstance(key, Node) else self._tokens(value)
                for key, value in node.items()
            }
        if isinstance(node, list):
            return [self._tokens(item) for item in node]
        return node

    def _line(self, line: str) -> list[str]:
        token = _TOKEN.search(line)
        if token is None:
            return [line]
        node = self._nodes[int(token[1])]
        prefix = _INDENT.match(line)
        margin = " " * len(prefix[0] if prefix else "")
        before = line[: token.start()]
        if isinstance(node, Inline):
            return [f"{before}{{{{ {node.expression} }}}}{line[token.end() :]}"]
        if isinstance(node, Block):
            inside = self._shift + len(margin) + 2
            return [f"{before.rstrip()} {{{{- {node.expression} | nindent {inside} }}}}"]
        if isinstance(node, Piped):
            text = [f"{margin}{node.key}: {node.expression}"]
            return [f"{margin}{{{{- with {node.value} }}}}", *text, f"{margin}{{{{- end }}}}"]
        shift = " " * (len(line) - len(line.lstrip(" ")))
        inner = node.value if node.key is None else {node.key: node.value}
        body = (
            Writer(self._shift + len(shift))
            .text([inner] if node.key is None else inner)
            .splitlines()
        )
        return [
            f"{shift}{{{{- if {node.condition} }}}}",
            *(f"{shift}{part}" for part in body),
            f"{shift}{{{{- end }}}}",
        ]


def member(document: Any, node: Guarded | Piped, before: str | None = None) -> None:
    """Put a conditional member into a mapping, before a key or at the end.

    Never as the first one: in a list its line has the dash.
    """
    items = list(document.items())
    document.clear()
    for number, (key, value) in enumerate(items):
        if key == before and number:
            document[node] = None
        document[key] = value
    document.setdefault(node, None)
