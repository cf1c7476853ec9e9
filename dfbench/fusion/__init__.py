"""Several agents' per-image CSVs into one decision: MoA-DF and its kin."""
