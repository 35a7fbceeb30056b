"""The commands of ``coxmoe``, one file a group; heavy imports are inside the functions."""
