"""The documents list what the code has, and every link has a target."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from ca_signer.settings import SignerSettings
from ca_signer.upstream.settings import UpstreamSettings
from est_frontend.settings import FrontendSettings, TokenIssuerSettings
from est_frontend.web.responses import SPECIAL, status_of
from est_issuer.issuer_spec import read_spec
from est_issuer.kinds import GROUP, ISSUERS, VERSION
from est_issuer.settings import IssuerSettings
from estclient.agent.definition_folder import merged
from estclient.agent.host_settings import HostSettings
from estclient.agent.settings import AgentSettings
from estcore import errors
from estcore.errors import ESTSuiteError
from estcore.messages import topics
from estcore.pki.profile import Priority, parse_model
from estcore.policy.document import PolicyDocument
from estsuite_testing.reload.pages import Page

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs" / "operations"
SOURCES = sorted(p for group in ("libs", "services") for p in ROOT.glob(f"{group}/*/src/**/*.py"))
PAGES = sorted(
    p
    for p in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("services/*/README.md"),
        *ROOT.glob("libs/*/README.md"),
        *ROOT.glob("tests/*.md"),
        *ROOT.glob("benchmarks/*.md"),
    )
)
CODE = re.compile(r"[a-z_]+\.[a-z0-9_]+")

# Constants that look like codes and are none: fault points, actions, files, attributes of OTLP.
NOT_CODES = re.compile(
    r"audit\.(?!unavailable|spool_full|chain_broken).*|service\.(start|stop|previous_boot)|.*\.(pem|yaml|json|der)|"
    r"rotation\.(activated|deprecated|retired)|client\.(address|port)|event\.outcome|"
    r".*\.(crt|key)"
)
OTHERS = {
    *("auth.token_", "frontend.publish", "ca.passphrase", "service.name", "rotation.proof"),
    "campaign.requested",
}


@functools.cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


@functools.cache
def texts_of_tests() -> str:
    return "\n".join(p.read_text(encoding="utf-8") for p in ROOT.glob("tests/**/test_*.py"))


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


sys.path.append(str(ROOT / "docs"))  # what generate.py imports lies beside it
generate = load_script("generate")
conformance = load_script("conformance")


@functools.cache
def raised() -> list[tuple[str, type[ESTSuiteError] | None]]:
    return list(_raised())


def _raised() -> Iterator[tuple[str, type[ESTSuiteError] | None]]:
    """Every code given as ``code="…"`` with the error class it is given to, and every default."""
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else ""
                cls = getattr(errors, name, None)
                for keyword in node.keywords:
                    if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                        yield str(keyword.value.value), cls
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and node.targets[0].id == "default_code"
                and isinstance(node.value, ast.Constant)
            ):
                yield str(node.value.value), None


@functools.cache
def look_like_codes() -> set[str]:
    """Constants of a family of codes that are handed on in another way than by ``code=``."""
    families = {code.partition(".")[0] for code, _ in raised()}
    found = set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
                if CODE.fullmatch(text) and text.partition(".")[0] in families:
                    found.add(text)
    return {c for c in found if not NOT_CODES.fullmatch(c) and c not in OTHERS}


def lint_codes() -> set[str]:
    source = (ROOT / "libs/estcore/src/estcore/pki/lint.py").read_text(encoding="utf-8")
    return {f"lint.{name}" for name in re.findall(r'^        \("([a-z_0-9]+)", ', source, re.M)}


@functools.cache
def finding_codes() -> set[str]:
    found = set()
    for path, tree in trees().items():
        if "tlog" not in path.parts:
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if name in {"add", "Finding"} and isinstance(first, ast.Constant):
                found.add(str(first.value))
    return {c for c in found if CODE.fullmatch(c)}


def documented() -> dict[str, set[int]]:
    """Codes in the tables of errors.md with the statuses they give."""
    text = (OPERATIONS / "errors.md").read_text(encoding="utf-8")
    found = {}
    for line in text.splitlines():
        match = re.match(r"\| ((?:`[a-z_]+\.?[a-z0-9_]*`(?:, )?)+) \| ([^|]*) \|", line)
        if match:
            statuses = {int(n) for n in re.findall(r"\b[45]\d\d\b", match[2])}
            for code in re.findall(r"`([^`]+)`", match[1]):
                found[code] = statuses
    return found


def test_generated_parts_are_what_the_code_says() -> None:
    stale = [
        name
        for name in generate.PAGES
        if generate.rendered(name) != (generate.DOCS / name).read_text(encoding="utf-8")
    ]
    assert not stale, f"run .venv/bin/python docs/generate.py: {stale}"


def test_every_setting_is_described() -> None:
    text = (OPERATIONS / "settings.md").read_text(encoding="utf-8")
    for model, prefix in ((FrontendSettings, "EST_FRONTEND"), (AgentSettings, "EST_AGENT")):
        rows = generate.settings.settings_of(model, prefix)
        assert len(rows) > 20
        for row in rows:
            assert f"| `{row.name}` | {row.type} | {row.default} | {row.text} |" in text
    for paths in (row.name for row in generate.settings.settings_of(SignerSettings, "CA_SIGNER")):
        assert f"| `{paths}` |" in text


def test_no_description_is_left_over() -> None:
    pages = "\n".join(p.read_text(encoding="utf-8") for p in OPERATIONS.glob("*.md"))
    written = yaml.safe_load((ROOT / "docs" / "descriptions.yaml").read_text(encoding="utf-8"))
    unused = {k for k, v in written["settings"].items() if f"`{k}`" not in pages or v not in pages}
    assert unused == set()


@pytest.mark.parametrize("service", ["renewal", "audit"])
def test_readme_and_settings_page_name_the_same_metrics(service: str) -> None:
    readme = (ROOT / "services" / service / "README.md").read_text(encoding="utf-8")
    readme = re.sub(  # est_renewal_windows_{checked,different}_total
        r"`(\w*)\{([a-z_,]+,[a-z_,]+)\}(\w*)",
        lambda m: " ".join(f"`{m[1]}{part}{m[3]}`" for part in m[2].split(",")),
        readme,
    )
    for name, *_ in generate.metrics.metrics_of(f"{service}.metrics"):
        assert re.search(rf"`{name}\b", readme), f"services/{service}/README.md misses {name}"


def test_every_metric_is_listed() -> None:
    text = (OPERATIONS / "metrics.md").read_text(encoding="utf-8")
    for module in generate.metrics.METRICS.values():
        found = generate.metrics.metrics_of(module)
        assert len(found) > 2
        for name, *_ in found:
            assert f"| `{name}` |" in text


def test_every_error_code_is_documented() -> None:
    known = documented()
    codes = {c for c, _ in raised()} | look_like_codes() | lint_codes() | finding_codes()
    codes |= set(SPECIAL)
    assert len(codes) > 120
    assert codes - known.keys() == set()


def test_no_error_code_is_documented_that_does_not_exist() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    names = {c for c, _ in raised()} | look_like_codes() | lint_codes() | finding_codes()
    # A code put together from parts: its family and an f-string must be there.
    built = {c for c in documented() if re.search(rf'f"{c.partition(".")[0]}\.', sources)}
    assert set(documented()) - names - set(SPECIAL) - built == set()


def test_documented_statuses_are_those_of_the_classes() -> None:
    known = documented()
    wrong = []
    for code, cls in raised():
        if not (isinstance(cls, type) and issubclass(cls, errors.RequestRejected)):
            continue
        status = status_of(cls("reason", code=code))
        if known[code] and status not in known[code]:
            wrong.append((code, status))
    assert not wrong


def test_every_special_status_is_documented() -> None:
    known = documented()
    assert {c for c, status in SPECIAL.items() if status not in known[c]} == set()


def test_every_topic_and_stream_is_listed() -> None:
    text = (OPERATIONS / "events.md").read_text(encoding="utf-8")
    for stream in topics.STREAMS:
        assert f"`{stream.name}`" in text
        for pattern in stream.topics:
            assert any(
                t["topic"].startswith(pattern.removesuffix(">")) for t in generate.events.TOPICS
            )
    listed = [re.sub(r"<[^>]+>", "x", t["topic"]) for t in generate.events.TOPICS]
    for topic in (
        topics.request_topic("x", "x", Priority.NORMAL).replace("normal", "x"),
        topics.reply_topic("x", "x", "x"),
        topics.ISSUED_TOPIC,
        topics.rotation_topic("x", "x", "x"),
        topics.audit_issue_topic("x"),
        topics.audit_refusal_topic("x", "x"),
        topics.ack_topic("x"),
        topics.cacerts_topic("x"),
        topics.secrets_topic("x"),
        topics.WINDOW_TOPIC,
        topics.REANNOUNCE_TOPIC,
        topics.WINDOWS_TOPIC,
        topics.POLICY_TOPIC,
    ):
        assert topic in listed
    names = {message.__name__ for message in generate.events.messages()}
    for one in generate.events.TOPICS:
        assert " " in one["message"] or one["message"] in names


def anchors(path: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    plain = (re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings)
    return set(plain)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_relative_link_is_dead(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        found = (page.parent / place).resolve() if place else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            dead.append(target)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_page_names_a_path_of_one_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"/(work|home|root|Users)/\w", text)


SECTIONS = {
    "takes": r"^## Takes|\*\*Takes\*\*",
    "gives": r"^## Gives|\*\*Gives\*\*",
    "owns": r"^## Owns|\*\*Owns\*\*",
    "fails": r"^## Fails how",
    "commands": r"^## Commands",
    "settings": r"^## Settings",
    "metrics": r"^## Metrics",
}


@pytest.mark.parametrize("service", ["est-frontend", "ca-signer", "renewal", "audit"])
def test_a_service_readme_has_inputs_outputs_state_and_failures(service: str) -> None:
    text = (ROOT / "services" / service / "README.md").read_text(encoding="utf-8")
    missing = [name for name, form in SECTIONS.items() if not re.search(form, text, re.M)]
    assert not missing


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs" / "adr").glob("0*.md")), ids=lambda p: p.stem
)
def test_a_decision_has_its_four_parts_and_is_listed(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for part in ("Context", "Options", "Decision", "Consequences"):
        assert f"**{part}.**" in text
    assert f"({page.name})" in (page.parent / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {page.name[:4]}: ")


@pytest.mark.parametrize(
    ("service", "model"),
    [
        ("est-frontend", FrontendSettings),
        ("ca-signer", SignerSettings),
        ("est-issuer", IssuerSettings),
    ],
)
def test_example_settings_are_settings(service: str, model: type) -> None:
    path = ROOT / "services" / service / "config.example.yaml"
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    parse_model(model, raw, path)
    # The file says that its numbers are the defaults.
    defaults = {row.name: row.default for row in generate.settings.settings_of(model, "X")}
    for name, value in numbers(raw):
        assert name == "admin.port" or defaults[name] == f"`{value}`", name


def test_the_example_settings_for_upstream_cas_are_settings() -> None:
    path = ROOT / "services" / "ca-signer" / "config.upstream.example.yaml"
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    parse_model(UpstreamSettings, raw, path)
    defaults = {
        row.name: row.default for row in generate.settings.settings_of(UpstreamSettings, "X")
    }
    for name, value in numbers(raw):
        assert name == "admin.port" or defaults[name] == f"`{value}`", name


def numbers(raw: dict[str, object], place: str = "") -> Iterator[tuple[str, float]]:
    for key, value in raw.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{place}{key}.")
        elif isinstance(value, int | float):
            yield f"{place}{key}", value


def test_the_agents_settings_in_the_onboarding_page_are_settings() -> None:
    text = (ROOT / "docs" / "onboarding.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(b) for b in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    whole, more, host, definition, *parts = (b for b in blocks if isinstance(b, dict))
    settings = HostSettings.model_validate(host)
    merged_definition = merged({"store": "store"} | settings.defaults, definition)
    first = AgentSettings.model_validate(merged_definition)
    assert {output.format for output in first.outputs} == {"combined-pem", "pkcs12"}
    for part in parts:
        AgentSettings.model_validate(merged_definition | {"outputs": []} | part)
    assert {"bootstrap", "pkcs11"} == {name for part in parts for name in part}
    agent = AgentSettings.model_validate(whole)
    assert agent.bootstrap is not None
    with_bus = AgentSettings.model_validate(whole | more)
    assert with_bus.presence is not None


def test_the_issuer_in_the_page_of_cert_manager_is_one() -> None:
    issuer, certificate, renewal = map(yaml.safe_load, Page.read("cert-manager.md", {}).yaml())
    assert read_spec(issuer).renewal == "Enroll"
    assert read_spec({"spec": issuer["spec"] | renewal["spec"]}).renewal == "Reenroll"
    assert (issuer["kind"], issuer["apiVersion"]) == (ISSUERS.kind, f"{GROUP}/{VERSION}")
    asked = certificate["spec"]["issuerRef"]
    assert asked == {"group": GROUP, "kind": ISSUERS.kind, "name": issuer["metadata"]["name"]}


def test_the_settings_and_rules_in_the_page_of_kubernetes_can_be_read() -> None:
    issuers, rules = map(yaml.safe_load, Page.read("kubernetes.md", {}).yaml())
    (issuer,) = (TokenIssuerSettings.model_validate(i) for i in issuers["token_issuers"])
    policy = yaml.safe_load((ROOT / "deploy/k8s/base/config/policy.yaml").read_text())
    policy["labels"]["services"]["authentication"].append("token")
    document = PolicyDocument.model_validate(policy | {"rules": rules["rules"]})
    assert {rule.principal.token.issuer for rule in document.rules if rule.principal.token} == {
        issuer.id
    }


def test_the_definitions_in_the_pages_of_servers_are_settings() -> None:
    pages = ROOT / "docs" / "onboarding"
    _, host = Page.read("README.md", {}).yaml()
    settings = HostSettings.model_validate(yaml.safe_load(host))
    listed = set(
        re.findall(r"\(onboarding/([a-z-]+\.md)\)", (ROOT / "docs/onboarding.md").read_text())
    )
    assert listed == {page.name for page in pages.glob("*.md")} - {"README.md"}
    for name in listed - {"cert-manager.md", "kubernetes.md"}:
        definition = yaml.safe_load(Page.read(name, {}).yaml()[0])
        whole = merged({"store": "store"} | settings.defaults, definition)
        agent = AgentSettings.model_validate(whole)
        assert agent.hook is None or agent.hook.on_first == "skip", name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_test_a_page_names_exists(page: Path) -> None:
    tests = texts_of_tests()
    named = set(re.findall(r"\btest_[A-Za-z0-9_]+\b(?!\.py)", page.read_text(encoding="utf-8")))
    assert {n for n in named if n != "test_B12_" and f"def {n}(" not in tests} == set()


def test_fault_points_are_listed() -> None:
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    for path in SOURCES:
        for name in re.findall(r'\bhit\("([a-z0-9.]+)"\)', path.read_text(encoding="utf-8")):
            assert f"`{name}`" in text


def test_the_generator_compares_from_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_conformance_page_is_what_the_list_and_the_tests_say() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "conformance.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_item_that_is_so_has_a_test_or_needs_none() -> None:
    listed = yaml.safe_load((ROOT / "docs" / "conformance.yaml").read_text(encoding="utf-8"))
    shown = conformance.tests_by_item()
    untested = [
        number
        for number, (_, state, *_) in listed["items"].items()
        if state == "yes" and number not in shown
    ]
    # J10 is a statement about scope.
    assert untested == ["J10"]
    assert all(item[3] for item in listed["items"].values() if item[1] in {"partly", "left"})
