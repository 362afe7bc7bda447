# Two stages: `export` makes the bundle on a CPU, `runtime` serves it and holds neither torch nor a compiler.
# Every ARG has a default that works: a GitHub build on RunPod can set none.
#
#   docker build -t worker .                                          a bundle/ folder beside this file goes in as it is,
#   docker build -t worker --build-arg MODEL=intfloat/e5-small-v2 .   else the model is exported from the Hub
ARG BASE_IMAGE=nvidia/cuda:11.8.0-cudnn8-runtime-ubuntu22.04

FROM ${BASE_IMAGE} AS base
# Python itself is uv's, in a folder of its own, so that the base image need not have the version.
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 PATH=/opt/venv/bin:$PATH
WORKDIR /app

FROM base AS tools
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-pip python3-venv \
    && python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir uv \
    && mkdir --parents /opt/python && /opt/uv/bin/uv venv --python 3.11 /opt/venv

FROM tools AS export
ARG MODEL=sentence-transformers/all-MiniLM-L6-v2
ARG TASK=feature-extraction
ARG REVISION=main
COPY requirements requirements
# Installed only when there is something to export; torch without CUDA, for the export runs on the CPU.
COPY bundl[e] bundle
COPY engine engine
COPY export export
RUN --mount=type=secret,id=HF_TOKEN \
    if [ ! -f bundle/manifest.json ]; then \
        /opt/uv/bin/uv pip install --python /opt/venv --torch-backend cpu --requirement requirements/export.txt \
        && if [ -f /run/secrets/HF_TOKEN ]; then HF_TOKEN="$(cat /run/secrets/HF_TOKEN)"; export HF_TOKEN; fi \
        && python -m export "${MODEL}" --task "${TASK}" --revision "${REVISION}" --out bundle; \
    fi

FROM tools AS packages
# gpu: ONNX Runtime with CUDA, TensorRT. cpu: ONNX Runtime alone, for endpoints without a GPU and for trying it out.
ARG DEVICE=gpu
COPY requirements requirements
RUN /opt/uv/bin/uv pip install --python /opt/venv --require-hashes --requirement requirements/${DEVICE}.txt

FROM base AS runtime
COPY --from=packages /opt/python /opt/python
COPY --from=packages /opt/venv /opt/venv
COPY engine engine
COPY handler handler
RUN python -m compileall -q engine handler && useradd --uid 10001 worker
COPY --from=export /app/bundle bundle
USER worker
ENV BUNDLE=/app/bundle PYTHONDONTWRITEBYTECODE=1
CMD ["python", "-u", "-m", "handler"]
