"""What needs a library beside the standard one: a file for each, imported only on demand."""
