"""The report of a preparation, as `report.json` and an HTML page."""
