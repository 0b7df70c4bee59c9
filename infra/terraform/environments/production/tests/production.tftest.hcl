# terraform test: plans the whole environment against a mock of AWS, without an account.
mock_provider "aws" {
  mock_data "aws_iam_policy_document" {
    defaults = {
      json = "{}"
    }
  }

  mock_data "aws_caller_identity" {
    defaults = {
      account_id = "111122223333"
    }
  }

  mock_data "aws_partition" {
    defaults = {
      partition = "aws"
    }
  }

  mock_data "aws_region" {
    defaults = {
      name = "eu-central-1"
    }
  }
}

variables {
  region             = "eu-central-1"
  zones              = ["eu-central-1a", "eu-central-1b"]
  owner              = "language-models"
  bucket_name        = "example-cupola-artifacts"
  administrator_arns = ["arn:aws:iam::111122223333:role/platform"]
}

run "the_environment_plans" {
  command = plan

  assert {
    condition     = output.settings["CUPOLA_S3_REGION"] == "eu-central-1"
    error_message = "The pods must get the bucket's region."
  }

  assert {
    condition     = module.cluster.name == "cupola"
    error_message = "The cluster must have the project's name."
  }
}

run "a_region_that_is_none_is_refused" {
  command = plan

  variables {
    region = "Frankfurt"
  }

  expect_failures = [var.region]
}
