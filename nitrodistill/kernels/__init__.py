"""Fused kernels: one PyTorch definition, one Triton source and one dispatcher per operation."""

from __future__ import annotations
