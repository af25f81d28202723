"""The server under test: ``EST_TARGET`` and its friends, else a suite of our own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Generator

import pytest
import pytest_asyncio

from estsuite_testing.conformance_check import Check, Stopped
from estsuite_testing.e2e_stack import POLICY, start_stack, stop_stack
from estsuite_testing.est_target import Target, from_environment
from estsuite_testing.raw_client import BASE


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    """The server under test, running."""
    url = os.environ.get("EST_TARGET")
    if url:
        yield from_environment(url)
        return
    folder = tmp_path_factory.mktemp("conformance")
    policy = folder / "policy.yaml"
    generated = "operations: [simpleenroll, simplereenroll, serverkeygen]"
    policy.write_text(
        POLICY.read_text().replace("retry_after_s: 1", f"retry_after_s: 1\n    {generated}", 1)
    )
    stack = await start_stack(folder / "suite", policy=policy)
    try:
        yield Target(
            host="localhost",
            port=stack.layout.ports.est,
            ca=stack.layout.root_file,
            user="load",
            password=stack.secret,
            base=BASE,
            label="services",
            common_name="dev-conformance",
            serverkeygen=True,
            ours=True,
        )
    finally:
        await stop_stack(stack)


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Check:
    """The verdicts of the items in the test's name."""
    return Check(request.node.name)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Turn what a test decided into its outcome, and hand the verdicts to the report."""
    check = pyfuncitem.funcargs.get("check")
    if not isinstance(check, Check):
        return (yield)
    result, cause = None, None
    try:
        result = yield
    except Stopped:
        pass
    except Exception as exc:  # noqa: BLE001 - whatever a server does becomes a sentence
        check.aborted(exc)
        cause = exc
    else:
        check.complete()
    verdicts = {item: (v.state, v.sentence) for item, v in check.verdicts.items()}
    pyfuncitem.user_properties.append(("verdicts", verdicts))
    if check.failures:
        raise AssertionError("\n".join(check.failures)) from cause
    target = pyfuncitem.funcargs["target"]
    assert isinstance(target, Target)
    if check.stopped and target.ours:
        raise AssertionError(f"no verdict for our own suite: {check.stopped}")
    if check.stopped:
        pytest.skip(check.stopped)
    return result
