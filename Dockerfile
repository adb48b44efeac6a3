# CPU by default. To train on an NVIDIA GPU, give an NVIDIA PyTorch image as the base:
#   docker build --build-arg BASE=<NVIDIA PyTorch image> -t mipkd-pipeline .
#   docker run --gpus all -v $PWD:/data mipkd-pipeline run --teacher rcan.pth --data photos
# TORCH_INDEX: an index with CPU builds of torch; without it the default build is installed.
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG TORCH_INDEX=""

WORKDIR /opt/mipkd-pipeline
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pipeline pipeline
COPY mipkd mipkd
COPY targets targets
COPY calibration calibration

# A base image that brings its own torch, and what is pinned to it, keeps them.
RUN if python -c "import torch" 2>/dev/null; then \
        pip install --no-cache-dir '.[openvino]'; \
    else \
        pip install --no-cache-dir --constraint constraints.txt \
            ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
        && pip install --no-cache-dir --constraint constraints.txt '.[openvino]'; \
    fi

WORKDIR /data
ENTRYPOINT ["mipkd-pipeline"]
CMD ["--help"]
