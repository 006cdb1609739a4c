"""A GPU's part of the engine: checked and timed on one, and counted, compiled and modelled without one."""
