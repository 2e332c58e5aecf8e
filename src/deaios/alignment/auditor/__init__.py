"""An auditor: buys as users do, re-executes, disputes what is wrong, keeps the beacon going, sits on juries."""
