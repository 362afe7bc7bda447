#!/bin/sh
# install_pycuda.sh PYTHON TARGET: pycuda, compiled as the Dockerfile does, and what it imports, into the folder TARGET.
# Needs what with_cuda_headers.sh needs.
set -eu
python=$1 target=$2
here=$(cd "$(dirname "$0")" && pwd)
pins="$here/../../requirements"

rm -rf "$target" "$target.new"
# shellcheck disable=SC2086  # the Makefile's NO_INDEX is an option or empty
CFLAGS="-O1 -g0" "$here/with_cuda_headers.sh" "$python" "$python" -m uv pip install --quiet ${NO_INDEX:-} \
    --python "$python" --target "$target.new" --no-deps --constraint "$pins/tensorrt.txt" \
    --build-constraints "$pins/build.txt" pycuda pytools mako platformdirs siphash24 typing-extensions
mv "$target.new" "$target"
