"""A launcher in front of another one, for nodes that do not see this machine's folders."""
