"""Reports on runs and checkpoints: results, comparisons, curves, lineage."""
