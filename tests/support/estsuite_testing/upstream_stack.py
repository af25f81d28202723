"""ca-signer-upstream in this process, beside a ca-signer, in front of a CA that is not ours."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ca_signer.connections import SCHEMA
from ca_signer.model import IssuanceIntent
from ca_signer.operators.listener import CommandListener
from ca_signer.upstream.assembly import Parts, assemble
from ca_signer.upstream.issuer import load_upstreams, opened
from ca_signer.upstream.main import COMMAND, load_decision_context, publish_state
from ca_signer.upstream.settings import UpstreamSettings
from estcore.messages import topics
from estcore.messages.enrollment import EnrollmentAnswered, EnrollmentRequested
from estcore.runtime.bus import Bus
from estcore.runtime.database import Database
from estcore.runtime.settings import read_secret
from estcore.runtime.topology import declare
from estsuite_testing.e2e_stack import POLICY
from estsuite_testing.operators import OPERATORS
from estsuite_testing.other_ca import OtherCA
from estsuite_testing.platform import Platform
from estsuite_testing.signer_stack import SignerStack, signer_stack

ISSUER = "corporate"


def policy_file(folder: Path) -> Path:
    """The end-to-end policy with a label of the upstream issuer, and operators."""
    policy = yaml.safe_load(POLICY.read_text())
    policy["labels"]["corp"] = {
        "issuer": ISSUER,
        "profiles": ["service-mtls"],
        "authentication": ["certificate", "secret"],
        "operations": ["simpleenroll", "simplereenroll", "serverkeygen"],
    }
    for rule in policy["rules"]:
        if rule["name"] in {"load", "other", "once"}:
            rule["labels"].append("corp")
    policy["operators"] = [
        {
            "name": name,
            "certificate_issuer": "issuing",
            "certificate_subject": subject,
            "roles": list(roles),
        }
        for name, subject, roles in OPERATORS
    ]
    path = folder / "upstream-policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    return path


def groups() -> dict[str, Any]:
    labels = sorted(yaml.safe_load(POLICY.read_text())["labels"])
    return {"default": {"labels": [*labels, "corp"], "profiles": ["service-mtls", "demo"]}}


def est_options(other: OtherCA, **changes: Any) -> dict[str, Any]:
    """Options of the plug-in ``est`` for a CA that is not ours."""
    return {
        "url": other.url,
        "label": "corp",
        "ca_file": str(other.path("root.pem")),
        "certificate_file": str(other.path("ra.pem")),
        "key_file": str(other.path("ra.key")),
        **changes,
    }


def upstream_settings(
    platform: Platform, folder: Path, other: OtherCA, *, issuer: dict[str, Any], **changes: Any
) -> UpstreamSettings:
    """Settings of a process for one issuer; ``issuer`` and ``changes`` change what they name."""
    chain = other.path("issuing-chain.pem")
    chain.write_bytes(other.path("root.pem").read_bytes())
    raw = {
        "instance": "upstream-test",
        "bus": platform.bus(COMMAND).model_dump(),
        "database": platform.database("ca-signer").model_dump(),
        "policy_file": policy_file(folder),
        "profiles_file": changes.pop("profiles_file", None) or _profiles(),
        "issuers": [
            {
                "issuer_id": ISSUER,
                "certificate_file": other.path("issuing.pem"),
                "chain_file": chain,
                "plugin": "est",
                "timeout_s": 2,
                "pause_s": 0.2,
                "longest_pause_s": 0.5,
                "options": est_options(other),
            }
            | issuer
        ],
        "remote_issuers": ["issuing"],
        "groups": groups(),
        "lease_s": 8,
        "sweep_every_s": 0.2,
        "unknown_retry_after_s": 1,
        **changes,
    }
    return UpstreamSettings.model_validate(raw)


def _profiles() -> Path:
    from estsuite_testing.signer_stack import PROFILES

    return PROFILES


@dataclass
class UpstreamStack:
    """Both processes of the signer, and the CA behind."""

    signer: SignerStack
    parts: Parts
    other: OtherCA
    settings: UpstreamSettings

    def message(self, csr: bytes | None = None, **changes: Any) -> EnrollmentRequested:
        """A request for the upstream issuer."""
        return self.signer.message(csr, **{"label": "corp", "issuer": ISSUER} | changes)

    async def ask(self, message: EnrollmentRequested, **more: Any) -> EnrollmentAnswered:
        return await self.signer.ask(message, **more)

    async def row(self, request_id: str) -> Any:
        """The submission of a request."""
        rows = await self.signer.rows("select * from submission where request_id = $1", request_id)
        return rows[0]

    async def issuances(self, message: EnrollmentRequested) -> list[Any]:
        return await self.signer.rows("select * from issuance where request_id = $1", message.id)

    async def resolve(self, message: EnrollmentRequested) -> IssuanceIntent:
        """Do what a process does until it dies after step 5; returns the submission."""
        from ca_signer.issuance.decision import decide
        from ca_signer.issuance.idempotency import Resume

        topic = topics.request_topic(message.group, message.issuer, message.priority)
        candidate = decide(message, topic, self.parts.decision_context, None)
        self.parts.cycle.check(candidate)
        resolution = await self.parts.resolver.resolve(candidate)
        assert isinstance(resolution, Resume)
        return resolution.intent

    async def expire_lease(self, message: EnrollmentRequested) -> None:
        """The holder of a submission is dead for longer than its lease."""
        await self.signer.value(
            "update submission set lease_until = now() - interval '1 minute' where request_id = $1",
            message.id,
        )

    async def age_submission(self, message: EnrollmentRequested, by: dt.timedelta) -> None:
        """Let a submission be recorded so long ago."""
        await self.signer.value(
            "update submission set created_at = created_at - $2::interval where request_id = $1",
            message.id,
            by,
        )

    async def submitted_ago(self, message: EnrollmentRequested, ago: dt.timedelta) -> None:
        """Let a submission be sent to the upstream CA so long ago."""
        await self.signer.value(
            "update submission set submitted_at = now() - $2::interval where request_id = $1",
            message.id,
            ago,
        )


@contextlib.asynccontextmanager
async def upstream_stack(
    platform: Platform,
    folder: Path,
    other: OtherCA,
    *,
    issuer: dict[str, Any] | None = None,
    **changes: Any,
) -> AsyncIterator[UpstreamStack]:
    """Both processes, serving."""
    settings = upstream_settings(platform, folder, other, issuer=issuer or {}, **changes)
    async with signer_stack(
        platform,
        folder,
        policy_file=settings.policy_file,
        remote_issuers=[ISSUER],
        groups=groups(),
        lease_s=2,
    ) as signer:
        seed_file = settings.bus.migration_nkey_seed_file
        assert seed_file is not None
        migrator = await Bus.connect(
            settings.bus, "migrate", "test", seed=read_secret(seed_file, "seed")
        )
        await declare(migrator, [], topics.signer_consumers(ISSUER), replicas=1)
        await migrator.close()
        issuers = load_upstreams(settings.issuers)
        decision_context = load_decision_context(settings, issuers)
        database = await Database.connect(settings.database, COMMAND, SCHEMA)
        bus = await Bus.connect(settings.bus, COMMAND, settings.instance)
        stop = asyncio.Event()
        async with opened(issuers):
            parts = assemble(settings, bus, database, issuers, decision_context)
            await publish_state(bus, database, issuers)
            jobs = [parts.worker.run, parts.handler.attend, parts.outbox.run]
            jobs += [parts.sweeper.run, parts.sweeper.watch, parts.revocations.run]
            jobs += [CommandListener(bus, parts.executor).run]
            tasks = [asyncio.ensure_future(job(stop)) for job in jobs]
            try:
                yield UpstreamStack(signer, parts, other, settings)
            finally:
                stop.set()
                await asyncio.gather(*tasks)
                assert bus.violation is None
                await bus.close()
                await database.close()
