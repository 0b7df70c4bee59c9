variable "name" {
  type        = string
  description = "Prefix of all names in this module."

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,20}$", var.name))
    error_message = "name must be a lower-case letter followed by 1 to 20 lower-case letters, digits or hyphens."
  }
}

variable "cidr" {
  type        = string
  description = "Address range of the VPC, a /16; each zone gets a private /19 and a public /24."
  default     = "10.40.0.0/16"

  validation {
    condition     = can(regex("^[0-9.]+/16$", var.cidr)) ? can(cidrnetmask(var.cidr)) : false
    error_message = "cidr must be an IPv4 range of size /16, such as 10.40.0.0/16."
  }
}

variable "zones" {
  type        = list(string)
  description = "Availability zones: two for the database's standby, three if the region has them."

  validation {
    condition     = contains([2, 3, 4], length(distinct(var.zones)))
    error_message = "zones must have 2 to 4 different availability zones."
  }
}

variable "nat_per_zone" {
  type        = bool
  description = "One NAT gateway per zone, so that an outage stays in its zone; false shares one, at a fraction of the cost."
  default     = true
}

variable "log_days" {
  type        = number
  description = "Days to keep the flow log: one of the periods that CloudWatch supports."
  default     = 365

  validation {
    condition     = contains([365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_days)
    error_message = "log_days must be 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288 or 3653."
  }
}
