"""Hostile input and published suites, against a real service."""
