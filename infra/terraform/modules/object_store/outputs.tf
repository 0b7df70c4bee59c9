output "bucket" {
  description = "Name of the bucket: CUPOLA_S3_BUCKET."
  value       = aws_s3_bucket.artifacts.id
}

output "bucket_arn" {
  description = "ARN of the bucket, for policies."
  value       = aws_s3_bucket.artifacts.arn
}

output "kms_key_arn" {
  description = "ARN of the key that encrypts the artifacts, for policies."
  value       = aws_kms_key.artifacts.arn
}
