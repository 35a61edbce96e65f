"""What things are: frozen values and small tables, without locks and without I/O."""
