#!/bin/sh
# Installs into venv/ beside this file, without a network. PYTHON chooses the interpreter.
set -eu
cd "$(dirname "$0")"
PYTHON=${PYTHON:-python{python}}
command -v "$PYTHON" >/dev/null || { echo "Python {python} is needed: PYTHON=... $0" >&2; exit 1; }
sha256sum --check --quiet SHA256SUMS
"$PYTHON" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check --no-index --find-links wheels \
  --require-hashes --requirement requirements.txt
venv/bin/python -c 'import destseg_deploy; destseg_deploy.load("{artifact}").close()'
echo "installed: $PWD/venv/bin/destseg predict $PWD/{artifact} IMAGES"
