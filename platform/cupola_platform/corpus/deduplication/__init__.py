"""Steps that compare documents: exact and near duplicates, repeated paragraphs and lines."""
