"""A Hugging Face model in, a bundle out. One stage, one public function, one file; __main__.py calls them in order."""
