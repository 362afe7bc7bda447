#!/bin/sh
# with_cuda_headers.sh PYTHON COMMAND...: a command that may compile pycuda, on a machine without a CUDA toolkit, as the
# Dockerfile does. Needs a C++ compiler, PYTHON's uv and headers, and a package index; no driver, no GPU.
set -eu
python=$1
shift
pins="$(cd "$(dirname "$0")/../.." && pwd)/requirements"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# shellcheck disable=SC2086  # the Makefile's NO_INDEX is an option or empty
"$python" -m uv pip install --quiet ${NO_INDEX:-} --python "$python" --target "$scratch/cuda" --no-deps \
    --require-hashes --requirement "$pins/build.txt"
# The linker wants a libcuda to name. It must define something that pycuda uses, or --as-needed would drop it.
echo 'int cuInit(unsigned flags) { return 100; }' > "$scratch/cuda.c"
cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$scratch/libcuda.so" "$scratch/cuda.c"
# pycuda's setup.py reads this from the home folder; uv, its cache and its passwords keep theirs.
cat > "$scratch/.aksetup-defaults.py" <<END
CUDA_ENABLE_CURAND = False
CUDADRV_LIB_DIR = ["$scratch"]
CUDA_INC_DIR = [f"$scratch/cuda/nvidia/{name}/include" for name in ("cuda_runtime", "cuda_profiler_api")]
END
export UV_CACHE_DIR="${UV_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/uv}" XDG_CONFIG_HOME="${XDG_CONFIG_HOME:-$HOME/.config}"
if [ -f "$HOME/.netrc" ]; then export NETRC="${NETRC:-$HOME/.netrc}"; fi
HOME="$scratch" "$@"
