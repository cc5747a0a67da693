#!/bin/sh
# Make .venv-NAME beside this file and install pinned packages into it: install.sh NAME PACKAGE...
set -eu
name=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
${PYTHON:-python3.11} -m venv "$here/.venv-$name"
"$here/.venv-$name/bin/pip" install --quiet --disable-pip-version-check "$@"
echo "installed: $here/.venv-$name"
