"""Forward passes in any layout, independent of objectives."""
