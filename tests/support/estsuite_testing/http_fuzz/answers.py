"""Answers as an HTTP/1.1 client that trusts nothing reads them."""

from __future__ import annotations

import re

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2}) [ -~]*")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\t -~]*")
_ERROR = re.compile(rb"[^\r\n]+ \[([a-z0-9_]+(?:\.[a-z0-9_]+)*)\]\n")
_END = b"\r\n\r\n"
_MAX_FIELDS = 12
_CONTINUE, _NO_CONTENT, _ERRORS = 100, 204, 400
_STATUSES = {200, 202, 204, 501, 503, *range(400, 500)}
"""What may be answered; 501 is an operation that a label does not offer."""


class BadAnswer(Exception):
    """An answer that no request may get."""


def read_answers(octets: bytes, *, whole: bool) -> list[tuple[int, str]]:
    """Return status and error code of each answer in what a server sent.

    The body of an answer to HEAD is not there; a next answer in its place is recognised.

    Args:
        octets: everything that came.
        whole: the server ended the connection in order, so the last answer must be complete.

    Raises:
        BadAnswer: not HTTP/1.1, a status that must not be, or an error without its code.
    """
    found = []
    while octets:
        head, end, rest = octets.partition(_END)
        if not end:
            if whole:
                raise BadAnswer(f"the head of an answer has no end: {octets[:200]!r}")
            break
        status, length = _head(head)
        if status == _CONTINUE:
            octets = rest
            continue
        body, octets = rest[:length], rest[length:]
        if not rest or rest.startswith(b"HTTP/1."):
            body, octets = b"", rest
        elif len(body) < length:
            if whole:
                raise BadAnswer(f"a body has {len(body)} octets of {length}: {head!r}")
            break
        found.append((status, _code(status, body)))
    return found


def _head(head: bytes) -> tuple[int, int]:
    first, *lines = head.split(b"\r\n")
    line = _STATUS.fullmatch(first)
    if line is None:
        raise BadAnswer(f"no status line: {first[:200]!r}")
    status = int(line[1])
    if status == _CONTINUE and not lines:
        return status, 0
    if status not in _STATUSES:
        raise BadAnswer(f"status {status}: {head!r}")
    if len(lines) > _MAX_FIELDS or not all(_FIELD.fullmatch(one) for one in lines):
        raise BadAnswer(f"a head that is none: {head!r}")
    fields = [(n.lower(), v.strip()) for n, _, v in (one.partition(b":") for one in lines)]
    lengths = [value for name, value in fields if name == b"content-length"]
    wanted = 0 if status == _NO_CONTENT else 1
    if len(lengths) != wanted or any(name == b"transfer-encoding" for name, _ in fields):
        raise BadAnswer(f"the length of the body is not given once: {head!r}")
    if [value for name, value in fields if name == b"server"] != [b"est"]:
        raise BadAnswer(f"an answer of the HTTP library: {head!r}")
    return status, int(lengths[0]) if lengths else 0


def _code(status: int, body: bytes) -> str:
    if status < _ERRORS or not body:
        return ""
    line = _ERROR.fullmatch(body)
    if line is None:
        raise BadAnswer(f"{status} without one line and a code: {body[:200]!r}")
    return line[1].decode()
