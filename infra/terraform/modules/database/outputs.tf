output "registry_url" {
  description = "The registry's URL without the password, which libpq takes from PGPASSWORD: CUPOLA_REGISTRY_URL."
  value       = "postgresql+psycopg://${aws_db_instance.this.username}@${aws_db_instance.this.endpoint}/${aws_db_instance.this.db_name}?sslmode=require"
}

output "endpoint" {
  description = "Host and port."
  value       = aws_db_instance.this.endpoint
}

output "resource_id" {
  description = "What an IAM policy for rds-db:connect names."
  value       = aws_db_instance.this.resource_id
}

output "password_secret_arn" {
  description = "The secret in Secrets Manager that holds user and password."
  value       = aws_db_instance.this.master_user_secret[0].secret_arn
}
