"""Who may reach a server, and what may be shown of a URL."""
