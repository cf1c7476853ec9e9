"""The per-image CSV: its columns, written through kills, read and joined, logits to probabilities."""
