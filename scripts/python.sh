#!/usr/bin/env bash
# Print a Python interpreter that is new enough and can make virtual environments: the one asked for, else any.
set -eu

can_use() {
    command -v "$1" >/dev/null && "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

for candidate in "$1" python3.11 python3.12 python3.13 python3.14; do
    if can_use "$candidate"; then
        echo "$candidate"
        exit 0
    fi
done
echo "splitmesh needs Python 3.11 or newer with its venv module; $1 is $("$1" --version 2>&1 || true)." \
    "Install one and name it: make PYTHON=/path/to/python3 ..." >&2
exit 1
