"""Several messages of one topic in one message (JSON Lines): stored, signed and verified once.

What a service has to say at once travels together, because most of what a small message costs is
not its content. One message alone has the same form, so a reader needs no other. The encoders of
``messages.envelope`` write no line break.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256

MAX_MESSAGES = 64
_SEPARATOR = b"\n"


def join(messages: Sequence[bytes]) -> bytes:
    """Return messages, encoded as JSON, as one payload."""
    return _SEPARATOR.join(messages)


def split(payload: bytes) -> list[bytes]:
    """Return the messages of a payload, undivided where it has more than ``MAX_MESSAGES``.

    What is undivided is JSON of no model, so its reader refuses it.
    """
    if payload.count(_SEPARATOR) >= MAX_MESSAGES:
        return [payload]
    return payload.split(_SEPARATOR)


def joined_id(message_ids: Sequence[str]) -> str:
    """Return the Nats-Msg-Id of messages that travel together.

    That of one message is its own. The id of the first would drop, as a duplicate, a message that
    has more than it had before.
    """
    if len(message_ids) == 1:
        return message_ids[0]
    return sha256("\n".join(message_ids).encode()).hexdigest()[:32]


def groups(messages: Iterable[bytes], *, max_octets: int) -> Iterator[slice]:
    """Yield the slices of messages that travel together, in order, each as large as allowed.

    A message of more than ``max_octets`` travels alone.
    """
    start = end = octets = 0
    for message in messages:
        octets += len(message) + 1  # with the separator before it
        if end > start and (octets - 1 > max_octets or end - start >= MAX_MESSAGES):
            yield slice(start, end)
            start, octets = end, len(message) + 1
        end += 1
    if end > start:
        yield slice(start, end)
