"""The four stages: what each reads, which objective it trains, what it is measured by."""
