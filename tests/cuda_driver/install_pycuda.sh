#!/bin/sh
# install_pycuda.sh PYTHON: pycuda, compiled as the Dockerfile does, and what it imports, into build/pycuda of this
# checkout, which is removed first: no argument names a folder to remove.
# Needs a C++ compiler, PYTHON's uv and headers, and a package index; no CUDA toolkit, no driver, no GPU.
set -eu
python=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
target="$root/build/pycuda"
pins="$root/requirements"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
uv() { "$python" -m uv pip install --quiet --python "$python" --target "$@"; }

uv "$scratch/cuda" --no-deps --require-hashes --requirement "$pins/build.txt"
# The linker wants a libcuda to name. It must define something that pycuda uses, or --as-needed would drop it.
echo 'int cuInit(unsigned flags) { return 100; }' > "$scratch/cuda.c"
cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$scratch/libcuda.so" "$scratch/cuda.c"
# pycuda's setup.py reads this from the home folder; uv and its cache keep theirs.
cat > "$scratch/.aksetup-defaults.py" <<END
CUDA_ENABLE_CURAND = False
CUDADRV_LIB_DIR = ["$scratch"]
CUDA_INC_DIR = [f"$scratch/cuda/nvidia/{name}/include" for name in ("cuda_runtime", "cuda_profiler_api")]
END
export UV_CACHE_DIR="${UV_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/uv}" XDG_CONFIG_HOME="${XDG_CONFIG_HOME:-$HOME/.config}"
mkdir -p "$root/build"
rm -rf "$target" "$target.new"
HOME="$scratch" CFLAGS="-O1 -g0" uv "$target.new" --no-deps --constraint "$pins/tensorrt.txt" \
    --build-constraints "$pins/build.txt" pycuda pytools mako platformdirs siphash24 typing-extensions
mv "$target.new" "$target"
