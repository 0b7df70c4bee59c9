variable "name" {
  type        = string
  description = "Prefix of all names in this module."

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,20}$", var.name))
    error_message = "name must be a lower-case letter followed by 1 to 20 lower-case letters, digits or hyphens."
  }
}

variable "bucket_name" {
  type        = string
  description = "Globally unique name of the artifacts' bucket; its access log goes to the same name plus `-log`."

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,57}[a-z0-9]$", var.bucket_name))
    error_message = "bucket_name must be 3 to 59 lower-case letters, digits or hyphens, with no hyphen at either end."
  }
}

variable "incomplete_upload_days" {
  type        = number
  description = "Days after which the parts of incomplete uploads are deleted."
  default     = 7

  validation {
    condition     = contains(range(1, 366), var.incomplete_upload_days)
    error_message = "incomplete_upload_days must be a whole number from 1 to 365."
  }
}

variable "old_version_days" {
  type        = number
  description = "Days for which a deleted object can be recovered. Artifacts are never overwritten, so only deletions create old versions."
  default     = 30

  validation {
    condition     = contains(range(1, 1001), var.old_version_days)
    error_message = "old_version_days must be a whole number from 1 to 1000."
  }
}

variable "progress_days" {
  type        = number
  description = "Days after which the uploaded checkpoints of an abandoned stage are removed."
  default     = 90

  validation {
    condition     = contains(range(1, 1001), var.progress_days)
    error_message = "progress_days must be a whole number from 1 to 1000."
  }
}

variable "log_days" {
  type        = number
  description = "Days to keep the access log."
  default     = 365

  validation {
    condition     = contains(range(1, 1001), var.log_days)
    error_message = "log_days must be a whole number from 1 to 1000."
  }
}
