"""OpenSSL of est-frontend is configured where it is loaded: in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from estdev.ports import free_port
from estsuite_testing.tls_pipe import server_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return server_files(tmp_path_factory.mktemp("tls"))


def test_no_session_ticket_is_sent(files: Path) -> None:
    """TLS 1.3, as ``openssl s_client`` sees it: no NewSessionTicket after the handshake.

    In a process of its own: OpenSSL reads its configuration when it is loaded, and here that has
    happened before ``est_frontend`` was imported.
    """
    port = free_port()
    program = f"""
        import asyncio, sys
        from pathlib import Path
        from est_frontend.listener import TLSListener
        from est_frontend.settings import ListenSettings

        async def serve():
            files = Path(sys.argv[1])
            listen = ListenSettings(
                port={port}, certificate_file=files / "server.pem", key_file=files / "server.key"
            )
            class Server:
                def counted(self, arrival):
                    class Hello(asyncio.Protocol):
                        def connection_made(self, transport):
                            transport.write(b"hello")
                            transport.close()
                    return Hello()
            listener = TLSListener(listen)
            await listener.open(Server(), None)
            print("ready", flush=True)
            await listener.jobs[0](asyncio.Event())

        asyncio.run(serve())
    """
    environment = {k: v for k, v in os.environ.items() if k != "OPENSSL_CONF"}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), files],
        stdout=subprocess.PIPE,
        env=environment,
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            seen = subprocess.run(
                [
                    "openssl",
                    "s_client",
                    "-connect",
                    f"127.0.0.1:{port}",
                    "-tls1_3",
                    "-msg",
                    "-ign_eof",
                ],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=20,
            ).stdout
        finally:
            server.kill()
    assert "hello" in seen
    assert re.search(r"<<< .*Finished", seen)
    assert "NewSessionTicket" not in seen


def test_the_configuration_of_openssl_is_the_operators_where_there_is_one(tmp_path: Path) -> None:
    """And other libraries and child processes never see ours."""
    program = "import os, est_frontend; print(os.environ.get('OPENSSL_CONF'))"
    for given in (None, str(tmp_path / "mine.cnf")):
        environment = {k: v for k, v in os.environ.items() if k != "OPENSSL_CONF"}
        environment |= {"OPENSSL_CONF": given} if given else {}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(given)
