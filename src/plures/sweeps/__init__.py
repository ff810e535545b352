"""Many runs: grids and seeds."""
