"""One execution of a recipe, and the fingerprints by which stages are found again."""
