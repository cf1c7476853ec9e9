"""InternVL checkpoints in their original format, converted to the native one of transformers."""
