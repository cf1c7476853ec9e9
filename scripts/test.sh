#!/bin/sh
# Set up and run the tests: quick ones first, then those that train, start ms-swift or a browser.
#
#   sh scripts/test.sh              everything
#   sh scripts/test.sh --quick      only the quick ones, which do not need ms-swift
#   sh scripts/test.sh -k fusion    further options go to pytest
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh
[ "${DFBENCH_NO_VENV:-}" = 1 ] || PATH=$PWD/.venv/bin:$PATH
export PATH HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

if [ "${1:-}" = --quick ]; then
    shift
    # Two processes; each test file stays in one, so that its small models are made once.
    set -- -m "not slow" -n 2 --dist loadfile "$@"
fi
exec python -m pytest "$@"
