output "name" {
  description = "Name of the cluster, for `aws eks update-kubeconfig`."
  value       = aws_eks_cluster.this.name
}

output "endpoint" {
  description = "The cluster's API, inside the VPC."
  value       = aws_eks_cluster.this.endpoint
}

output "security_group_id" {
  description = "The security group of the nodes and the control plane, to allow at the database."
  value       = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
}

output "jobs_role_arn" {
  description = "The role of the jobs' service account."
  value       = aws_iam_role.jobs.arn
}
