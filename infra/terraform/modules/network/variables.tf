variable "name" {
  type        = string
  description = "Prefix of every name in this module."

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,20}$", var.name))
    error_message = "name is a lower-case letter and then 1 to 20 lower-case letters, digits or hyphens."
  }
}

variable "cidr" {
  type        = string
  description = "Address range of the VPC, a /16; each zone gets a private /19 and a public /24 of it."
  default     = "10.40.0.0/16"

  validation {
    condition     = can(regex("^[0-9.]+/16$", var.cidr)) ? can(cidrnetmask(var.cidr)) : false
    error_message = "cidr is an IPv4 range of size /16, such as 10.40.0.0/16."
  }
}

variable "zones" {
  type        = list(string)
  description = "Availability zones: two for the database's standby, three where the region has them."

  validation {
    condition     = contains([2, 3, 4], length(distinct(var.zones)))
    error_message = "zones names 2 to 4 different availability zones."
  }
}

variable "nat_per_zone" {
  type        = bool
  description = "A NAT gateway in each zone, so that a zone's outage stays in it; false shares one and costs a fraction."
  default     = true
}

variable "log_days" {
  type        = number
  description = "Days that the flow log is kept: one of the periods that CloudWatch knows."
  default     = 365

  validation {
    condition     = contains([365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_days)
    error_message = "log_days is 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288 or 3653."
  }
}
