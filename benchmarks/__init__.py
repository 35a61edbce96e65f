"""How fast and how fair the pool is, told as ratios to floors measured in the same run."""
