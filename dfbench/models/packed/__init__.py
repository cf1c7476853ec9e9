"""The fast path: prompts packed into one sequence, fused layers, GPU kernels, 8-bit products."""
