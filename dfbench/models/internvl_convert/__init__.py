"""InternVL checkpoints in their original form, converted to transformers' native one."""
