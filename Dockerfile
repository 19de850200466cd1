# Three images from one file:
#   docker build --target control -t splitmesh-control .    gateway, router, pool manager: no torch
#   docker build --target worker  -t splitmesh-worker .     prompt and token workers, and what fetches the model
#   docker build --target load    -t splitmesh-load .       the load generator
#
# BASE: a Debian with Python 3.11 as `python`. TORCH: another requirement or wheel source for the same version, e.g.
# --build-arg TORCH="torch==2.13.0 --index-url URL-OF-A-CUDA-BUILD".

ARG BASE=python:3.11-slim-bookworm

# ---- what is installed, in stages that have what installing needs ----

FROM ${BASE} AS installed
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
RUN python -m venv /opt/splitmesh
ENV PATH=/opt/splitmesh/bin:$PATH
COPY pyproject.toml constraints.txt README.md LICENSE ./
# The requirements alone, so that a change of the code does not install them again.
RUN mkdir services shared loadgen && touch services/__init__.py && pip install -c constraints.txt . && \
    pip uninstall -y splitmesh

FROM installed AS installed-control
COPY . .
RUN pip install --no-deps . && pip uninstall -y pip

FROM installed AS installed-load
RUN pip install -c constraints.txt '.[load]' && pip uninstall -y splitmesh
COPY . .
RUN pip install --no-deps . && pip uninstall -y pip

FROM installed AS installed-worker
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ARG TORCH="torch==2.13.0"
RUN pip install -c constraints.txt ${TORCH} && pip install -c constraints.txt '.[worker]' && pip uninstall -y splitmesh
RUN pip install -c constraints.txt '.[ucx]' && pip uninstall -y splitmesh && \
    cd /opt/splitmesh/lib/python3*/site-packages && rm -rf torch/include torch/test libucx/include && find . -name '*.a' -delete
COPY . .
RUN pip install --no-deps . && cd / && python -m shared.engine.native.build --portable

# ---- the images ----

FROM ${BASE} AS plain
RUN useradd --uid 10001 --home-dir /tmp --no-create-home splitmesh && install -d -o splitmesh /var/lib/splitmesh
ENV PATH=/opt/splitmesh/bin:$PATH HOME=/tmp HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 \
    SPLITMESH_CACHE=/var/lib/splitmesh SPLITMESH_LOG_FORMAT=json
WORKDIR /tmp
USER splitmesh
ENTRYPOINT ["python", "-m"]

FROM plain AS worker
COPY --from=installed-worker /opt/splitmesh /opt/splitmesh
CMD ["services.prompt_worker"]

FROM plain AS load
COPY --from=installed-load /opt/splitmesh /opt/splitmesh
CMD ["loadgen", "--help"]

FROM plain AS control
COPY --from=installed-control /opt/splitmesh /opt/splitmesh
CMD ["services.gateway"]
