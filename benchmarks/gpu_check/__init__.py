"""What only a GPU can show, in ten minutes on one: `python benchmarks/gpu_check --help`."""
