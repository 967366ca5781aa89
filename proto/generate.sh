#!/bin/sh
# Generates the Python code of the API, and of the protocols of others.
#   proto/generate.sh [--check] DIRECTORY
# Writes DIRECTORY/meshmint/v1 and DIRECTORY/meshmint/third_party; with --check it
# writes nothing and fails if what is there differs. Needs the virtual
# environment's programs on the PATH.
set -eu

check=
if [ "$1" = --check ]; then
    check=yes
    shift
fi
target=$1
source=$(dirname "$0")

# The package of google.rpc brings its .proto files along.
google=$(python -c 'import pathlib, google.rpc.status_pb2 as found; print(pathlib.Path(found.__file__).parents[2])')

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Files are named as the modules they become, wherever they lie.
find "$source/meshmint/v1" "$source/third_party" -name '*.proto' | LC_ALL=C sort >"$work/files"
xargs python -m grpc_tools.protoc "-Imeshmint/third_party=$source/third_party" "-I$source" "-I$google" \
    "--python_out=$work" "--grpc_python_out=$work" \
    "--mypy_out=quiet:$work" "--mypy_grpc_out=quiet:$work" <"$work/files"

# The plugin writes an empty module for a file that has no service.
while read -r file; do
    if ! grep -q '^service ' "$file"; then
        module=${file#"$source"/}
        case $module in third_party/*) module=meshmint/$module ;; esac
        rm -f "$work/${module%.proto}"_pb2_grpc.py*
    fi
done <"$work/files"
find "$work/meshmint" -mindepth 1 -type d -exec sh -c ': >"$1/__init__.py"' sh {} \;

for package in v1 third_party; do
    if [ -n "$check" ]; then
        if ! diff -r --exclude=__pycache__ "$target/meshmint/$package" "$work/meshmint/$package" >&2; then
            echo "$target/meshmint/$package is not what proto/ generates; run: make proto" >&2
            exit 1
        fi
    else
        rm -rf "${target:?}/meshmint/$package"
        cp -r "$work/meshmint/$package" "$target/meshmint/$package"
    fi
done
