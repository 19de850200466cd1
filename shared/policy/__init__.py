"""Decisions without I/O, clocks or chance: the live mesh and the simulator run the same objects. Pure."""
