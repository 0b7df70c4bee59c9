"""The servers beside a workspace: started, watched, swept, ended."""
