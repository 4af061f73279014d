"""Triage: declarative, cited rules from measurements to findings and an urgency. AI may raise, never lower."""
