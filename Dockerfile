# Two images, by target:
#   docker build --target cpu  -t stream-rpn .
#   docker build --target cuda -t stream-rpn:cuda .      # docker run --gpus all
# The build needs no GPU. Extras: --build-arg EXTRAS=serve,parquet,track
ARG PYTHON=3.13

FROM python:${PYTHON}-slim-trixie AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-trixie AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# What is decoded comes from strangers: whoever breaks out of FFmpeg owns nothing here. The folders are
# made now, so that volumes that are mounted on them can be written to.
RUN useradd --uid 10001 --create-home rpn \
    && install --directory --owner rpn --group rpn /data /home/rpn/.cache
WORKDIR /data
EXPOSE 8000
STOPSIGNAL SIGTERM
COPY --chmod=555 deploy/healthcheck.py /usr/local/bin/stream-rpn-health
HEALTHCHECK --interval=30s --timeout=6s --start-period=60s CMD ["stream-rpn-health"]
ENTRYPOINT ["stream-rpn"]
CMD ["--help"]

FROM base AS cpu
ARG EXTRAS=serve,parquet
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --extra-index-url https://download.pytorch.org/whl/cpu \
    "$(echo /wheels/*.whl)[${EXTRAS}]"
USER 10001

FROM base AS cuda
ARG EXTRAS=serve,parquet
# The driver comes from the host; NVDEC needs the capability `video`.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
# Triton builds a launcher for its kernels at first use.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install "$(echo /wheels/*.whl)[${EXTRAS}]"
USER 10001
