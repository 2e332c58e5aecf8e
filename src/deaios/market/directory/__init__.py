"""Who sells: found in the registry on chain, checked against stake, disputes and signed offers."""
