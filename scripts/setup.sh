#!/bin/sh
# Install what requirements.txt pins, and DFBench itself, into .venv; quick when nothing changed.
#
#   sh scripts/setup.sh                      makes or updates .venv (Python 3.10 to 3.13; PYTHON=python3.12 chooses one)
#   DFBENCH_NO_VENV=1 sh scripts/setup.sh    installs into the active environment instead
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || {
    echo "error: $("$python" --version 2>&1); expected Python 3.10 to 3.13; name one with PYTHON=..." >&2
    exit 1
}

if [ "${DFBENCH_NO_VENV:-}" != 1 ]; then
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    python=.venv/bin/python
fi

# The stamp holds what was installed last: the requirements, the package's own metadata and the interpreter.
stamp=$("$python" -c 'import sys; print(sys.prefix)')/dfbench-setup.stamp
now=$(cat requirements.txt pyproject.toml && "$python" --version)
if [ "$(cat "$stamp" 2>/dev/null)" = "$now" ]; then
    exit 0
fi
echo "installing into $("$python" -c 'import sys; print(sys.prefix)') (several minutes and about 6.5 GB the first time)"
"$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
echo "$now" > "$stamp"
