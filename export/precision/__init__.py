"""Stage 6: for each target the fastest graph that passes the gate. Half precision; int8 has a folder of its own."""
