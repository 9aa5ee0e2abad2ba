# The GPU path: verl's published image for vLLM 0.24 (CUDA 13, torch 2.11, FSDP and Megatron), with verl and spo_verl.
#   docker build -f recipes/cluster/gpu.Dockerfile -t spo-verl:gpu .
#   docker run --gpus all --shm-size=64g -v /data:/data -e SPO_DATA_DIR=/data spo-verl:gpu recipes/run.sh gsm8k_qwen3_0_6b/spo
# Not built here yet.
FROM verlai/verl:vllm024.dev2
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /workspace/spo-verl
COPY pyproject.toml setup.py README.md LICENSE ./
COPY spo_verl spo_verl
COPY recipes recipes
# What the image brings keeps its version; verl itself is not in it. Ray is that of rayjob.yaml.
RUN { pip freeze | grep -E '^(torch|torchvision|torchaudio|vllm|transformers|numpy)=='; echo verl==0.9.1; echo ray==2.60.0; } > /tmp/held.txt \
    && pip install --no-cache-dir -c /tmp/held.txt -e .
CMD ["spo-verl", "doctor"]
