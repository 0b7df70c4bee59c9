"""The page and charts of every report, self-contained."""
