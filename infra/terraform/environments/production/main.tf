locals {
  name = "cupola"
}

module "network" {
  source = "../../modules/network"

  name  = local.name
  zones = var.zones
}

module "object_store" {
  source = "../../modules/object_store"

  name        = local.name
  bucket_name = var.bucket_name
}

module "cluster" {
  source = "../../modules/cluster"

  name               = local.name
  subnet_ids         = module.network.private_subnet_ids
  bucket_arn         = module.object_store.bucket_arn
  bucket_kms_key_arn = module.object_store.kms_key_arn
  administrator_arns = var.administrator_arns

  gpu_nodes = {
    instance_type = var.gpu_instance_type
    capacity_type = var.gpu_capacity_type
    subnet_ids    = [module.network.private_subnet_ids[0]]
    max           = var.gpu_nodes_max
    disk_gib      = 1000
  }
}

module "database" {
  source = "../../modules/database"

  name                   = local.name
  vpc_id                 = module.network.vpc_id
  subnet_ids             = module.network.private_subnet_ids
  client_security_groups = { cluster = module.cluster.security_group_id }
}
