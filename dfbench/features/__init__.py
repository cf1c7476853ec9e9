"""Image features of the paper's figure 3: measured, summarised, drawn."""
