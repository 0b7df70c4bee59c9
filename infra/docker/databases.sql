-- One database per server, besides the registry's own, cupola.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
