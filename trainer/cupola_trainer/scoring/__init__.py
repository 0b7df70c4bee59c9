"""What a response is worth, decided by a program: tasks, unit tests in a sandbox, intervals. Imports no torch."""
