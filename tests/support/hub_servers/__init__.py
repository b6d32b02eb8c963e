"""Small servers on 127.0.0.1 that speak what a backend of packages speaks: S3, Google, Azure, the Hugging Face Hub."""
