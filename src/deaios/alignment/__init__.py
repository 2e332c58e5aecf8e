"""Who checks: the answer file and its verification, auditors, disputes, juries."""
