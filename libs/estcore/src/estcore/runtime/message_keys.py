"""The keys of messages as files that may change while a service runs."""

from __future__ import annotations

from collections.abc import Callable

from estcore.runtime.bus import Bus, senders_of
from estcore.runtime.reload import Watched
from estcore.runtime.settings import BusSettings, read_secret


def message_keys(
    bus: Bus, settings: BusSettings, *, changed: Callable[[], None] | None = None
) -> Watched:
    """Return the senders file and the NKey seed, from which the own key is derived.

    ``changed`` is called after a change: state that the old key signed is to be published again.
    """

    def take() -> None:
        senders = senders_of(settings)
        bus.use_keys(senders, read_secret(settings.nkey_seed_file, "the NKey seed"))
        if changed is not None:
            changed()

    files = [f for f in (settings.senders_file, settings.nkey_seed_file) if f is not None]
    return Watched("message keys", tuple(files), take)
