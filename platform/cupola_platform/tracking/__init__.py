"""Runs log to a spool of files, which is sent to MLflow. The only package that imports MLflow."""
