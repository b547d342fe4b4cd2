"""Alignment: models without a common base, brought to one basis before they are merged."""
