"""What writes the generated parts of docs/operations, one module a page."""
