"""Where text comes from: one stream of documents from files, code, S3, Hugging Face or this Python's own library."""
