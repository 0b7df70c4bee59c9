output "registry_url" {
  description = "CUPOLA_REGISTRY_URL: the registry's URL without the password, which libpq reads from PGPASSWORD."
  value       = "postgresql+psycopg://${aws_db_instance.this.username}@${aws_db_instance.this.endpoint}/${aws_db_instance.this.db_name}?sslmode=require"
}

output "endpoint" {
  description = "Host and port."
  value       = aws_db_instance.this.endpoint
}

output "resource_id" {
  description = "The resource id for IAM policies on rds-db:connect."
  value       = aws_db_instance.this.resource_id
}

output "password_secret_arn" {
  description = "The secret in Secrets Manager with user and password."
  value       = aws_db_instance.this.master_user_secret[0].secret_arn
}
