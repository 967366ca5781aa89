#!/bin/sh
# Generates the Python code of the API.
#   proto/generate.sh [--check] DIRECTORY
# Writes DIRECTORY/meshmint/v1; with --check it writes nothing and fails if what
# is there differs. Needs the virtual environment's programs on the PATH.
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

python -m grpc_tools.protoc "-I$source" "-I$google" "--python_out=$work" "--grpc_python_out=$work" \
    "--mypy_out=quiet:$work" "--mypy_grpc_out=quiet:$work" "$source"/meshmint/v1/*.proto

# The plugin writes an empty module for a file that has no service.
for file in "$source"/meshmint/v1/*.proto; do
    if ! grep -q '^service ' "$file"; then
        rm -f "$work/meshmint/v1/$(basename "$file" .proto)"_pb2_grpc.py*
    fi
done
: >"$work/meshmint/v1/__init__.py"

if [ -n "$check" ]; then
    if ! diff -r --exclude=__pycache__ "$target/meshmint/v1" "$work/meshmint/v1" >&2; then
        echo "$target/meshmint/v1 is not what proto/ generates; run: make proto" >&2
        exit 1
    fi
else
    mkdir -p "$target/meshmint/v1"
    rm -f "$target"/meshmint/v1/*.py "$target"/meshmint/v1/*.pyi
    cp "$work"/meshmint/v1/* "$target/meshmint/v1/"
fi
