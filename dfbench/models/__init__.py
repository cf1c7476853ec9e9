"""The models that can be scored: their prompts, their forward passes and their checkpoint folders."""
