"""The servers of a workspace: starting, watching, sweeping and stopping them."""
