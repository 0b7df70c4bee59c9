variable "name" {
  type        = string
  description = "Name of the cluster and prefix of every name in this module."

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,20}$", var.name))
    error_message = "name is a lower-case letter and then 1 to 20 lower-case letters, digits or hyphens."
  }
}

variable "kubernetes_version" {
  type        = string
  description = "Minor version of Kubernetes."
  default     = "1.33"

  validation {
    condition     = can(regex("^1\\.[0-9]{2}$", var.kubernetes_version))
    error_message = "kubernetes_version is a minor version such as 1.33."
  }
}

variable "subnet_ids" {
  type        = list(string)
  description = "Private subnets in at least two zones."

  validation {
    condition     = contains([2, 3, 4], length(distinct(var.subnet_ids)))
    error_message = "subnet_ids names 2 to 4 different subnets."
  }
}

variable "bucket_arn" {
  type        = string
  description = "The bucket of the artifacts, which jobs read and add to."
}

variable "bucket_kms_key_arn" {
  type        = string
  description = "The key that encrypts the bucket."
}

variable "namespace" {
  type        = string
  description = "Namespace of the jobs."
  default     = "cupola"
}

variable "service_account" {
  type        = string
  description = "Service account of the jobs: its pods, and no others, reach the bucket."
  default     = "cupola"
}

variable "log_days" {
  type        = number
  description = "Days that the control plane's logs are kept: one of the periods that CloudWatch knows."
  default     = 365

  validation {
    condition     = contains([365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_days)
    error_message = "log_days is 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288 or 3653."
  }
}

variable "cpu_nodes" {
  type = object({
    instance_type = string
    min           = number
    max           = number
    disk_gib      = number
  })
  description = "Nodes for the servers, the workers and the preparation of text. `disk_gib` is each node's disk in GiB."
  default = {
    instance_type = "m7i.2xlarge"
    min           = 2
    max           = 6
    disk_gib      = 100
  }
}

variable "gpu_nodes" {
  type = object({
    instance_type = string
    capacity_type = string
    subnet_ids    = list(string)
    max           = number
    disk_gib      = number
  })
  description = "Nodes for training; there are none while nothing trains. Ranks on several nodes want one zone: give its subnet alone."

  validation {
    condition     = contains(["ON_DEMAND", "SPOT"], var.gpu_nodes.capacity_type)
    error_message = "gpu_nodes.capacity_type is ON_DEMAND or SPOT."
  }

  validation {
    condition     = contains(range(1, 451), var.gpu_nodes.max)
    error_message = "gpu_nodes.max is a whole number from 1 to 450, the most that one node group holds."
  }

  validation {
    condition     = contains([max(100, min(16384, floor(var.gpu_nodes.disk_gib)))], var.gpu_nodes.disk_gib)
    error_message = "gpu_nodes.disk_gib is a whole number from 100, which the image and one checkpoint need, to 16384."
  }
}

variable "administrator_arns" {
  type        = list(string)
  description = "IAM roles or users that administer the cluster."
  default     = []

  validation {
    condition     = alltrue([for arn in var.administrator_arns : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:(role|user)/", arn))])
    error_message = "administrator_arns are ARNs of IAM roles or users."
  }
}
