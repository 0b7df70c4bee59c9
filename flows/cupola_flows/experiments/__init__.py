"""Series of small training runs: scaling laws, mixture search, layout comparison."""
