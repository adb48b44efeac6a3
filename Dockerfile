# Two images; both run as the user `mipkd` (10001) in /data.
#   docker build -t mipkd-pipeline .                         everything, torch for the CPU
#   docker build --target check -t mipkd-pipeline:check .    verify, check, bench, upscale: no torch
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" mipkd-pipeline run --teacher edsr.pth ...
# Build arguments:
#   OPENVINO_GPU=1   brings OpenVINO's GPU runtime; run with --device /dev/dri and the group of its nodes
#   BASE=IMAGE       an image that brings its own torch (NVIDIA's PyTorch), to train on a GPU: it is kept
#   TORCH_INDEX=URL  the index that torch comes from, empty for that of pip
# The base is python:3.12-slim-bookworm of 2026-08-25 (Python 3.12.14).
ARG BASE=python@sha256:0f5b26b9518d002b6173fd61daad821fa340635ebfec5bba471013f9ca114579

# hadolint ignore=DL3006
FROM ${BASE} AS base
ARG OPENVINO_GPU=""
# openssh-client: for --device. Debian drops superseded versions from its archive, so none is named.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        openssh-client ${OPENVINO_GPU:+intel-opencl-icd} \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 mipkd \
    && install --directory --owner mipkd /data
# Whoever `--user` names has a place for compiled models.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 XDG_CACHE_HOME=/tmp/cache
WORKDIR /opt/mipkd-pipeline


# What judges and uses a bundle: everything by version and hash, no torch.
FROM base AS check
COPY docs/ci/requirements.txt docs/ci/requirements.txt
RUN pip install --require-hashes --requirement docs/ci/requirements.txt
COPY pyproject.toml PACKAGE.md LICENSE ./
COPY pipeline pipeline
COPY mipkd mipkd
COPY targets targets
COPY calibration calibration
RUN pip install --no-deps --no-build-isolation .
USER 10001
WORKDIR /data
ENTRYPOINT ["mipkd-pipeline"]
CMD ["--help"]


# Everything. Packages come before the sources, so that a change of ours costs no download.
FROM base AS full
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY pyproject.toml constraints.txt PACKAGE.md LICENSE ./
COPY requirements/runtime.txt requirements/runtime.txt
# A base that brings its own torch, and what is pinned to it, keeps them: our package, still without
# modules, brings what is missing. Else all is installed by hash but torch: which build of it is
# right is the index's to say.
# hadolint ignore=DL3013
RUN if python -c "import torch" 2>/dev/null; then \
        pip install ".[openvino]"; \
    else \
        pip install --no-deps --require-hashes --requirement requirements/runtime.txt \
        && pip install --constraint constraints.txt \
            ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch; \
    fi
COPY pipeline pipeline
COPY mipkd mipkd
COPY targets targets
COPY calibration calibration
RUN pip install --no-deps --no-build-isolation --force-reinstall .
USER 10001
WORKDIR /data
ENTRYPOINT ["mipkd-pipeline"]
CMD ["--help"]
