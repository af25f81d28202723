#!/bin/sh
# Make the virtual environment and install uv in it, verified by its hashes.
# usage: make_venv.sh FOLDER REQUIREMENTS [PYTHON]
set -eu
venv=$1 requirements=$2 python=${3:-}
any=${python:-python3}
command -v "$any" > /dev/null || { echo "Python 3.11 or newer is needed (make PYTHON=python3.12 ...)" >&2; exit 1; }
chosen=${python:-$("$any" deploy/choose_python.py "$any")}
"$chosen" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (make PYTHON=python3.12 ...)" >&2; exit 1; }
pip() { "$@" install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r "$requirements"; }
# Some systems package pip and venv's use of it apart from Python; any pip can install for another.
if "$chosen" -m venv "$venv" > /dev/null 2>&1; then
  pip "$venv/bin/pip"
else
  "$chosen" -m venv --clear --without-pip "$venv"
  pip "$any" -m pip --python "$venv/bin/python"
fi
echo "virtual environment of $("$venv/bin/python" -c 'import sys; print("Python", sys.version.split()[0], "from", sys.base_prefix)')"
