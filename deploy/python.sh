#!/bin/sh
# Makes a virtual environment with a Python that is new enough.
#   deploy/python.sh DIRECTORY     PYTHON=… chooses the Python
set -eu

directory=$1
here=$(dirname "$0")

new_enough() {
    # Runs it: a name on the PATH may be a shim with nothing behind it.
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ -x "$directory/bin/python" ] && new_enough "$directory/bin/python"; then
    exit 0
fi

found=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
    if new_enough "$candidate"; then
        found=$candidate
        break
    fi
done
if [ -z "$found" ]; then
    echo "Meshmint needs Python 3.11 or newer; none of these is: ${PYTHON:-python3 python3.13 python3.12 python3.11}." >&2
    echo "Install one, or name it: make PYTHON=/path/to/python3.12 …" >&2
    exit 1
fi

# Debian and Ubuntu ship the part of venv that installs pip in a package of its own.
if ! "$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    version=$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$here/packages.sh" "python$version-venv"
fi

echo "Making $directory with $("$found" --version)"
rm -rf "$directory"
"$found" -m venv "$directory"
