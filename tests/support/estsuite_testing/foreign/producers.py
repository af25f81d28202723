"""Certification requests by the tools that people make them with, one PEM file for each case.

Every subject is ``CN=dev-<case>``. A case names its tool and key: ``certtool-ed25519``. What the
suite answers to each is in ``expected.yaml``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from estsuite_testing.build_cache import built, run_build
from estsuite_testing.debian import debian_packages, environment
from estsuite_testing.foreign.calls import run_client
from estsuite_testing.foreign.sources import CLIENTS
from estsuite_testing.foreign.toolchains import jdk, of_group, with_path
from estsuite_testing.strongswan import strongswan_pki

_FAST_JAVA = ["-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC"]
_PASSWORD = "a long enough password"
Producer = Callable[[Path], None]


def openssl(folder: Path) -> None:
    """OpenSSL's ``req``, with keys and signatures of every kind."""
    keys = {
        "p256": ["EC", "ec_paramgen_curve:P-256"],
        "p384": ["EC", "ec_paramgen_curve:P-384"],
        "p521": ["EC", "ec_paramgen_curve:P-521"],
        "rsa2048": ["RSA", "rsa_keygen_bits:2048"],
        "rsa1024": ["RSA", "rsa_keygen_bits:1024"],
        "ed25519": ["ED25519"],
        "ed448": ["ED448"],
        "pss-key": ["RSA-PSS", "rsa_keygen_bits:2048"],
        "explicit-curve": ["EC", "ec_paramgen_curve:P-256", "ec_param_enc:explicit"],
    }
    files = {name: folder / f"openssl-{name}.key" for name in keys}
    for name, (algorithm, *options) in keys.items():
        more = [part for option in options for part in ("-pkeyopt", option)]
        run_client(["openssl", "genpkey", "-algorithm", algorithm, *more, "-out", str(files[name])])
    san = ["-addext", "subjectAltName=DNS:dev-san"]
    requests: dict[str, tuple[str, list[str]]] = {
        **{name: (name, []) for name in keys},
        "san": ("p256", san),
        "usages": (
            "p256",
            [
                *san,
                *("-addext", "keyUsage=digitalSignature"),
                "-addext",
                "extendedKeyUsage=clientAuth",
            ],
        ),
        "sha512": ("p256", ["-sha512"]),
        "sha1": ("rsa2048", ["-sha1"]),
        "pss-signature": ("rsa2048", ["-sigopt", "rsa_padding_mode:pss"]),
        "newhdr": ("p256", ["-newhdr"]),
        "utf8-subject": ("p256", ["-utf8"]),
    }
    for name, (key, options) in requests.items():
        out = folder / f"openssl-{name}.csr"
        run_client(
            [
                *("openssl", "req", "-new", "-key", str(files[key]), "-out", str(out)),
                *("-subj", f"/CN=dev-openssl-{name}", *options),
            ]
        )


def keytool(folder: Path) -> None:
    """The JDK's ``keytool``."""
    binaries, env = jdk()
    kinds = {
        "p256": ["-keyalg", "EC", "-groupname", "secp256r1"],
        "p384": ["-keyalg", "EC", "-groupname", "secp384r1"],
        "rsa2048": ["-keyalg", "RSA", "-keysize", "2048"],
        "rsa3072": ["-keyalg", "RSA", "-keysize", "3072"],
        "pss": ["-keyalg", "RSASSA-PSS", "-keysize", "2048"],
        "ed25519": ["-keyalg", "Ed25519"],
    }
    for name, kind in kinds.items():
        store = ["-keystore", str(folder / "keys.p12"), "-storepass", _PASSWORD, "-alias", name]
        command = [str(binaries / "keytool"), *_FAST_JAVA]
        subject = ["-dname", f"CN=dev-keytool-{name}"]
        run_client([*command, "-genkeypair", *kind, *subject, *store], env=env)
        san = ["-ext", f"san=dns:dev-keytool-{name}"]
        out = ["-file", str(folder / f"keytool-{name}.csr")]
        run_client([*command, "-certreq", *san, *out, *store], env=env)


def certtool(folder: Path) -> None:
    """GnuTLS's ``certtool``."""
    env = environment(debian_packages("gnutls-bin"))
    command = shutil.which("certtool", path=env["PATH"]) or "certtool"
    kinds = {
        "p256": ["--key-type", "ecdsa", "--curve", "secp256r1"],
        "rsa": ["--key-type", "rsa", "--bits", "2048"],
        "pss": ["--key-type", "rsa-pss", "--bits", "2048"],
        "ed25519": ["--key-type", "ed25519"],
    }
    for name, kind in kinds.items():
        template, key = folder / f"{name}.cfg", folder / f"certtool-{name}.key"
        template.write_text(
            f"cn = dev-certtool-{name}\ndns_name = dev-certtool-{name}\n"
            "signing_key\ntls_www_client\n"
        )
        run_client([command, "--generate-privkey", *kind, "--outfile", str(key)], env=env)
        out = folder / f"certtool-{name}.csr"
        run_client(
            [
                *(command, "--generate-request", "--load-privkey", str(key)),
                *("--template", str(template), "--outfile", str(out)),
            ],
            env=env,
        )


def cfssl(folder: Path) -> None:
    """CloudFlare's ``cfssl genkey``."""
    env = environment(debian_packages("golang-cfssl"))
    command = shutil.which("cfssl", path=env["PATH"]) or "cfssl"
    for name, key in (
        ("p256", {"algo": "ecdsa", "size": 256}),
        ("p384", {"algo": "ecdsa", "size": 384}),
        ("rsa", {"algo": "rsa", "size": 2048}),
    ):
        wanted = folder / f"{name}.json"
        host = f"dev-cfssl-{name}"
        wanted.write_text(json.dumps({"CN": host, "hosts": [host], "key": key}))
        made = json.loads(run_client([command, "genkey", str(wanted)], env=env))
        (folder / f"cfssl-{name}.csr").write_text(made["csr"])


def certutil(folder: Path) -> None:
    """NSS's ``certutil``."""
    env = environment(debian_packages("libnss3-tools"))
    command = shutil.which("certutil", path=env["PATH"]) or "certutil"
    store, noise = folder / "nss", folder / "noise"
    store.mkdir()
    noise.write_bytes(bytes(range(256)) * 8)
    where = ["-d", f"sql:{store}"]
    run_client([command, "-N", *where, "--empty-password"], env=env)
    for name, kind in (
        ("p256", ["-k", "ec", "-q", "nistp256"]),
        ("rsa", ["-k", "rsa", "-g", "2048"]),
    ):
        out = ["-o", str(folder / f"certutil-{name}.csr")]
        subject = ["-s", f"CN=dev-certutil-{name}", "-8", f"dev-certutil-{name}"]
        run_client([command, "-R", *where, *subject, *kind, "-z", str(noise), "-a", *out], env=env)


def strongswan(folder: Path) -> None:
    """strongSwan's ``pki --req``."""
    with strongswan_pki() as pki:
        for name, kind in (
            ("p256", ["ecdsa", "256"]),
            ("p384", ["ecdsa", "384"]),
            ("rsa", ["rsa", "2048"]),
            ("ed25519", ["ed25519", ""]),
        ):
            algorithm, size = kind
            key = folder / f"strongswan-{name}.key"
            bits = ("--size", size) if size else ()
            key.write_bytes(pki.run("--gen", "--type", algorithm, *bits).stdout)
            subject = ("--dn", f"CN=dev-strongswan-{name}", "--san", f"dev-strongswan-{name}")
            made = pki.run(
                *("--req", "--type", "priv", "--in", str(key), *subject, "--outform", "pem")
            )
            (folder / f"strongswan-{name}.csr").write_bytes(made.stdout)


def node(folder: Path) -> None:
    """node-forge and @peculiar/x509, of npm."""
    source = CLIENTS / "node"
    recipe = [source / name for name in ("package.json", "package-lock.json", "csr.mjs")]
    program, npm = of_group("node"), of_group("npm")
    env = with_path(program.parent)

    def build(place: Path) -> None:
        for file in recipe:
            shutil.copy(file, place)
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]
        run_build([str(npm), "ci", *options], cwd=place, env=env)

    place = built("node", recipe, build)
    run_client([str(program), str(place / "csr.mjs"), str(folder)], env=env)


PRODUCERS: dict[str, Producer] = {
    "openssl": openssl,
    "keytool": keytool,
    "certtool": certtool,
    "cfssl": cfssl,
    "certutil": certutil,
    "strongswan": strongswan,
    "node": node,
}
