"""Access to servers, and what may be shown of a URL."""
