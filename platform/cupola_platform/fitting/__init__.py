"""Laws fitted to small runs: mixtures of data, learning rates and batch sizes, with their uncertainty."""
