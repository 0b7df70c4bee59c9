"""What a preparation did, as `report.json` and one page."""
