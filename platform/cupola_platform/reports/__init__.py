"""Pages that need nothing from elsewhere: one page, one set of charts, for every report."""
