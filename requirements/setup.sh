#!/bin/sh
# Finds a suitable Python and hands over to bootstrap.py. Needs nothing but a POSIX shell.
set -eu
cd "$(dirname "$0")/.."

# An interpreter counts only if it runs: version managers leave commands that cannot.
# 3.14 comes last because some locked dependencies have no wheels for it yet.
suitable() {
    "$1" -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] and sys.implementation.name == "cpython"))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    if ! suitable "$PYTHON"; then
        echo "setup: PYTHON=$PYTHON is not a working CPython 3.11 or newer" >&2
        exit 1
    fi
    exec "$PYTHON" requirements/bootstrap.py "$@"
fi
if [ -x .venv/bin/python ] && suitable .venv/bin/python; then
    exec .venv/bin/python requirements/bootstrap.py "$@"
fi
for candidate in python3.13 python3.12 python3.11 python3 python python3.14; do
    if suitable "$candidate"; then
        exec "$candidate" requirements/bootstrap.py "$@"
    fi
done
cat >&2 <<'TEXT'
setup: Python 3.11 or newer is missing. Install it with
  Debian, Ubuntu:  sudo apt install python3 python3-venv
  Fedora:          sudo dnf install python3
  macOS:           brew install python@3.13
or name one with PYTHON=/path/to/python3 make ...
TEXT
exit 1
