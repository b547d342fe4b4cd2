"""Merge methods: one file each, siblings that differ in a line share one."""
