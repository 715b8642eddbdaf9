# nitrodistill on NVIDIA GPUs. Not built and not run where it was written: no image could be had there.
#   docker build -f docker/cuda.Dockerfile -t nitrodistill:cuda .
#   docker run --rm --gpus all -v "$PWD:/work" nitrodistill:cuda doctor
# torch brings CUDA's libraries; the host needs the driver and NVIDIA's container toolkit.
FROM python:3.11-slim

# Triton compiles its launchers
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

COPY . /src
# the versions that the tests ran with
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[all]"

WORKDIR /work
ENTRYPOINT ["nitrodistill"]
CMD ["doctor"]
