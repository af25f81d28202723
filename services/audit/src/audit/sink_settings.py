"""Settings of sinks: one model for each kind of receiver, chosen by ``kind``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from audit.formats import syslog
from estcore.pki.profile import StrictModel, Token
from estcore.runtime.settings import BusSettings, Port

URL = Annotated[str, Field(pattern=r"^https://[^\s?#@]+$")]


class SinkBase(StrictModel):
    """What every sink has."""

    name: Token = Field(description="name, also of its cursor")
    batch: int = Field(default=500, ge=1, le=2000, description="records per write or request")
    timeout_s: float = Field(default=10, gt=0, le=300, description="to connect, and for an answer")
    backoff_max_s: float = Field(
        default=30, gt=0, le=3600, description="longest pause between attempts"
    )


class TLSSink(SinkBase):
    """A receiver behind TLS, whose certificate is always verified."""

    ca_file: Path = Field(description="trust anchors of the receiver's certificate")
    certificate_file: Path | None = Field(default=None, description="client certificate chain")
    key_file: Path | None = Field(default=None, description="client key")
    server_name: str | None = Field(
        default=None, description="name in the receiver's certificate, if it is not the host"
    )

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file go together")
        return self


class SyslogOptions(TLSSink):
    """Form of RFC 5424 messages."""

    host: str = Field(min_length=1, description="receiver")
    format: syslog.Format = Field(default="json", description="form of the message part")
    facility: int = Field(default=13, ge=0, le=23, description="13 is log audit")
    bom: bool = Field(
        default=False,
        description="byte order mark before the message (RFC 5424 section 6.4); parsers of JSON "
        "do not expect it",
    )
    enterprise_number: int = Field(
        default=syslog.NO_ENTERPRISE,
        ge=0,
        le=2**31 - 1,
        description="your private enterprise number (IANA), in the SD-ID estsuite@NUMBER; 0 "
        "belongs to no organisation",
    )
    max_octets: int = Field(
        default=syslog.MAX_OCTETS,
        ge=2048,
        le=1_048_576,
        description="longest message; a longer one loses bulky members and says which",
    )

    def options(self) -> syslog.Options:
        """Return the form of messages."""
        return syslog.Options(
            form=self.format,
            facility=self.facility,
            bom=self.bom,
            enterprise_number=self.enterprise_number,
            max_octets=self.max_octets,
        )


class SyslogSink(SyslogOptions):
    """RFC 5424 messages over TLS (RFC 5425). Nothing is acknowledged."""

    kind: Literal["syslog"] = "syslog"
    port: Port = Field(default=6514, description="port of the receiver")
    resend: int = Field(
        default=200, ge=0, le=10_000, description="records sent again after a reconnect"
    )


class RELPSink(SyslogOptions):
    """RFC 5424 messages over RELP and TLS, each acknowledged."""

    kind: Literal["relp"]
    port: Port = Field(default=2514, description="port of the receiver")


class OTLPSink(TLSSink):
    """OpenTelemetry logs; needs the extra ``otlp``."""

    kind: Literal["otlp"]
    url: URL = Field(description="https://host:4318/v1/logs, or https://host:4317 for gRPC")
    protocol: Literal["http", "grpc"] = Field(default="http", description="OTLP/HTTP or OTLP/gRPC")
    token_file: Path | None = Field(default=None, description="bearer token")


class ElasticsearchSink(TLSSink):
    """Elasticsearch or OpenSearch by ``_bulk``: ECS documents with their record id."""

    kind: Literal["elasticsearch"]
    url: URL = Field(description="https://host:9200")
    index: str = Field(
        default="logs-estsuite.audit-default",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,254}$",
        description="index or data stream",
    )
    api_key_file: Path | None = Field(default=None, description="Elasticsearch API key, encoded")
    user: str | None = Field(default=None, description="user of HTTP Basic, with password_file")
    password_file: Path | None = Field(default=None, description="file with the password")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file go together")
        if self.user is not None and self.api_key_file is not None:
            raise ValueError("give api_key_file, or user with password_file")
        return self


class SplunkSink(TLSSink):
    """Splunk HTTP Event Collector, with or without indexer acknowledgement."""

    kind: Literal["splunk"]
    url: URL = Field(description="https://host:8088")
    token_file: Path = Field(description="HEC token")
    index: str | None = Field(default=None, description="index, if not that of the token")
    sourcetype: str = Field(default="estsuite:audit", description="source type of the events")
    acknowledge: bool = Field(
        default=False, description="wait until indexers have stored events; the token must have it"
    )
    acknowledge_timeout_s: float = Field(
        default=60, gt=0, le=3600, description="how long to wait before events are sent again"
    )


class WebhookSink(TLSSink):
    """HTTPS requests with a JSON array, or CloudEvents in a batch."""

    kind: Literal["webhook"]
    url: URL = Field(description="where requests are posted to")
    format: Literal["cloudevents", "json", "ecs", "ocsf"] = Field(
        default="cloudevents", description="form of each entry"
    )
    token_file: Path | None = Field(default=None, description="bearer token")
    hmac_key_file: Path | None = Field(
        default=None, description="key of X-Estsuite-Signature: HMAC-SHA256 of time and body"
    )


class NATSSink(SinkBase):
    """CloudEvents on a topic of a NATS of others, each stored by a stream there."""

    kind: Literal["nats"]
    bus: BusSettings = Field(description="the NATS of the receivers, with a user of its own")
    topic: str = Field(
        pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$",
        description="events go to TOPIC.ACTION, dots of the action included",
    )


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("kind", "syslog"))
    return str(getattr(value, "kind", "syslog"))


SinkSettings = Annotated[
    Annotated[SyslogSink, Tag("syslog")]
    | Annotated[RELPSink, Tag("relp")]
    | Annotated[OTLPSink, Tag("otlp")]
    | Annotated[ElasticsearchSink, Tag("elasticsearch")]
    | Annotated[SplunkSink, Tag("splunk")]
    | Annotated[WebhookSink, Tag("webhook")]
    | Annotated[NATSSink, Tag("nats")],
    Discriminator(_kind),
]
"""One sink; ``kind`` says what receives. Without it syslog does, as before there were others."""
SINKS: dict[str, type[SinkBase]] = {
    "syslog": SyslogSink,
    "relp": RELPSink,
    "otlp": OTLPSink,
    "elasticsearch": ElasticsearchSink,
    "splunk": SplunkSink,
    "webhook": WebhookSink,
    "nats": NATSSink,
}
"""The model of each kind."""
