"""Choosing a policy from labelled data, and measuring one."""
