"""What is made for a GPU alone: opening one, and the functions that kernels/*.cu compute there."""
