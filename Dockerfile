# docker build -t dept .                                      CPUs
# docker build -t dept-cuda --build-arg BASE=nvidia/cuda:12.6.3-base-ubuntu22.04 .
#
# docker run --rm -v dept-runs:/home/dept/dept/runs dept      `make demo`
# docker run --rm --gpus all dept-cuda make check             any other command
#
# The base is all that differs. The pinned torch brings CUDA's libraries along, on CPUs too: with
# other wheels the hashes of requirements.txt would not hold.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

ENV DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8 PYTHONUNBUFFERED=1
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git make \
    && if ! command -v python3; then apt-get install --yes --no-install-recommends python3 python3-venv; fi \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home dept && install --directory --owner=dept /home/dept/dept /home/dept/dept/runs
USER dept
WORKDIR /home/dept/dept

# Before the code, so that a change of it does not install anything again.
COPY --chown=dept requirements.txt ./
RUN python3 -m venv .venv \
    && .venv/bin/pip install --quiet --no-cache-dir uv \
    && .venv/bin/python -m uv pip install --quiet --no-cache --python .venv/bin/python --require-hashes -r requirements.txt

COPY --chown=dept . .
RUN UV_NO_CACHE=1 make setup
CMD ["make", "demo"]
