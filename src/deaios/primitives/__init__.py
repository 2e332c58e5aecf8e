"""Names, bytes, keys, hashes and errors: the words every other part speaks. Pure; knows no other part."""
