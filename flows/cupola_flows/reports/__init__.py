"""What is said of runs and checkpoints: results, comparisons, curves, lineage."""
