#!/bin/sh
# Set up and run the tests, in two processes.
#
#   sh scripts/test.sh                    everything: five minutes on two cores
#   sh scripts/test.sh --quick            not those that train, or start programs, ms-swift or a browser: 90 s
#   sh scripts/test.sh -k fusion          further options go to pytest
#   sh scripts/test.sh -n 0 --pdb -k x    in one process, as a debugger needs it
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh
[ "${DFBENCH_NO_VENV:-}" = 1 ] || PATH=$PWD/.venv/bin:$PATH
export PATH HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

if [ "${1:-}" = --quick ]; then
    shift
    set -- -m "not slow" "$@"
fi
# Stealing leaves neighbours, which share fixtures, in one process, and neither idle before the end.
exec python -m pytest -n 2 --dist worksteal "$@"
