"""Long searches that `make soak` runs until Ctrl-C or a finding."""
