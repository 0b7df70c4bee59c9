"""Laws fitted to small runs: data mixtures, learning rates and batch sizes, with their uncertainty."""
