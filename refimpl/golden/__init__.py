"""Golden vectors: exact cases of every function, and the verdict on another implementation's results."""
