variable "region" {
  type        = string
  description = "AWS region of all resources."

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region must be an AWS region such as eu-central-1."
  }
}

variable "zones" {
  type        = list(string)
  description = "Availability zones of the region, 2 to 4; the first has the GPU nodes."
}

variable "owner" {
  type        = string
  description = "The team that pays, as a tag on all resources."
}

variable "bucket_name" {
  type        = string
  description = "Globally unique name of the artifacts' bucket."
}

variable "administrator_arns" {
  type        = list(string)
  description = "IAM roles or users that administer the cluster."
}

variable "gpu_instance_type" {
  type        = string
  description = "Instance type of the training nodes."
  default     = "p5.48xlarge"
}

variable "gpu_capacity_type" {
  type        = string
  description = "ON_DEMAND, or SPOT, whose nodes may be reclaimed with two minutes' notice: a job then saves and resumes elsewhere."
  default     = "ON_DEMAND"
}

variable "gpu_nodes_max" {
  type        = number
  description = "Maximum training nodes; there are none while nothing trains."
  default     = 4
}
