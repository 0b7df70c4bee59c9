"""What a run says goes to a spool of files, and from there to MLflow; the only room that imports MLflow."""
