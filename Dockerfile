# syntax=docker/dockerfile:1
# Visual tokenizers with the command `vt`, for GPUs and CPUs. It was linted, but not built or run by the authors.
#
#   docker build --tag visual-tokenizers .
#   docker run --rm --gpus all --shm-size 16g --volume "$PWD:/work" --user "$(id -u):$(id -g)" visual-tokenizers doctor --machine
#   docker run --rm --gpus all --shm-size 16g --volume "$PWD:/work" --volume /data/imagenet:/data/imagenet:ro \
#       --env IMGNET_ROOT=/data/imagenet --env GPUS=8 visual-tokenizers train vq/VQ_SS256
#
# Runs are written below the folder that is mounted as /work. The libraries of CUDA come with torch; the host needs the
# driver and NVIDIA's container toolkit. A build of torch for CPUs is much smaller: --build-arg UV_TORCH_BACKEND=cpu
FROM python:3.12-slim-bookworm

# The packages in the versions of the lock, in a layer of their own: they change less often than the code.
ARG UV_VERSION=0.13.9
ARG UV_TORCH_BACKEND=
ARG EXTRAS=quickstart,wandb,shards,parquet
ENV VIRTUAL_ENV=/opt/environment PATH=/opt/environment/bin:$PATH UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1
WORKDIR /opt/visual-tokenizers
COPY env_install.sh pyproject.toml requirements.lock ./
COPY scripts/common.sh scripts/torch_builds.tsv scripts/
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN python -m venv "$VIRTUAL_ENV" \
    && pip install "uv==$UV_VERSION" \
    && if [ -n "$UV_TORCH_BACKEND" ]; then export UV_TORCH_BACKEND; else unset UV_TORCH_BACKEND; fi \
    && bash env_install.sh --env active --uv --locked --extras "$EXTRAS"

# The project itself.
COPY LICENSE README.md setup.py visual_tokenizers.py ./
COPY configs configs
COPY scripts scripts
COPY engine engine
COPY tokenizer tokenizer
COPY autoregressive autoregressive
COPY evaluations evaluations
RUN uv pip install --no-deps . && vt --version

# Not as root; any other user of the host may be given with --user.
RUN useradd --uid 1000 researcher && install --directory --owner researcher /work
USER 1000
WORKDIR /work
ENV HOME=/tmp
ENTRYPOINT ["vt"]
CMD ["--help"]
