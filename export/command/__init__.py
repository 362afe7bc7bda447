"""The command line: options, recipes, and what a user sees."""
