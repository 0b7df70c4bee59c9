"""Sources of text: one stream of documents from files, code, S3, Hugging Face or the Python installation."""
