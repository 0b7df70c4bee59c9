variable "name" {
  type        = string
  description = "Name of the cluster and prefix of all names in this module."

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,20}$", var.name))
    error_message = "name must be a lower-case letter followed by 1 to 20 lower-case letters, digits or hyphens."
  }
}

variable "kubernetes_version" {
  type        = string
  description = "Minor version of Kubernetes."
  default     = "1.33"

  validation {
    condition     = can(regex("^1\\.[0-9]{2}$", var.kubernetes_version))
    error_message = "kubernetes_version must be a minor version such as 1.33."
  }
}

variable "subnet_ids" {
  type        = list(string)
  description = "Private subnets in at least two zones."

  validation {
    condition     = contains([2, 3, 4], length(distinct(var.subnet_ids)))
    error_message = "subnet_ids must have 2 to 4 different subnets."
  }
}

variable "bucket_arn" {
  type        = string
  description = "The artifacts' bucket, which jobs read and add to."
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
  description = "Service account of the jobs. Only its pods can access the bucket."
  default     = "cupola"
}

variable "log_days" {
  type        = number
  description = "Days to keep the control plane's logs: one of the periods that CloudWatch supports."
  default     = 365

  validation {
    condition     = contains([365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_days)
    error_message = "log_days must be 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288 or 3653."
  }
}

variable "cpu_nodes" {
  type = object({
    instance_type = string
    min           = number
    max           = number
    disk_gib      = number
  })
  description = "Nodes for the servers, the workers and data preparation. `disk_gib` is each node's disk in GiB."
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
  description = "Nodes for training, scaled to zero while nothing trains. Give a single subnet, so that ranks on several nodes share a zone."

  validation {
    condition     = contains(["ON_DEMAND", "SPOT"], var.gpu_nodes.capacity_type)
    error_message = "gpu_nodes.capacity_type must be ON_DEMAND or SPOT."
  }

  validation {
    condition     = contains(range(1, 451), var.gpu_nodes.max)
    error_message = "gpu_nodes.max must be a whole number from 1 to 450, the limit of a node group."
  }

  validation {
    condition     = contains([max(100, min(16384, floor(var.gpu_nodes.disk_gib)))], var.gpu_nodes.disk_gib)
    error_message = "gpu_nodes.disk_gib must be a whole number from 100, enough for the image and one checkpoint, to 16384."
  }
}

variable "administrator_arns" {
  type        = list(string)
  description = "IAM roles or users that administer the cluster."
  default     = []

  validation {
    condition     = alltrue([for arn in var.administrator_arns : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:(role|user)/", arn))])
    error_message = "administrator_arns must be ARNs of IAM roles or users."
  }
}
