variable "region" {
  type        = string
  description = "AWS region of everything."

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region is an AWS region such as eu-central-1."
  }
}

variable "zones" {
  type        = list(string)
  description = "Availability zones of the region, 2 to 4; the first one gets the GPU nodes."
}

variable "owner" {
  type        = string
  description = "The team that pays: a tag on everything."
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
  description = "Instance of a training node."
  default     = "p5.48xlarge"
}

variable "gpu_capacity_type" {
  type        = string
  description = "ON_DEMAND, or SPOT, whose nodes may go at two minutes' notice: a job saves and goes on elsewhere."
  default     = "ON_DEMAND"
}

variable "gpu_nodes_max" {
  type        = number
  description = "Training nodes at most; there are none while nothing trains."
  default     = 4
}
