"""Activation of one credential: steps 5 to 7 of a rotation, from the files to the proof of use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from estclient.agent.bundle import Bundle
from estclient.agent.connection import Connection
from estclient.agent.credential_store import CredentialStore
from estclient.agent.enrollment import Say
from estclient.agent.output_files import Outputs
from estclient.agent.reload_hook import run_hook
from estclient.agent.rotation_names import RotationNames
from estclient.agent.served_certificate import wait_presented
from estclient.agent.settings import AgentSettings
from estclient.errors import ServerRefused
from estclient.est.proof_of_use import sign_ack
from estclient.est.token_key import TokenKey
from estcore.clock import Clock, monotonic_s

Hook = Callable[[Bundle], Awaitable[None]]
_NOT_YET = frozenset({404, 409})
"""Answers to a proof that may be given because an event is still on its way."""
_NOT_OFFERED = frozenset({400, 404, 405, 415, 501})
"""Answers of an EST server that takes no proof without a body, or none at all."""
_ACK_PAUSE_S = 0.5
_UNSIGNED = "proof.unsigned"


class Activation:
    """Writes the outputs, reloads the service, sees the certificate presented, proves its use."""

    def __init__(
        self,
        settings: AgentSettings,
        store: CredentialStore,
        connection: Connection,
        rotations: RotationNames,
        clock: Clock,
        say: Say,
        hook: Hook | None,
    ) -> None:
        self._settings = settings
        self._store, self._connection = store, connection
        self._rotations, self._clock = rotations, clock
        self._say, self._hook = say, hook
        self._outputs = Outputs(settings.outputs, settings.store)
        self._checked: tuple[str | None, str | None] = (None, None)
        self._unproven = ""

    async def finish(self, bundle: Bundle) -> Bundle:
        """Return the bundle after every step that it has not taken; nothing is done twice.

        Raises:
            NotInUse: hook or presence failed.
            OutputFailed: a file for the service cannot be written.
            ServerRefused, ServerAway: the proof was not accepted.
        """
        bundle = await self._written(bundle)
        if not bundle.in_use:
            await self._put_into_use(bundle)
            bundle = replace(bundle, in_use=True, is_first=False)
            self._store.note(bundle)
        if bundle.proven:
            return bundle
        if self._rotations.is_proven(bundle.fingerprint):
            return self._note_proven(bundle)
        rotation = bundle.rotation_id or self._rotations.rotation_id(bundle.fingerprint)
        if rotation is None and (not bundle.is_renewed or self._unproven == bundle.fingerprint):
            return bundle  # an event may still name it
        if not await self._prove(bundle, rotation):
            self._unproven = bundle.fingerprint
            return bundle
        await self._say("proven", rotation_id=rotation, serial=bundle.serial)
        return self._note_proven(replace(bundle, rotation_id=rotation))

    def is_written(self, bundle: Bundle) -> bool:
        """Return whether the outputs of this credential were written or compared."""
        return self._checked[0] == bundle.fingerprint

    def _note_proven(self, bundle: Bundle) -> Bundle:
        done = replace(bundle, proven=True)
        self._store.note(done)
        return done

    async def _written(self, bundle: Bundle) -> Bundle:
        """Write the outputs of a new credential, once after a start, and when one expired."""
        previous = None
        if any(output.previous for output in self._settings.outputs):
            previous = self._store.previous(bundle, now=self._clock.now())
        wanted = bundle.fingerprint, previous.fingerprint if previous else None
        if bundle.in_use and self._checked == wanted:
            return bundle
        changed = await self._outputs.write(bundle, previous)
        if changed:
            await self._say("written", files=[str(file) for file in changed])
            if bundle.in_use:
                bundle = replace(bundle, in_use=False)  # a file was missing or another
                self._store.note(bundle)
        self._checked = wanted
        return bundle

    async def _put_into_use(self, bundle: Bundle) -> None:
        command, place = self._settings.hook, self._settings.presence
        if self._hook is not None:
            await self._hook(bundle)
            await self._say("reloaded", hook="callable")
        elif command is not None and not _is_skipped(command.on_first, bundle):
            await run_hook(command, self._store.current)
            await self._say("reloaded", hook=command.command[0])
        if place is None or _is_skipped(place.on_first, bundle):
            return
        await wait_presented(
            place.host,
            place.port,
            fingerprint=bundle.fingerprint,
            server_name=place.server_name,
            timeout_s=place.timeout_s,
        )
        await self._say("presented", host=place.host, port=place.port, serial=bundle.serial)

    async def _prove(self, bundle: Bundle, rotation: str | None) -> bool:
        """Send the proof until it is accepted; False where the server takes none."""
        client = self._connection.authenticated(bundle)
        until = monotonic_s() + self._settings.ack_timeout_s
        while True:
            try:
                if rotation is None or isinstance(bundle.key, TokenKey):
                    await client.prove_use()
                else:
                    now = self._clock.now()
                    await client.rotation_ack(
                        sign_ack(bundle.key, rotation_id=rotation, serial=bundle.serial, now=now)
                    )
            except ServerRefused as exc:
                if exc.status in _NOT_YET and monotonic_s() < until:
                    await asyncio.sleep(_ACK_PAUSE_S)
                    continue
                if rotation is None and exc.server_code == _UNSIGNED:
                    rotation = bundle.suggested_rotation
                    if rotation is None or isinstance(bundle.key, TokenKey):
                        return False
                    continue
                if rotation is None and exc.status in _NOT_OFFERED:
                    return False
                raise
            return True


def _is_skipped(on_first: str, bundle: Bundle) -> bool:
    return bundle.is_first and on_first == "skip"
