# The CPU path: the environment of quickstart.sh, for a try without an accelerator.
#   docker build -f recipes/cluster/cpu.Dockerfile --build-arg SPO_TORCH_WHEELS=<index of torch's CPU builds> -t spo-verl:cpu .
#   docker run --shm-size=2g -v "$PWD/runs:/workspace/spo-verl/runs" spo-verl:cpu
# Not built here yet.
FROM python:3.11.9-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /workspace/spo-verl
COPY pyproject.toml setup.py README.md LICENSE quickstart.sh ./
COPY spo_verl spo_verl
COPY recipes recipes
# The general index has the CUDA build of torch only.
ARG SPO_TORCH_WHEELS
RUN bash -ec '. spo_verl/cpu/environment/make_env.sh && spo_make_env "$PWD" runtime'
CMD ["./quickstart.sh"]
