"""The auditor at work: it buys and re-executes, accuses, keeps the beacon, sits on juries."""

from deaios.alignment.auditor.service.auditor import AuditedModel, Auditor, AuditorSettings

__all__ = ["AuditedModel", "Auditor", "AuditorSettings"]
