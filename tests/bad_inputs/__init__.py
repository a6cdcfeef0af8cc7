"""THREATS' bad inputs, one row each: what is sent, and the status and code that come back.

Those about money, files, adapters and jobs that need more than a request stand with their parts: tests/billing,
tests/files, tests/variants, tests/fine_tuning.
"""
