"""Declaring streams and consumers: what ``migrate`` does on the bus. Services only bind."""

from __future__ import annotations

from collections.abc import Iterable

from estcore.errors import BusUnavailable, ConfigurationError
from estcore.messages.topics import Consumer, Stream
from estcore.runtime.bus import Bus
from estcore.runtime.nats_client import BUS_ERRORS, JetStreamContext, api, nats


async def declare(
    bus: Bus, streams: Iterable[Stream], consumers: Iterable[Consumer], *, replicas: int
) -> None:
    """Create or update streams and consumers; nothing is ever deleted.

    Raises:
        BusUnavailable: JetStream does not answer.
        ConfigurationError: the server refuses a declaration, with its reason.
    """
    js = bus.client.jetstream(timeout=10)
    what = ""
    try:
        for stream in streams:
            what = _described(stream, replicas)
            await _declare_stream(js, stream, replicas)
        for consumer in consumers:
            what = f"consumer {consumer.name} of stream {consumer.stream}"
            await js.add_consumer(consumer.stream, config=_consumer(consumer))
    except nats.js.errors.APIError as exc:
        raise ConfigurationError(
            f"JetStream refuses {what}: {exc.description}", code="bus.refused"
        ) from exc
    except (TimeoutError, *BUS_ERRORS) as exc:
        raise BusUnavailable(f"JetStream does not answer about {what}") from exc


def _described(stream: Stream, replicas: int) -> str:
    """Name a stream with what JetStream reserves for it on each server that has a replica."""
    size = f" ({stream.max_bytes >> 20} MiB on each of {replicas} servers)"
    return f"stream {stream.name}" + (size if stream.max_bytes > 0 else "")


async def _declare_stream(js: JetStreamContext, stream: Stream, replicas: int) -> None:
    config = _stream(stream, replicas)
    try:
        await js.stream_info(stream.name)
    except nats.js.errors.NotFoundError:
        await js.add_stream(config)
        return
    await js.update_stream(config)


def _stream(stream: Stream, replicas: int) -> api.StreamConfig:
    workqueue = stream.retention == "workqueue"
    return api.StreamConfig(
        name=stream.name,
        subjects=list(stream.topics),
        retention=api.RetentionPolicy.WORK_QUEUE if workqueue else api.RetentionPolicy.LIMITS,
        discard=api.DiscardPolicy.NEW if stream.discard == "new" else api.DiscardPolicy.OLD,
        storage=api.StorageType.FILE,
        max_msgs=stream.max_messages,
        max_bytes=stream.max_bytes,
        max_age=stream.max_age_s,
        max_msgs_per_subject=1 if stream.last_per_topic else stream.max_per_topic,
        discard_new_per_subject=stream.max_per_topic > 0 and stream.discard == "new",
        max_msg_size=stream.max_message_bytes,
        allow_direct=stream.last_per_topic or stream.direct,
        allow_msg_ttl=stream.message_ttl or None,
        duplicate_window=stream.duplicate_window_s,
        num_replicas=replicas,
    )


def _consumer(consumer: Consumer) -> api.ConsumerConfig:
    config = api.ConsumerConfig(
        durable_name=consumer.name,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=consumer.ack_wait_s,
        max_ack_pending=consumer.max_ack_pending,
        max_deliver=-1,
        deliver_policy=api.DeliverPolicy.ALL,
    )
    if len(consumer.topics) == 1:
        config.filter_subject = consumer.topics[0]
    elif consumer.topics:
        config.filter_subjects = list(consumer.topics)
    return config
