"""Files kept as coded rows on several nodes; every row is verified before it is used."""
