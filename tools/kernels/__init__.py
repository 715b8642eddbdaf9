"""Compiling the fused kernels ahead of time, and tuning their launch options.

python -m tools.kernels.aot    # for GPUs that are not here, with the resource gates
python -m tools.kernels.tune   # on the GPU that is here
"""
