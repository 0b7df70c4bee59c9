variable "name" {
  type        = string
  description = "Prefix of all names in this module."

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,20}$", var.name))
    error_message = "name must be a lower-case letter followed by 1 to 20 lower-case letters, digits or hyphens."
  }
}

variable "vpc_id" {
  type        = string
  description = "The VPC of the database."
}

variable "subnet_ids" {
  type        = list(string)
  description = "Private subnets in at least two zones: one for the primary, one for its standby."

  validation {
    condition     = contains([2, 3, 4], length(distinct(var.subnet_ids)))
    error_message = "subnet_ids must have 2 to 4 different subnets."
  }
}

variable "client_security_groups" {
  type        = map(string)
  description = "Security groups allowed to connect, by a name of your choice, such as { cluster = \"sg-0123\" }."
}

variable "postgres_version" {
  type        = string
  description = "Major version of PostgreSQL; minor versions are upgraded automatically in the maintenance window."
  default     = "16"

  validation {
    condition     = contains(["15", "16", "17"], var.postgres_version)
    error_message = "postgres_version must be 15, 16 or 17."
  }
}

variable "instance_class" {
  type        = string
  description = "Instance class. The registry, Prefect and MLflow together are a light load."
  default     = "db.t4g.medium"

  validation {
    condition     = can(regex("^db\\.", var.instance_class))
    error_message = "instance_class must start with `db.`, such as db.t4g.medium."
  }
}

variable "storage_gib" {
  type        = number
  description = "Initial storage in GiB; it grows automatically up to `storage_limit_gib`."
  default     = 50

  validation {
    condition     = contains([max(20, min(65536, floor(var.storage_gib)))], var.storage_gib)
    error_message = "storage_gib must be a whole number from 20 to 65536."
  }
}

variable "storage_limit_gib" {
  type        = number
  description = "Maximum storage in GiB."
  default     = 500

  validation {
    condition     = contains([max(20, min(65536, floor(var.storage_limit_gib)))], var.storage_limit_gib)
    error_message = "storage_limit_gib must be a whole number from 20 to 65536."
  }
}

variable "backup_days" {
  type        = number
  description = "Days of point-in-time recovery."
  default     = 14

  validation {
    condition     = contains(range(7, 36), var.backup_days)
    error_message = "backup_days must be a whole number from 7 to 35."
  }
}
