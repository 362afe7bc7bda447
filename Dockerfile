# Stages: tools (uv), export (makes the bundle on a CPU), packages (what the worker imports), code, and runtime, which
# copies from them and holds neither torch nor a compiler. Every ARG has a default that works: RunPod's build sets none.
#
#   docker build -t worker .                                          a bundle/ folder beside this file goes in as it is,
#   docker build -t worker --build-arg MODEL=intfloat/e5-small-v2 .   else the model is exported from the Hub
#
# Secrets, both optional: HF_TOKEN for gated models, and build_env, a file of lines NAME=value that pip and uv read
# (PIP_INDEX_URL, UV_DEFAULT_INDEX, ...) for builds behind a private package index; no shell reads them.
ARG BASE_IMAGE=nvidia/cuda:11.8.0-base-ubuntu22.04
# tensorrt, onnxruntime (on CUDA), all (both), or cpu (ONNX Runtime for the CPU alone)
ARG ENGINE_SET=all
# 1 keeps what TensorRT builds plans with: for BUILD_ON_BOOT, and for pods that build plans
ARG WITH_BUILDER=0
# What is exported where there is no bundle/: sentence-transformers/all-MiniLM-L6-v2 unless given, for the task that the
# model's own files say unless given, and of the branch main
ARG MODEL=
ARG TASK=
ARG REVISION=
ARG PRECISION=fp32
# of the bundle inside, whatever it comes from
ARG BUNDLE_SHA256=

FROM ${BASE_IMAGE} AS base
WORKDIR /app

FROM base AS tools
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_LINK_MODE=copy UV_NO_CACHE=1 PATH=/opt/venv/bin:/opt/tools/bin:$PATH
COPY requirements/tools.txt requirements/build_env.sh requirements/
# A base that brings Python 3.11 lends it to the runtime. Otherwise uv fetches one into /opt/python: what apt installs
# here is missing there. The version of apt's packages is the base's.
# hadolint ignore=DL3008
RUN --mount=type=secret,id=build_env \
    python="$(command -v python3.11 || true)" \
    && . requirements/build_env.sh \
    && apt-get update \
    && apt-get install --yes --no-install-recommends python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/tools \
    && pip install --no-cache-dir --require-hashes --requirement requirements/tools.txt \
    && mkdir --parents /opt/python \
    && if [ -n "${python}" ]; then uv venv --no-managed-python --python "${python}" /opt/venv; \
       else uv venv --managed-python --python 3.11 /opt/venv; fi

FROM tools AS export
ARG MODEL
ARG TASK
ARG REVISION
ARG PRECISION
ARG BUNDLE_SHA256
COPY requirements/export.txt requirements/
COPY bundl[e] bundle
COPY pyproject.toml ./
COPY engine engine
COPY export export
# Installed only when there is something to export. torch comes from PyTorch's index for the CPU, where the export runs,
# unless build_env names a place for uv, which is then the only one.
RUN --mount=type=secret,id=HF_TOKEN --mount=type=secret,id=build_env \
    if [ ! -f bundle/manifest.json ]; then \
        . requirements/build_env.sh \
        && if [ -z "${UV_FIND_LINKS}${UV_DEFAULT_INDEX}${UV_INDEX}${UV_INDEX_URL}${UV_EXTRA_INDEX_URL}" ]; then \
            export UV_TORCH_BACKEND="${UV_TORCH_BACKEND:-cpu}"; \
        fi \
        && uv pip install --python /opt/venv --requirement requirements/export.txt \
        && if [ -f /run/secrets/HF_TOKEN ]; then HF_TOKEN="$(cat /run/secrets/HF_TOKEN)"; export HF_TOKEN; fi \
        && python -m export "${MODEL:-sentence-transformers/all-MiniLM-L6-v2}" ${TASK:+--task "${TASK}"} \
            --revision "${REVISION:-main}" --precision "${PRECISION}" --out bundle; \
    fi \
    && if [ -n "${MODEL}" ] && ! python -c 'import json, sys; \
        sys.exit(json.load(open("bundle/manifest.json", "rb"))["model"] != sys.argv[1])' "${MODEL}"; then \
        printf 'bundle/ is not of %s; remove bundle/ to export that, or build with --build-arg MODEL= to take it\n' \
            "${MODEL}" >&2; \
        exit 1; \
    fi \
    && if [ -n "${BUNDLE_SHA256}" ] && [ "$(cut -c -64 bundle/manifest.sha256)" != "${BUNDLE_SHA256}" ]; then \
        echo "the bundle is not the one that BUNDLE_SHA256 names; build with the hash in bundle/manifest.sha256" >&2; \
        exit 1; \
    fi \
    && python -m engine inspect bundle --verify \
    && chmod --recursive u=rwX,go=rX bundle

FROM tools AS packages
ARG ENGINE_SET
COPY requirements/build.txt requirements/
# PyCUDA comes as source: a compiler, CUDA 11.8's headers, and a libcuda to link against, whose place the driver's takes.
# hadolint ignore=DL3008
RUN --mount=type=secret,id=build_env \
    case "${ENGINE_SET}" in cpu | onnxruntime) exit 0 ;; esac \
    && . requirements/build_env.sh \
    && apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && headers="$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
    && if [ ! -f "${headers}/Python.h" ]; then apt-get install --yes --no-install-recommends python3.11-dev; fi \
    && rm -rf /var/lib/apt/lists/* \
    && uv pip install --target /opt/build --require-hashes --requirement requirements/build.txt \
    && echo 'int cuInit(unsigned flags) { return 100; }' > /opt/build/cuda.c \
    && gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -o /opt/build/libcuda.so /opt/build/cuda.c \
    && printf '%s\n' 'CUDA_ENABLE_CURAND = False' 'CUDADRV_LIB_DIR = ["/opt/build"]' \
        'CUDA_INC_DIR = [f"/opt/build/nvidia/{name}/include" for name in ("cuda_runtime", "cuda_profiler_api")]' \
        > /etc/aksetup-defaults.py
COPY requirements/${ENGINE_SET}.txt requirements/cpu.txt requirements/builder.txt requirements/
ARG WITH_BUILDER
# Unchecked bytecode is the same whenever it is compiled. Libraries that look for each other by name find themselves in
# one folder. Without WITH_BUILDER=1 TensorRT runs plans and builds none; with it, plans are compared with ONNX Runtime,
# whose tools need sympy: where the pins say that nobody else wants it, it goes. Tests go from packages that do without
# them; others import theirs.
RUN --mount=type=secret,id=build_env \
    . requirements/build_env.sh \
    && set -- "${ENGINE_SET}" \
    && if [ "${WITH_BUILDER}" = 1 ]; then set -- "$@" builder; fi \
    && if [ "$*" = 'tensorrt builder' ]; then set -- "$@" cpu; fi \
    && printf -- '-r requirements/%s.txt\n' "$@" > requirements.txt \
    && uv pip install --python /opt/venv --require-hashes --build-constraints requirements/build.txt \
        --requirement requirements.txt \
    && via() { sed -n "/^$1==/,/# via /s/^ *# via //p" "requirements/${ENGINE_SET}.txt"; } \
    && if [ "${WITH_BUILDER}" != 1 ]; then \
        case "$(via sympy)" in onnxruntime | onnxruntime-gpu) \
            uv pip uninstall --python /opt/venv sympy \
            && if [ "$(via mpmath)" = sympy ]; then uv pip uninstall --python /opt/venv mpmath; fi ;; \
        esac; \
    fi \
    && cyclonedx-py environment --output-reproducible --output-file /opt/sbom.json /opt/venv/bin/python \
    && site=/opt/venv/lib/python3.11/site-packages \
    && if [ "${WITH_BUILDER}" != 1 ]; then rm -f "${site}"/tensorrt_libs/libnvinfer_builder_resource*; fi \
    && set -- /opt/python \
    && for name in certifi colorama fsspec mpmath numpy sympy; do \
        if [ -d "${site}/${name}" ]; then set -- "$@" "${site}/${name}"; fi; \
    done \
    && find "$@" \( -type d -name tests -o -name conftest.py \) -prune -exec rm -rf {} + \
    && find /opt/venv/bin -type f -delete \
    && rm -rf /opt/venv/.gitignore /opt/venv/.lock /opt/venv/CACHEDIR.TAG /opt/venv/share \
    && mkdir /opt/venv/lib/cuda \
    && find "${site}" \( -path '*/nvidia/*/lib/*.so*' -o -path '*/tensorrt_libs/*.so*' \) \
        -exec ln -s -t /opt/venv/lib/cuda {} + \
    && rm -rf /opt/python/*/include /opt/python/*/share /opt/python/*/lib/tcl* /opt/python/*/lib/tk* \
        /opt/python/*/lib/python3.11/test /opt/python/*/lib/python3.11/ensurepip \
        /opt/python/*/lib/python3.11/idlelib /opt/python/*/lib/python3.11/site-packages/pip* \
    && PYTHONHASHSEED=0 python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib /opt/python

FROM packages AS code
# Again, for only BuildKit hands arguments on from stage to stage.
ARG WITH_BUILDER
COPY engine engine
COPY export export
COPY handler handler
# Plans are built by `python -m export plan`, which an image without the builder cannot run.
RUN if [ "${WITH_BUILDER}" != 1 ]; then rm -rf export; fi \
    && rm -rf requirements requirements.txt \
    && chmod --recursive u=rwX,go=rX . \
    && PYTHONHASHSEED=0 python -m compileall -q --invalidation-mode unchecked-hash .

FROM base AS runtime
# By hand: useradd would leave the day in /etc/shadow. A Python that the base lends may come without bytecode, as in the
# image python:3.11: each start would compile the standard library, and could not keep what it made.
RUN echo 'worker:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd && echo 'worker:x:10001:' >> /etc/group \
    && python="$(command -v python3.11 || true)" \
    && if [ -n "${python}" ]; then \
        PYTHONHASHSEED=0 "${python}" -m compileall -q --invalidation-mode unchecked-hash \
            -x '/(site-packages|dist-packages|tests?|lib2to3|idlelib|ensurepip)/' \
            "$("${python}" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"; \
    fi
COPY --from=packages /opt/python /opt/python
COPY --from=packages /opt/venv /opt/venv
COPY --from=packages /opt/sbom.json sbom.json
COPY --from=export /app/bundle bundle
# What changes most comes last.
COPY --from=code /app ./
USER 10001:10001
ENV BUNDLE=/app/bundle PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 \
    LD_LIBRARY_PATH=/opt/venv/lib/cuda:/usr/local/nvidia/lib:/usr/local/nvidia/lib64
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "handler.health"]
CMD ["python", "-u", "-m", "handler"]
# What is not given stands in bundle/manifest.json; `make image` gives all three.
ARG MODEL
ARG REVISION
ARG BUNDLE_SHA256
LABEL org.opencontainers.image.title="worker-tensorrt" \
    worker-tensorrt.model="${MODEL:-see /app/bundle/manifest.json}" \
    worker-tensorrt.revision="${REVISION:-see /app/bundle/manifest.json}" \
    worker-tensorrt.bundle.sha256="${BUNDLE_SHA256:-see /app/bundle/manifest.sha256}"
