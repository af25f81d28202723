"""``make conformance``: the conformance tests against a suite of our own, or any EST server."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def main() -> int:
    """Run the tests; against our own suite, write docs/conformance.md afterwards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", help="https://host:port of an EST server; default: our own")
    parser.add_argument("--ca", type=Path, help="what vouches for it, PEM")
    parser.add_argument("--user", default="", help="user of HTTP Basic")
    parser.add_argument("--password-file", type=Path, help="file with the password")
    parser.add_argument("--label", default="", help="label the credentials are for")
    parser.add_argument("--common-name", default="conformance.test", help="a name they may ask for")
    parser.add_argument("--serverkeygen", action="store_true", help="the server makes keys, too")
    asked = parser.parse_args()
    environment = dict(os.environ)
    if asked.target is not None:
        if asked.ca is None or asked.password_file is None:
            parser.error("--target needs --ca and --password-file")
        environment |= {
            "EST_TARGET": asked.target,
            "EST_TARGET_CA": str(asked.ca.resolve()),
            "EST_TARGET_USER": asked.user,
            "EST_TARGET_PASSWORD_FILE": str(asked.password_file.resolve()),
            "EST_TARGET_LABEL": asked.label,
            "EST_TARGET_COMMON_NAME": asked.common_name,
            "EST_TARGET_SERVERKEYGEN": "yes" if asked.serverkeygen else "",
        }
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "--no-header", str(HERE)]
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if status == 0 and asked.target is None:
        page = [sys.executable, str(ROOT / "docs" / "conformance.py")]
        return subprocess.run(page, check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
