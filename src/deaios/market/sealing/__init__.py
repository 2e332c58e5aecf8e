"""Papers sealed to the provider, answers sealed to the buyer: nobody on the way reads either (HPKE, RFC 9180; EHBP)."""
