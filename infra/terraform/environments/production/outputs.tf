output "settings" {
  description = "Cupola's settings for the pods. The password is in `database_password_secret_arn`; set it as PGPASSWORD."
  value = {
    CUPOLA_STORE_URL    = "s3://${module.object_store.bucket}/artifacts"
    CUPOLA_S3_REGION    = var.region
    CUPOLA_REGISTRY_URL = module.database.registry_url
  }
}

output "database_endpoint" {
  description = "Host and port of PostgreSQL, for the databases of the registry, Prefect and MLflow."
  value       = module.database.endpoint
}

output "database_password_secret_arn" {
  description = "The secret with the database's user and password."
  value       = module.database.password_secret_arn
}

output "cluster_name" {
  description = "aws eks update-kubeconfig --name"
  value       = module.cluster.name
}

output "jobs_role_arn" {
  description = "The role of the jobs' pods."
  value       = module.cluster.jobs_role_arn
}
