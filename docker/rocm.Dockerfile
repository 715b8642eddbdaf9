# nitrodistill on AMD GPUs. Not built and not run where it was written: no image could be had there.
#   docker build -f docker/rocm.Dockerfile -t nitrodistill:rocm .
#   docker run --rm --device /dev/kfd --device /dev/dri --group-add video --ipc host \
#     -v "$PWD:/work" -v "$HOME/.cache/nitrodistill:/cache" nitrodistill:rocm doctor
# The base has torch for ROCm and Triton; take the tag that fits your driver.
ARG BASE=rocm/pytorch:latest
FROM ${BASE}

COPY . /src
# without bitsandbytes; a torch that satisfies pyproject.toml is left alone, and the second line would say if it was not
RUN pip install --no-cache-dir "/src[augmentation,datasets,lora,metrics,tensorboard]" \
 && python -c "import torch; assert torch.version.hip, torch.__version__"

# what MIOpen and Triton have found and compiled outlives the container (docs/rocm.md)
ENV MIOPEN_USER_DB_PATH=/cache/miopen MIOPEN_CUSTOM_CACHE_DIR=/cache/miopen TRITON_CACHE_DIR=/cache/triton
WORKDIR /work
ENTRYPOINT ["nitrodistill"]
CMD ["doctor"]
