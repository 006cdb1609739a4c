"""What every room speaks in: errors, checks, budgets, limits, text that is shown, the version."""
