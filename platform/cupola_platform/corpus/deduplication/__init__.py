"""What several documents share: equal and near duplicates, repeated paragraphs and lines."""
