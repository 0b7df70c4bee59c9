"""What every room of the corpus uses: documents between steps, their files, shingles, tallies, Qwen's token format."""
