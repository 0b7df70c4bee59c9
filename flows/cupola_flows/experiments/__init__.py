"""Series of small training runs: scaling laws, the search for a mixture, the comparison of layouts."""
