"""The sections of a report: functions from what was gathered to HTML, grouped by topic."""
