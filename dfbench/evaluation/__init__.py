"""From per-image CSVs to numbers: metrics, intervals, comparisons, the shortcut audit, tables."""
