"""Where cases come from: folders, tables, simulated cohorts; and who trains, validates and tests."""
