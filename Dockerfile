# CPU by default. To train on an NVIDIA GPU, give an NVIDIA PyTorch image as the base:
#   docker build --build-arg BASE=<NVIDIA PyTorch image> -t mipkd-pipeline .
#   docker run --gpus all -v $PWD:/data mipkd-pipeline run --teacher rcan.pth --data photos
# TORCH_INDEX: an index with CPU builds of torch; without it the default build is installed.
# The base is python:3.12-slim-bookworm of 2026-08-25 (Python 3.12.14).
ARG BASE=python@sha256:0f5b26b9518d002b6173fd61daad821fa340635ebfec5bba471013f9ca114579
FROM ${BASE}
ARG TORCH_INDEX=""

WORKDIR /opt/mipkd-pipeline
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY requirements requirements
COPY pipeline pipeline
COPY mipkd mipkd
COPY targets targets
COPY calibration calibration

# A base image that brings its own torch, and what is pinned to it, keeps them. Else everything is
# installed by hash but torch: which build of it is right is the index's to say.
RUN if python -c "import torch" 2>/dev/null; then \
        pip install --no-cache-dir '.[openvino]'; \
    else \
        pip install --no-cache-dir --no-deps --require-hashes --requirement requirements/runtime.txt \
        && pip install --no-cache-dir --constraint constraints.txt \
            ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
        && pip install --no-cache-dir --no-deps --no-build-isolation .; \
    fi

WORKDIR /data
ENTRYPOINT ["mipkd-pipeline"]
CMD ["--help"]
