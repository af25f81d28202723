"""Verdicts of the conformance items, decided one by one inside a test.

A test carries several items in its name. Each gets its own verdict, because an item that is a
rule of our own must not fail one that an RFC demands:
- **pass**: what the item asks for was seen;
- **FAIL**: something else was seen; the sentence says what;
- **not judged**: the test could not show it, for example because a good CSR is refused, too.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass
from typing import NoReturn

PASS, FAIL, NOT_JUDGED = "pass", "FAIL", "not judged"
_ITEM = re.compile(r"(?<![A-Za-z0-9])([A-P][0-9]{1,2})(?=_)")


@dataclass(frozen=True)
class Verdict:
    """What is known of one item, and the sentence that says why."""

    state: str
    sentence: str = ""


class Stopped(AssertionError):
    """The test cannot go on; the verdicts say why."""


class Check:
    """The verdicts of one test's items."""

    def __init__(self, test: str) -> None:
        self.items = tuple(_ITEM.findall(test.removeprefix("test") + "_"))
        self.verdicts: dict[str, Verdict] = {}
        self.stopped = ""
        """Why the whole test shows nothing."""
        self._item = self.items[0]
        self._doing = ""

    def on(self, item: str, doing: str) -> None:
        """Say what is tried next: an exception is a failure of this item."""
        self._item, self._doing = self._known(item), doing

    def __call__(self, item: str, shown: bool, otherwise: str) -> None:
        """Decide an item and go on; a failure stays a failure."""
        if self.verdicts.get(self._known(item), Verdict(PASS)).state == PASS:
            self.verdicts[item] = Verdict(PASS) if shown else Verdict(FAIL, otherwise)

    def need(self, item: str, shown: bool, otherwise: str) -> None:
        """Decide an item that the rest of the test is built on.

        Raises:
            Stopped: it fails; items without a verdict are not judged.
        """
        self(item, shown, otherwise)
        if not shown:
            self._stop(f"{item} failed: {otherwise}")

    def not_judged(self, reason: str, *items: str) -> None:
        """Leave the named items undecided and go on; without names, all of them, and stop.

        Raises:
            Stopped: no item was named.
        """
        for item in items:
            self.verdicts[self._known(item)] = Verdict(NOT_JUDGED, reason)
        if not items:
            self.stopped = reason
            self._stop(reason)

    @property
    def failures(self) -> list[str]:
        """What failed, a line for each item."""
        found = self.verdicts.items()
        return [f"{item}: {v.sentence}" for item, v in found if v.state == FAIL]

    def complete(self) -> None:
        """End a test that ran to its end: whatever did not fail was shown."""
        for item in self.items:
            self.verdicts.setdefault(item, Verdict(PASS))

    def aborted(self, error: Exception) -> None:
        """End a test that an exception ended."""
        sentence = sentence_of(error)
        if self._doing:
            sentence = f"{self._doing}: {sentence}"
        self.verdicts[self._item] = Verdict(FAIL, sentence)
        self._undecided(f"{self._item} failed: {sentence}")

    def _stop(self, reason: str) -> NoReturn:
        self._undecided(reason)
        raise Stopped(reason)

    def _undecided(self, reason: str) -> None:
        for item in self.items:
            self.verdicts.setdefault(item, Verdict(NOT_JUDGED, reason))

    def _known(self, item: str) -> str:
        if item not in self.items:
            raise LookupError(f"{item} is not in the name of the test")
        return item


def sentence_of(error: Exception) -> str:
    """Say what an exception means for the operator of the server."""
    match error:
        case TimeoutError():
            sentence = "the server did not answer in time"
        case ssl.SSLCertVerificationError():
            sentence = f"the server's certificate is not trusted: {error.verify_message}"
        case ssl.SSLError():
            sentence = f"TLS failed: {error.reason or error}"
        case asyncio.IncompleteReadError():
            sentence = "the server closed the connection before its answer was complete"
        case OSError():
            sentence = f"the connection failed: {error.strerror or error}"
        case AssertionError() if str(error):
            sentence = str(error).splitlines()[0]
        case _:
            sentence = f"the answer could not be understood ({type(error).__name__}: {error})"
    return sentence
