"""JetStream of nats-py, whose asynchronous publishing does not pass on what a stream answers.

``APIError.from_error`` raises the error instead of returning it, so ``_handle_async_reply`` ends
before it has set the future: a full stream looked like one that does not answer (nats-py 2.16).
"""

from __future__ import annotations

from typing_extensions import override

from estcore.runtime.nats_client import JetStreamContext, Msg, nats


class JetStream(JetStreamContext):
    """Futures of ``publish_async`` raise what refused the message."""

    @override
    async def _handle_async_reply(self, msg: Msg) -> None:
        try:
            await super()._handle_async_reply(msg)
        except nats.js.errors.APIError as exc:
            future = self._publish_async_futures.get(msg.subject.rpartition(".")[2])
            if future is not None and not future.done():
                future.set_exception(exc)
