"""What `refimpl gradcheck` checks: every pair of layers/, and whole models of every variant."""
