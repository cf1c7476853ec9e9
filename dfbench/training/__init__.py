"""Checked annotations to a LoRA adapter, through ms-swift."""
