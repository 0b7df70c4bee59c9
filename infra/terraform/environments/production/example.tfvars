# terraform plan -var-file=example.tfvars
region             = "eu-central-1"
zones              = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
owner              = "language-models"
bucket_name        = "example-cupola-artifacts"
administrator_arns = ["arn:aws:iam::111122223333:role/platform"]
