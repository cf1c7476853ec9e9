"""The fast path: prompts packed into one sequence, fused layers, kernels, 8-bit products."""
