"""What every room uses: errors, checks, budgets, limits, text that is shown, the version."""
