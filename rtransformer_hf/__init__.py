"""R-Transformer (arXiv 1907.05572) for Hugging Face Transformers."""
