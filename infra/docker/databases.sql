-- Beside the registry's own database, cupola: one for each server.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
