# syntax=docker/dockerfile:1
# Build:  docker build -t llamesh .
# GPU:    docker build -t llamesh:cuda --build-arg BASE=nvidia/cuda:12.6.3-devel-ubuntu24.04 \
#             --build-arg RUNTIME=nvidia/cuda:12.6.3-runtime-ubuntu24.04 \
#             --build-arg CMAKE_ARGS=-DGGML_CUDA=ON .
ARG BASE=debian:13-slim
ARG RUNTIME=debian:13-slim

FROM ${BASE} AS build
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        build-essential ca-certificates cmake python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements/ requirements/
# GGML_NATIVE=OFF: the image must also run on CPUs other than the builder's.
ARG CMAKE_ARGS=""
RUN python3 -m venv /opt/llamesh \
    && /opt/llamesh/bin/python -m pip install --no-cache-dir --no-deps --require-hashes \
        -r requirements/bootstrap.lock \
    && CMAKE_ARGS="-DGGML_RPC=ON -DGGML_NATIVE=OFF ${CMAKE_ARGS}" \
        /opt/llamesh/bin/uv pip install --python /opt/llamesh/bin/python --no-cache --no-deps \
        --require-hashes -r requirements/runtime.lock --no-binary llama-cpp-python
COPY pyproject.toml README.md LICENSE ./
COPY agent/ agent/
COPY api/ api/
COPY consensus/ consensus/
COPY p2p/ p2p/
RUN /opt/llamesh/bin/uv pip install --python /opt/llamesh/bin/python --no-cache --no-deps . \
    && /opt/llamesh/bin/python -m pip uninstall --yes uv pip

FROM ${RUNTIME}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        libgomp1 libstdc++6 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --create-home --home-dir /var/lib/llamesh --shell /usr/sbin/nologin llamesh
COPY --from=build /opt/llamesh /opt/llamesh
USER llamesh
# A container's own loopback is reachable by nobody, so it listens on every address. Who may
# reach the published port is decided by `docker run -p`; see docs/install.md.
ENV PATH=/opt/llamesh/bin:$PATH \
    LLAMESH_HOME=/var/lib/llamesh \
    OLLAMA_HOST=0.0.0.0:11434 \
    LLAMESH_AUTH=open \
    LLAMESH_LOG_FORMAT=json
VOLUME /var/lib/llamesh
EXPOSE 11434
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=6s --start-period=10s CMD ["llamesh", "status"]
ENTRYPOINT ["llamesh"]
CMD ["serve"]
