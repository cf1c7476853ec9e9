"""Images to a finished per-image CSV: what a run scores, in which batches, and how it resumes."""
