#!/bin/sh
# install_pycuda.sh PYTHON: pycuda, compiled as the Dockerfile does, and what it imports, into build/pycuda of this
# checkout, which is removed first: no argument names a folder to remove. Needs what with_cuda_headers.sh needs.
set -eu
python=$1
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target="$root/build/pycuda"
pins="$root/requirements"

mkdir -p "$root/build"
rm -rf "$target" "$target.new"
# shellcheck disable=SC2086  # the Makefile's NO_INDEX is an option or empty
CFLAGS="-O1 -g0" "$here/with_cuda_headers.sh" "$python" "$python" -m uv pip install --quiet ${NO_INDEX:-} \
    --python "$python" --target "$target.new" --no-deps --constraint "$pins/tensorrt.txt" \
    --build-constraints "$pins/build.txt" pycuda pytools mako platformdirs siphash24 typing-extensions
mv "$target.new" "$target"
