"""The buyer's side: journal and client. Whoever signs requests is the buyer: a user, a gateway, an auditor."""
